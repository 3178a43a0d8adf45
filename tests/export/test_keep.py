"""Patches that are dropped early: the encoder gives what it would give if nobody could see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from catalogue import built
from masked_timm import masked_tokens
from small_models import SMALL_MODELS, images_for, make_small

from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.early_selection import EarlySelection
from mimexport.embedding_model import EmbeddingModel, embed_with_torch
from mimexport.errors import HeadError
from mimexport.features import ComputedFeatures
from mimexport.graph import FILE, export_graph
from mimexport.grid import center_checkerboard_order, center_order, checkerboard_order
from mimexport.keep import DEFAULT_RULE, FIXED, resolve_keep
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.references import References
from mimexport.weights import load_model
from mimruntime import Embedder, heatmaps
from mimruntime.engines import open_engine
from mimruntime.errors import ArtifactError, OptionError, UnknownNameError
from mimruntime.selection import select, write

pytestmark = pytest.mark.usefixtures("small_alias")

EXACT = {"atol": 2e-5, "rtol": 2e-5}
MORE = ("center", "center-checkerboard", "center-norm", "contrast", "similarity")
SCHEDULES = ("50%", "75%@0,50%@1,25%@2")
DROPPING = [name for name in SMALL_MODELS if name != "hiera"]


def keeping(model, keep, by):
    return Backbone(model, resolve_keep(keep, by, model.patch_embed.num_patches, len(model.blocks)))


def features_of(backbone, images):
    encoded = backbone.encode(backbone.patchify(images.permute(0, 2, 3, 1)))
    return ComputedFeatures(backbone, encoded.tokens, None, encoded.kept)


def expected_scores(by, grid, images, tokens, left):
    """The rules once more, patch by patch."""
    rows, columns = grid
    scores = torch.zeros(tokens.shape[:2])
    order = center_order(grid).tolist()
    middle = np.array([(rows - 1) / 2, (columns - 1) / 2])
    for place in range(rows * columns):
        spot = np.array(divmod(place, columns))
        near = 1 - np.hypot(*(spot - middle)) / np.hypot(*middle)
        if by == "contrast":
            r, c = 8 * spot
            worth = images[:, :, r : r + 8, c : c + 8].var((2, 3), correction=0).mean(1) + 1e-4
        elif by == "similarity":
            mean = torch.stack([some[mine].mean(0) for some, mine in zip(tokens, left, strict=True)])
            worth = 1 - torch.cosine_similarity(tokens[:, place], mean) + 1e-4
        else:
            worth = tokens[:, place].norm(dim=-1) ** 2 * (max(near, 1e-6) ** 2 if by == "center-norm" else 1)
        scores[:, place] = worth * (1 - 0.01 * order.index(place) / len(order))
    return scores


def chooser(keep, by, grid, images):
    """What a plain loop keeps of `masked_tokens`, for the record `keep`."""
    counts = {stage.block: stage.patches for stage in keep.stages}
    first = {}

    def choose(block, tokens, left):
        if block not in counts:
            return left
        if by in FIXED:
            scores = -FIXED[by](grid).argsort().expand(len(left), -1).double()
        elif by == "contrast":
            scores = first.setdefault("scores", expected_scores(by, grid, images, tokens, left))
        else:
            scores = expected_scores(by, grid, images, tokens, left)
        best = scores.masked_fill(~left, -torch.inf).topk(counts[block], dim=1).indices
        return torch.zeros_like(left).scatter(1, best, True)

    return choose


@pytest.mark.parametrize("keep", SCHEDULES)
@pytest.mark.parametrize(
    ("name", "by"),
    [(name, by) for name in DROPPING for by in ("checkerboard", "norm")]
    + [(name, by) for name in ("vit", "eva like dinov3", "beit") for by in MORE],
)
def test_the_kept_tokens_are_timms_where_nobody_sees_the_others(name, by, keep):
    model, plain = make_small(name), make_small(name)
    images, grid = images_for(model), model.patch_embed.grid_size
    with torch.no_grad():
        backbone = keeping(model, keep, by)
        features = features_of(backbone, images)
        tokens, places = masked_tokens(plain, images, chooser(backbone.keep, by, grid, images))
        kept = features.kept.expand(len(images), -1)
        order = kept.argsort(1)
        assert torch.equal(kept.gather(1, order), places)
        assert backbone.shape.patches == places.shape[1] < backbone.shape.grid[0] * backbone.shape.grid[1]
        expected = tokens[:, backbone.shape.prefix :].gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1]))
        torch.testing.assert_close(features.patches, expected, **EXACT)
        some = torch.stack([torch.randperm(kept.shape[1])[:2] for _ in images])
        torch.testing.assert_close(features.rows(some), features.patches[torch.arange(3)[:, None], some], **EXACT)
        if backbone.shape.has_cls:
            torch.testing.assert_close(features.cls, tokens[:, 0], **EXACT)


@pytest.mark.parametrize("by", ["center", "checkerboard", "contrast"])
def test_only_kept_patches_are_embedded_where_the_choice_is_known_before(by):
    model = make_small("vit")
    images, seen = images_for(model), []
    backbone = keeping(model, "25%", by)
    backbone.model.patch_embed.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    features_of(backbone, images)
    assert seen == [4]


def test_every_aggregator_reads_what_is_left_at_its_own_place():
    model = make_small("vit with registers")
    images = images_for(model)
    backbone = keeping(model, "75%@0,50%@1", "norm")
    with torch.no_grad():
        features = features_of(backbone, images)
        patches, kept = features.patches, features.kept
        near = make_aggregator("topk", backbone.shape, {}).closeness[kept]
        topk = make_aggregator("topk", backbone.shape, {"k": "75%"})
        assert topk.k == 6  # of the 8 that are left
        best = (features.entering.norm(dim=-1) * near).topk(6).indices
        torch.testing.assert_close(topk(features).vector, patches[torch.arange(3)[:, None], best].mean(1), **EXACT)
        weighted = make_aggregator("center-weighted", backbone.shape, {})(features)
        shares = near / near.sum(1, keepdim=True)
        torch.testing.assert_close(weighted.vector, (patches * shares[..., None]).sum(1), **EXACT)
        grid = features.to_grid(weighted.weights).flatten(1)
        torch.testing.assert_close(grid.gather(1, kept), weighted.weights)
        assert (grid > 0).sum() == (weighted.weights > 0).sum() <= 3 * 8
        inside = torch.isin(kept, torch.tensor([5, 6, 9, 10]))
        assert inside.any(1).tolist() == [True, False, True]
        inside[1] = True  # none of the central ones is left: all that are
        middle = torch.stack([tokens[mine].mean(0) for tokens, mine in zip(patches, inside, strict=True)])
        torch.testing.assert_close(make_aggregator("center", backbone.shape, {})(features).vector, middle, **EXACT)
        prior = make_aggregator("abmilp", backbone.shape, {"prior": "center"})
        prior.layers[0].weight.data.zero_()
        torch.testing.assert_close(prior(features).weights, shares, **EXACT)
        torch.testing.assert_close(
            make_aggregator("mean", backbone.shape, {})(features).vector, patches.mean(1), **EXACT
        )


def test_the_fixed_rules_are_what_they_are_called():
    board = checkerboard_order((4, 6))
    rows, columns = board // 6, board % 6
    assert ((rows + columns) % 2 == 0)[:12].all()
    assert (rows % 2 == 0)[:6].all()
    assert sorted(board.tolist()) == list(range(24))
    both = center_checkerboard_order((8, 8))
    assert sorted(both.tolist()) == list(range(64))
    assert (both // 8 + both % 8 + 1)[:16].remainder(2).all()  # one colour, the nearest first ...
    assert set(both[:20].tolist()) > {27, 28, 35, 36}  # ... then the middle whole, before the corners
    assert 0 not in both[:32].tolist()
    assert center_order((3, 3)).tolist() == [4, 1, 3, 5, 7, 0, 2, 6, 8]
    assert set(center_order((4, 4))[:4].tolist()) == {5, 6, 9, 10}


@pytest.mark.parametrize(
    ("keep", "by", "message"),
    [
        (None, "norm", "says which patches stay, not how many"),
        ("50%", "luck", "keep-by rule"),
        ("", None, "expected a count"),
        ("50%@x", None, "expected a count"),
        ("50%@", None, "expected a count"),
        ("0", None, "from 1 to 16"),
        ("17", None, "from 1 to 16"),
        ("nan%", None, "from 1 to 16"),
        ("50%@3", None, "block 3 was given, the model has blocks 0 to 2"),
        ("50%@1,25%@1", None, "expected later blocks with fewer patches"),
        ("50%@0,75%@1", None, "expected later blocks with fewer patches"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(keep, by, message):
    with pytest.raises((OptionError, UnknownNameError), match=message):
        resolve_keep(keep, by, 16, 3)


def test_a_stage_that_drops_nothing_is_none():
    assert resolve_keep("100%", "norm", 16, 3) is None
    assert resolve_keep("100%@0,16@1", None, 16, 3) is None
    assert resolve_keep("100%@0,8@1,50%@2", None, 16, 3) == resolve_keep("8@1", DEFAULT_RULE, 16, 3)


def test_hiera_says_that_it_cannot():
    model = make_small("hiera")
    with pytest.raises(OptionError, match="--keep: Hiera pools neighbouring patches"):
        Backbone(model, resolve_keep("50%", None, 16, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_encoders_choose_by_scores_in_float32(dtype):
    model = make_small("vit")
    images = images_for(model)
    backbone = keeping(model, "50%", "contrast")
    patches = backbone.patchify(images.permute(0, 2, 3, 1))
    wide = backbone.encode(patches).kept
    narrow = backbone.to(dtype).encode(patches, dtype)
    assert narrow.tokens.dtype == dtype
    assert torch.equal(narrow.kept, wide)
    assert backbone.selection._weights.unique().numel() == 16


def embedder(name, keep, by):
    backbone = keeping(make_small(name), keep, by)
    aggregator = make_aggregator("topk", backbone.shape, {})
    return EmbeddingModel(backbone, aggregator, "raw", *[(0.5, 0.5, 0.5)] * 2, with_selection=True).eval()


@pytest.mark.parametrize(
    ("name", "by"),
    [("eva like dinov3", "contrast"), pytest.param("beit with both biases", "similarity", marks=pytest.mark.slow)],
)
def test_engines_choose_what_torch_chooses(name, by, tmp_path):
    model = embedder(name, "75%@0,50%@1", by)
    export_graph(model, tmp_path, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    pixels[1] = 255  # blank: every patch has the same pixels
    pixels[2, :, :16] = 0
    pixels[3] = 0
    with torch.no_grad():
        _, shares, kept = model(torch.from_numpy(pixels))
    assert ((shares > 0).sum((1, 2)) == 6).all()  # 75 % of half of 16
    assert (kept.sum((1, 2)) == 8).all()
    for engine_name in ("onnxruntime", "openvino"):
        with open_engine(engine_name, tmp_path / FILE) as engine:
            found = engine.run(pixels)
            alone = engine.run(pixels[2:3])
        np.testing.assert_allclose(found["selection"], shares, atol=1e-6)
        np.testing.assert_array_equal(found["kept"], kept)
        np.testing.assert_allclose(found["embedding"], embed_with_torch(model, pixels), atol=1e-5)
        np.testing.assert_allclose(found["embedding"][2:3], alone["embedding"], atol=1e-6)


@pytest.fixture(scope="module")
def half(small_alias):
    """Half of the patches enter the second block."""
    keep = {"keep": "75%@0,50%@1", "keep_by": "center-norm"}
    return built(model=small_alias, agg="topk", random_seed=0, with_selection=True, **keep)


def test_an_artifact_says_what_it_keeps_and_is_a_space_of_its_own(half):
    manifest = half.manifest
    assert str(manifest.keep) == "12 before block 0, 8 before block 1, by center-norm"
    assert manifest.aggregator.params["k"] == 6
    assert manifest.backbone.grid == (4, 4)
    assert manifest.embedding_space != built(model="small", agg="topk", random_seed=0).manifest.embedding_space
    assert "12 before block 0, 8 before block 1, by center-norm" in (half.path / "README.md").read_text()


def test_the_reference_keeps_what_the_artifact_keeps(half):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    with References().open([half])[0] as reference, open_engine("onnxruntime", half.graph) as engine:
        ours, theirs = reference.run(pixels), engine.run(pixels)
    for name, values in ours.items():
        np.testing.assert_allclose(theirs[name], values, atol=1e-5)
    assert ((theirs["selection"] > 0).sum((1, 2)) == 6).all()
    assert (theirs["kept"].sum((1, 2)) == 8).all()
    assert (theirs["kept"][theirs["selection"] > 0] == 1).all()


def test_dropped_patches_are_drawn_unlike_those_that_are_not_selected(half, photos, tmp_path):
    with Embedder.open(half.path, engine="onnxruntime") as embedder:
        list(write(select(embedder, photos[:2]), tmp_path, 2))
    with np.load(tmp_path / "selection.npz") as found:
        weights, kept = found["selection"], found["kept"]
    for patches, stayed in zip(weights, kept, strict=True):
        colours = heatmaps.overlay(patches, stayed).reshape(16, 4).tolist()
        assert colours.count(heatmaps.overlay(np.zeros((1, 1)), np.zeros((1, 1), bool))[0, 0].tolist()) == 8
        assert colours.count(heatmaps.overlay(np.zeros((1, 1)))[0, 0].tolist()) == 8 - 6


def test_the_worst_instead_of_the_best_gives_other_vectors(half, monkeypatch):
    worst = staticmethod(lambda scores, count: (-scores).topk(count, dim=1).indices)
    monkeypatch.setattr(EarlySelection, "_best", worst)
    with pytest.raises(ArtifactError, match="has cosine"):
        References().open([half])


def test_a_head_of_all_patches_does_not_fit_kept_ones(tmp_path):
    for options in ({"agg": "abmilp", "head": "abmilp-unlabelled"}, {"agg": "mean", "whiten": 0}):
        with pytest.raises(HeadError, match="was fitted on all patches"):
            build(BuildOptions(model="mae-tiny", out=tmp_path / "a", keep="50%", **options))
    assert not (tmp_path / "a").exists()


def test_with_every_patch_kept_the_graph_is_that_without_the_option():
    plain = built(model="small", agg="topk", random_seed=0)
    whole = built(model="small", agg="topk", random_seed=0, keep="100%", keep_by="norm")
    assert whole.graph.read_bytes() == plain.graph.read_bytes()
    assert whole.manifest.keep is None
    assert whole.manifest.embedding_space == plain.manifest.embedding_space
    assert load_model("small", random_seed=0).sha256 == plain.manifest.backbone.weights_sha256
