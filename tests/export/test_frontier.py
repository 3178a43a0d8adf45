"""The tool that measures early selection: its rows, its rivals, and its page."""

from __future__ import annotations

import aggregator_tables
import numpy as np
import pytest
import torch
from frontier_page import MARKER, TRAINING, kept_gain, write_page
from frontier_rows import CLS, FULL, LEARNED, ROWS, Row
from frontier_speed import Stopwatch
from frontier_vectors import VectorStore, save
from learned_rule import LearnedSelection, _by_removal, _Encoder, learn
from small_models import make_small
from token_merging import Merged, MergingModel, merge_pairs

from mimeval.datasets.pixels import split_of_pixels
from mimeval.statistics import Interval
from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.embedding_model import EmbeddingModel, embed_with_torch
from mimexport.graph import FILE, export_graph
from mimexport.keep import BY_CONTENT, FIXED, resolve_keep
from mimruntime.engines import open_engine

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def network(agg):
    backbone = Backbone(make_small("vit"))
    aggregator = make_aggregator(agg, backbone.shape, {})
    return EmbeddingModel(backbone, aggregator, "raw", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()


@pytest.mark.parametrize("agg", ["mean", "center-weighted"])
def test_without_a_pair_the_rival_is_the_plain_network(agg):
    merging = MergingModel(network(agg), (0, 0, 0), centered=agg == "center-weighted").eval()
    np.testing.assert_allclose(embed_with_torch(merging, PIXELS), embed_with_torch(network(agg), PIXELS), atol=1e-5)


def test_the_most_similar_pairs_become_their_weighted_mean_and_cls_stays():
    tokens = torch.arange(7.0)[None, :, None] * torch.ones(1, 1, 4)
    size, near = torch.tensor([[1.0, 1, 1, 3, 1, 1, 1]]), torch.zeros(1, 7)
    keys = torch.eye(7)[None]
    keys[0, 0] = keys[0, 1]  # [cls] is most like its neighbour, and does not merge all the same
    keys[0, 4] = keys[0, 3]
    merged = merge_pairs(Merged(tokens, size, near), keys, 1)
    assert merged.tokens[0, :, 0].tolist() == [0, 2, 6, 1, 3.25, 5]  # (3 · 3 + 1 · 4) / 4
    assert merged.size[0].tolist() == [1, 1, 1, 1, 4, 1]
    assert merge_pairs(Merged(tokens, size, near), keys, 2).size.sum() == size.sum()


@pytest.fixture(scope="module")
def merging():
    return MergingModel(network("topk"), (4, 2, 0), centered=True).eval()


def test_merging_loses_as_many_tokens_as_it_says(merging):
    row = Row("merging", merge=(4, 2, 0))
    assert row.title == "ToMe 1 × 4, 1 × 2, 1 × 0"
    assert row.tokens(16, 3) == [16, 12, 10]
    with torch.no_grad():
        state = merging.merged(torch.from_numpy(PIXELS))
    assert state.tokens.shape == (3, 1 + 10, 48)
    torch.testing.assert_close(state.size.sum(1), torch.full((3,), 17.0))
    assert not np.allclose(embed_with_torch(merging, PIXELS), embed_with_torch(network("mean"), PIXELS), atol=1e-3)


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_engines_merge_what_torch_merges(engine, merging, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "merging"
    if not folder.exists():
        folder.mkdir()
        export_graph(merging, folder, 32)
    with open_engine(engine, folder / FILE) as opened:
        found = opened.run(PIXELS)["embedding"]
    np.testing.assert_allclose(found, embed_with_torch(merging, PIXELS), atol=1e-5)


def test_what_other_code_or_another_device_made_is_made_again(tmp_path, monkeypatch):
    part, made = split_of_pixels("two", np.zeros(2, np.int64), PIXELS.__getitem__, "d"), []

    def embed(store, _, rows, part):
        save(store._file(rows[0], part), np.zeros((2, 48)))
        made.append("vectors")

    def export(_, folder, size):
        (folder / FILE).touch()
        made.append("graph")

    def make(device):
        made.clear()
        VectorStore("mae-tiny", torch.device(device), tmp_path).compute([FULL], [part], part)
        Stopwatch("mae-tiny", tmp_path).graph(FULL)
        return made.copy()

    monkeypatch.setattr(VectorStore, "_network", lambda *_: network("topk"))
    monkeypatch.setattr(VectorStore, "_embed", embed)
    monkeypatch.setattr("frontier_speed.export_graph", export)
    assert [make("cpu"), make("cpu"), make("cuda")] == [["vectors", "graph"], [], ["vectors"]]
    for module in ("frontier_vectors", "frontier_speed"):
        monkeypatch.setattr(f"{module}.code_digest", lambda: "another")
    assert make("cpu") == ["vectors", "graph"]


def test_every_row_has_a_name_of_its_own():
    assert len({row.folder for row in ROWS}) == len(ROWS)
    assert FULL.title == "everything"
    assert {row.timed for row in ROWS} <= set(ROWS)
    assert {row.by for row in ROWS} >= set(LEARNED) | set(FIXED) | set(BY_CONTENT)
    row = Row("fixed rule", "75%@0,50%@6", "center", size=56, agg="mean")
    assert row.title == "--image-size 56 --keep 75%@0,50%@6 --keep-by center --agg mean"
    assert row.tokens(64, 12) == [48] * 6 + [32] * 6


def teach(teacher):
    return learn(network("topk"), np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), np.uint8), teacher)


def test_a_learned_rule_keeps_what_moves_the_vector_most():
    model = network("topk")
    removal, places = teach("removal"), teach("places")
    assert (places.weight == 0).all()
    with torch.no_grad():
        backbone = Backbone(make_small("vit"), resolve_keep("50%", "norm", 16, 3))
        backbone.selection = LearnedSelection(backbone, removal)
        patches = (backbone.patchify(torch.from_numpy(PIXELS).float()) - model.mean) / model.std
        kept = backbone.encode(patches).kept
        entering = model.backbone._embed(patches)[:, 1:]
        scores = entering @ removal.weight + removal.bias
    assert torch.equal(kept.sort(1).values, scores.topk(8).indices.sort(1).values)


def test_the_teacher_leaves_out_one_patch_at_a_time():
    """By a plain loop over patches, for one image, through the encoder that drops them."""
    model = network("topk")
    encoder = _Encoder(model)
    with torch.no_grad():
        entering = encoder.enter(PIXELS[:2])
        worth = _by_removal(encoder, entering)
        everything = torch.arange(16)[None]
        for place in (0, 5, 15):
            others = everything[everything != place][None]
            moved = encoder.vectors(entering[:1], others) - encoder.vectors(entering[:1], everything)
            assert worth[0, place] == pytest.approx(float(moved.norm()), rel=1e-4)
        whole = encoder.vectors(entering, everything.expand(2, -1))
    np.testing.assert_allclose(whole, embed_with_torch(network("center-weighted"), PIXELS[:2]), atol=1e-5)


def test_the_page_says_what_was_measured_and_leaves_out_what_was_not(tmp_path):
    rng = np.random.default_rng(0)
    rows = {row.title: {"operations": 0.5} | {
        metric: rng.random(200) < share for metric in ("k-NN", "linear probe", TRAINING)
    } for row, share in ((CLS[0], 0.2), (CLS[1], 0.3), (FULL, 0.6))}  # fmt: skip
    rows[FULL.title]["rates"] = {"onnxruntime fp32": [100.0, 1.0, 0.9, 1.1]}
    half = Row("by content", "50%", "norm")
    rows[half.title] = {"operations": 0.5, "rates": {"onnxruntime fp32": [210.0, 2.0, 1.9, 2.1]}}
    stored = {
        "model": "m", "rows": rows, "sizes": [200, 200], "torch": "fp32", "engines": ["onnxruntime fp32"], "batch": 16,
        "machine": "a CPU",
    }  # fmt: skip
    results = tmp_path / "results"
    aggregator_tables.write(stored, results / "early-selection-m.json")
    (results / "early-selection.md").write_text(f"Prose.\n\n{MARKER}\nold")
    write_page(results)
    page = (results / "early-selection.md").read_text()
    assert page.startswith("Prose.")
    assert "old" not in page
    cells = {line.split(" | ")[0]: line.split(" | ") for line in page.splitlines() if line.startswith("| ")}
    assert cells["| everything"][2] == "1.00 (0.90 to 1.10)"
    assert "100 % [100, 100]" in cells["| everything"]
    assert cells[f"| `{half.title}`"][2:4] == ["2.00 (1.90 to 2.10)", ""]
    assert "+0.00 [+0.00, +0.00]" in cells["| [cls], final"]  # the stronger one, by training images
    assert (tmp_path / "images" / "early-selection.svg").read_text().count("<svg") == 1


def test_the_gain_that_is_kept_is_a_share_of_the_full_encoders():
    cls, full = np.zeros(400, bool), np.zeros(400, bool)
    full[:200] = True
    half = kept_gain(np.arange(400) < 100, cls, full)
    assert half.value == 0.5
    assert 0.4 < half.low < half.value < half.high < 0.6
    assert kept_gain(full, cls, full) == Interval(1, 1, 1)
