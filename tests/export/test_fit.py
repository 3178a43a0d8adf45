"""Heads are learned from stored tokens: the same command gives the same head, and a killed run loses nothing."""

import io
import os
import re
import subprocess
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mimeval.cli.progress import ConsoleProgress
from mimexport.aggregators import make_aggregator
from mimexport.aliases import ALIASES
from mimexport.backbone import Backbone
from mimexport.cli.common import let_threads_sleep
from mimexport.composition import compose
from mimexport.embedding_model import embed_with_torch
from mimexport.errors import FitError, HeadError
from mimexport.features import ComputedFeatures
from mimexport.fitting import tokens as token_module
from mimexport.fitting.fewer_patches import backbone_keeping, compare_on_views, compared_images
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.labelled import _Trainer, train
from mimexport.fitting.ranking import Candidate, best_learned, explain_choice
from mimexport.fitting.stored_features import StoredFeatures, pool, pool_all
from mimexport.fitting.tokens import Tokens, TokenStore
from mimexport.fitting.unlabelled import two_view_recall
from mimexport.fitting.views import WHOLE, show
from mimexport.heads import load_head, save_head
from mimexport.norms import NormChoice
from mimexport.options import BuildOptions
from mimexport.precision_loss import neighbour_overlap
from mimexport.preprocessing import preprocess_of
from mimexport.weights import load_model
from mimruntime.errors import ImageError, OptionError, OutputError
from mimruntime.manifest import Preprocess
from mimruntime.rows import StoredRows
from mimruntime.synthetic import draw_scenes

PREPROCESS = Preprocess(
    size=32, resize=32, mode="shortest", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


pytestmark = pytest.mark.usefixtures("small_alias")


@pytest.fixture
def small_backbone():
    return Backbone(load_model("small", random_seed=0).model)


@pytest.fixture(scope="module")
def pictures():
    """160 scenes as PNG files in memory; class 1 has a bright object in one of the four quarters."""
    scenes, rng = draw_scenes(160, 32), np.random.default_rng(0)
    labels = np.arange(160) % 2
    for scene, label in zip(scenes, labels, strict=True):
        if label:
            top, left = rng.integers(0, 2, 2) * 16
            scene[top : top + 12, left : left + 12] = (255, 40, 40)
    files = []
    for scene in scenes:
        stream = io.BytesIO()
        Image.fromarray(scene).save(stream, "PNG")
        files.append(stream.getvalue())
    return files, labels


def options(tmp_path, pictures, **changes):
    images, labels = pictures
    values = {
        "model": "small",
        "agg": "abmilp",
        "images": images,
        "labels": labels,
        "digest": "d",
        "cache": tmp_path / "cache",
    }
    return FitOptions(**values | {"random_seed": 0} | changes)


def test_the_same_command_gives_the_same_head_and_another_seed_another(tmp_path, pictures):
    first = Fitter(options(tmp_path, pictures)).fit()
    again = Fitter(options(tmp_path, pictures, cache=tmp_path / "fresh")).fit()
    other = Fitter(options(tmp_path, pictures, seed=1)).fit()
    assert first.sha256(whitened=True) == again.sha256(whitened=True) != other.sha256(whitened=True)


def test_training_finds_the_one_patch_that_tells_the_class(small_backbone):
    """Every image has one informative patch among fifteen longer ones that say nothing; its place is random."""
    rng = np.random.default_rng(0)
    count, labels = 1200, rng.integers(0, 4, 1200)
    patches = 5 * rng.normal(size=(count, 16, 48))
    patches[..., 0] = 0
    where = rng.integers(0, 16, count)
    patches[np.arange(count), where] = rng.normal(size=(count, 48))
    patches[np.arange(count), where, 0] = 6
    patches[np.arange(count), where, 1 + labels] += 6
    empty = np.zeros((count, 0))
    tokens = Tokens(patches.astype(np.float16), empty, empty, np.zeros((count, 0, 16)))
    aggregator, recipe = train(
        lambda: make_aggregator("abmilp", small_backbone.shape, {}),
        tokens, labels, small_backbone, final=False, seed=0, report=lambda line: None,
    )  # fmt: skip
    with torch.no_grad():
        weights = aggregator.weigh(torch.from_numpy(patches).float(), None).numpy()
    assert weights[np.arange(count), where].mean() > 0.3  # uniform: 0.06
    assert recipe["classes"] == 4


@pytest.mark.parametrize("agg", ["abmilp", "ep", "aim"])
def test_what_was_learned_on_tokens_of_unit_spread_is_made_to_fit_tokens_as_they_are(small_backbone, agg):
    rng = np.random.default_rng(0)
    patches = (rng.normal(size=(40, 16, 48)) * rng.uniform(0.1, 9, 48)).astype(np.float16)
    empty = np.zeros((40, 0))
    tokens = Tokens(patches, empty, empty, np.zeros((40, 0, 16)))
    spread = torch.from_numpy(patches.reshape(-1, 48).astype(np.float32).std(0))
    trainer = _Trainer(lambda: make_aggregator(agg, small_backbone.shape, {}), spread, 2, small_backbone, None, seed=0)
    trainer.run(tokens, torch.arange(40) % 2, np.arange(40), 1e-2, epochs=2)

    def weights(scale):
        features = StoredFeatures(tokens, small_backbone, None)
        features.patches = features.patches / scale
        with torch.no_grad():
            return trainer.aggregator.eval()(features).weights

    if agg == "aim":  # scales its tokens itself, by what it was prepared with
        torch.testing.assert_close(trainer.aggregator.std, spread)
        return
    learned = weights(spread)
    trainer.finished()
    torch.testing.assert_close(weights(1), learned, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("agg", ["ep", "simpool", "aim"])
def test_the_other_heads_are_trained_and_saved(tmp_path, pictures, agg):
    head = Fitter(options(tmp_path, pictures, agg=agg)).fit()
    save_head(head, tmp_path / "h.safetensors")
    again = load_head(tmp_path / "h.safetensors")
    assert (again.agg, again.recipe["classes"], again.recipe["images"]) == (agg, 2, 160)
    assert again.sha256(whitened=True) == head.sha256(whitened=True)


@pytest.mark.parametrize("agg", ["abmilp", "topk", "mean", "cls"])
def test_without_labels_a_scorer_or_a_whitening_is_fitted(tmp_path, pictures, agg):
    head = Fitter(options(tmp_path, pictures, agg=agg, labels=None)).fit()
    assert head.whitening is not None
    assert 0 <= head.figures["two_view_recall_at_1"] <= 1
    if agg == "topk":
        assert head.params["score"] == "learned"
        ranking = head.figures["two_view_recall"]
        assert {row[0] for row in ranking} == {"center-norm", "input-norm", "norm", "cls-attention", "learned"}
        assert [row[2] for row in ranking] == sorted((row[2] for row in ranking), reverse=True)
        assert f"learned, k {head.params['k']}" in head.figures["choice"]


def test_topk_learns_its_score_without_labels_also_where_there_are_some(tmp_path, pictures):
    heads = [
        Fitter(options(tmp_path, pictures, agg="topk", labels=labels, agg_options=asked)).fit()
        for labels, asked in ((pictures[1], {}), (pictures[1], {"score": "learned"}), (None, {}))
    ]
    assert heads[0].params["score"] == "learned"
    assert "choice" in heads[0].figures
    assert len({head.sha256(whitened=True) for head in heads}) == 1


def test_a_training_free_score_keeps_itself_and_gets_a_whitening(tmp_path, pictures):
    options_ = options(tmp_path, pictures, agg="topk", labels=None, agg_options={"score": "norm", "k": "25%"})
    head = Fitter(options_).fit()
    assert head.params == {"k": 4, "score": "norm"}
    assert head.tensors == {}
    assert head.recipe["objective"] == "whitening only"


def test_the_images_tell_which_norm_is_better_unless_it_is_known_or_asked_for(tmp_path, pictures, monkeypatch):
    fitted = Fitter(options(tmp_path, pictures, agg="mean", labels=None)).fit()
    recalls = fitted.figures["norms_two_view_recall"]
    assert {agg: set(found) for agg, found in recalls.items()} == {"cls": {"raw", "final"}, "mean": {"raw", "final"}}
    assert fitted.token_norm == max(recalls["mean"], key=recalls["mean"].get)
    seen = {"mean": {"raw": 0.1, "final": 0.2}}
    monkeypatch.setattr(Fitter, "compare_norms", lambda *_: seen)
    assert Fitter(options(tmp_path, pictures, agg="mean", labels=None)).fit().token_norm == "final"
    assert Fitter(options(tmp_path, pictures, agg="mean", labels=None, token_norm="raw")).fit().token_norm == "raw"
    known = NormChoice("raw", 2, 1, "published")
    monkeypatch.setattr("mimexport.fitting.fitter.known_norm", lambda *_: known)
    assert Fitter(options(tmp_path, pictures, agg="mean", labels=None)).fit().token_norm == "raw"


@pytest.mark.parametrize("keep", [{}, {"keep": "75%@0,50%@1", "keep_by": "norm"}, {"keep": "50%"}], ids=str)
def test_stored_tokens_pool_to_what_the_network_gives(tmp_path, pictures, keep):
    fitter = Fitter(options(tmp_path, pictures, **keep))
    tokens = fitter.tokens(pictures[0][:4], "four", "training")
    pixels = np.stack([show(image, 0, WHOLE, 0, preprocess_of(fitter.loaded.config)) for image in pictures[0][:4]])
    encoded = fitter.backbone.encode(fitter.backbone.patchify((torch.from_numpy(pixels).float() / 255 - 0.5) / 0.5))
    for agg in ("mean", "cls", "topk", "attn-mean", "cls+mean", "center-weighted"):
        for final in (False, True):
            aggregator = make_aggregator(agg, fitter.backbone.shape, {})
            with torch.no_grad():
                norm = fitter.backbone.norm if final else None
                features = ComputedFeatures(fitter.backbone, encoded.tokens, norm, encoded.kept)
                expected = aggregator(features).vector
            got = pool(aggregator, tokens, fitter.backbone, final=final)
            torch.testing.assert_close(got, expected, atol=4e-3, rtol=4e-3)


def test_fewer_patches_are_compared_by_what_a_build_with_them_would_give(tmp_path, pictures):
    """Vectors of the graph's own network, of the same two views, with the head's scorer and whitening."""
    fitter = Fitter(options(tmp_path, pictures, labels=None, agg="topk", agg_options={"score": "norm", "k": "50%"}))
    head = fitter.fit()
    whole, some = compare_on_views(fitter, head, ["75%@0,50%@1"])
    count = compared_images(fitter)
    assert count == 50
    assert (whole.keep, whole.operations, whole.neighbours) == ("100%", 1, 1)
    views = [
        np.stack([show(pictures[0][i], i, view, 0, preprocess_of(fitter.loaded.config)) for i in range(count)])
        for view in (0, 1)
    ]
    expected = None
    for choice, backbone in ((whole, fitter.backbone), (some, backbone_keeping(fitter, some.keep))):
        theirs = replace(head, keep=backbone.keep, params={**head.params, "k": backbone.shape.patches // 2})
        asked = BuildOptions(model="small", agg="topk", out=tmp_path, random_seed=0, head=theirs, whiten=0)
        network, _ = compose(load_model("small", random_seed=0), asked)
        vectors = [torch.from_numpy(embed_with_torch(network, view)) for view in views]
        expected = vectors[0].numpy() if expected is None else expected
        assert choice.recall == pytest.approx(two_view_recall(*vectors), abs=1.1 / count)  # stored in half precision
        assert choice.neighbours == pytest.approx(neighbour_overlap(vectors[0].numpy(), expected), abs=0.01)
    assert 0 < some.neighbours < 1
    assert some.operations < 0.75


def test_a_head_fits_encoders_that_keep_what_it_was_fitted_on(tmp_path, pictures):
    keep = {"keep": "75%@0,50%@1", "keep_by": "norm"}
    fitter = Fitter(options(tmp_path, pictures, **keep))
    save_head(fitter.fit(), tmp_path / "h.safetensors")
    head = load_head(tmp_path / "h.safetensors")
    assert str(head.keep) == "12 before block 0, 8 before block 1, by norm"

    def composed(**keep):
        loaded = load_model("small", random_seed=0)
        asked = BuildOptions(model="small", agg="abmilp", out=tmp_path, head=head, whiten=0, random_seed=0, **keep)
        return compose(loaded, asked)[0]

    pixels = np.stack([show(image, 0, WHOLE, 0, preprocess_of(fitter.loaded.config)) for image in pictures[0][:4]])
    expected = fitter.vectors(head, fitter.tokens(pictures[0][:4], "four", "training"), whitened=True)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for asked in ({}, {"keep": keep["keep"]}, keep):  # what is not given the head says
        assert ((embed_with_torch(composed(**asked), pixels) * expected).sum(1) > 0.999).all()
    for other in ({"keep": "75%"}, {"keep": keep["keep"], "keep_by": "center"}, {"keep": "100%"}):
        with pytest.raises(HeadError, match="fitted on 12 before block 0, 8 before block 1, by norm; --keep asks for"):
            composed(**other)
    head = replace(head, keep=None)
    with pytest.raises(HeadError, match="fitted on all patches"):
        composed(**keep)


def test_a_run_that_was_killed_continues_where_it_stopped(tmp_path, pictures, monkeypatch):
    whole = Fitter(options(tmp_path, pictures, cache=tmp_path / "whole")).tokens(pictures[0], "d", "training")
    seen = []
    right = token_module.show

    def dying(source, index, *rest):
        if index == 100:
            raise KeyboardInterrupt
        return right(source, index, *rest)

    monkeypatch.setattr(token_module, "show", dying)
    with pytest.raises(KeyboardInterrupt):
        Fitter(options(tmp_path, pictures)).tokens(pictures[0], "d", "training")
    monkeypatch.setattr(
        token_module, "show", lambda source, index, *rest: seen.append(index) or right(source, index, *rest)
    )
    again = Fitter(options(tmp_path, pictures)).tokens(pictures[0], "d", "training")
    assert 64 <= min(seen) <= 100
    np.testing.assert_array_equal(again.patches, whole.patches)
    seen.clear()
    Fitter(options(tmp_path, pictures)).tokens(pictures[0], "d", "training")
    assert seen == []


def test_tokens_of_another_architecture_or_of_other_code_are_not_taken(tmp_path, pictures, monkeypatch):
    def folders():
        return {path.parent.name for path in tmp_path.glob("**/chunks.json")}

    def compute():
        Fitter(options(tmp_path, pictures)).tokens(pictures[0][:4], "d", "training")

    compute()
    first = folders()
    compute()
    assert folders() == first
    other = replace(ALIASES["small"], timm_name="vit_tiny_patch16_384")  # the same tensors by name and shape
    with monkeypatch.context() as patched:
        patched.setitem(ALIASES, "small", other)
        compute()
    assert len(folders()) == 2
    monkeypatch.setattr(token_module, "code_digest", lambda **_: "another")
    compute()
    assert len(folders()) == 3


def full_at(path, size):
    """Put a disk under `path` that takes `size` bytes; what is written beyond is refused, what is mapped beyond kills."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")


def test_a_full_disk_is_one_line_and_what_was_computed_is_kept(tmp_path, pictures, monkeypatch):
    cache = tmp_path / "small"
    full_at(cache, 160 * 1024)
    try:
        with pytest.raises(OutputError, match=r"160 rows need 0.3 MB more in .*; make room or choose another --cache"):
            Fitter(options(tmp_path, pictures, cache=cache)).tokens(pictures[0], "d", "training")
        monkeypatch.setattr(StoredRows, "require_room", lambda *_: None)  # something else fills it meanwhile
        with pytest.raises(OutputError, match="No space left on device; what was computed is kept"):
            Fitter(options(tmp_path, pictures, cache=cache)).tokens(pictures[0], "d", "training")
        subprocess.run(["mount", "-o", "remount,size=4m", cache], check=True)
        seen, right = [], token_module.show
        monkeypatch.setattr(
            token_module, "show", lambda source, index, *rest: seen.append(index) or right(source, index, *rest)
        )
        again = Fitter(options(tmp_path, pictures, cache=cache)).tokens(pictures[0], "d", "training")
        assert 64 <= min(seen) < 100
        whole = Fitter(options(tmp_path, pictures, cache=tmp_path / "whole")).tokens(pictures[0], "d", "training")
        np.testing.assert_array_equal(again.patches, whole.patches)
    finally:
        subprocess.run(["umount", "--lazy", cache], check=True)


def test_damaged_tokens_are_computed_again(tmp_path, pictures):
    said = []
    whole = Fitter(options(tmp_path, pictures)).tokens(pictures[0], "d", "training")
    patches, energy = np.array(whole.patches), np.array(whole.energy)
    file = next(tmp_path.glob("**/rows.bin"))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    again = Fitter(options(tmp_path, pictures), said.append).tokens(pictures[0], "d", "training")
    assert 64 <= int(re.search(r"damaged after row (\d+)", " ".join(said)).group(1)) <= 80
    np.testing.assert_array_equal(again.patches, patches)
    np.testing.assert_array_equal(again.energy, energy)


def test_random_views_repeat_for_a_seed_and_differ_between_views(pictures):
    image = pictures[0][0]
    first, again, other = (show(image, 0, view, 0, PREPROCESS) for view in (0, 0, 1))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_two_view_recall_is_one_for_equal_views_and_chance_for_strangers():
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    assert two_view_recall(x, x) == 1
    assert two_view_recall(x, torch.randn(200, 16, generator=torch.Generator().manual_seed(1))) < 0.05


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": np.zeros(160, int)}, FitError, "at least 2 classes, the data has 1"),
        ({"images": []}, FitError, "found 0 images, at least 2"),
        ({"agg": "ep", "labels": None}, OptionError, "ep is learned with labels; --unlabelled fits only abmilp, topk"),
        (
            {"agg": "topk", "labels": None, "token_norm": "final"},
            OptionError,
            "learning without labels needs raw tokens",
        ),
    ],
)
def test_what_cannot_be_fitted_is_one_line(tmp_path, pictures, changes, error, message):
    with pytest.raises(error, match=message):
        Fitter(options(tmp_path, pictures, **changes)).fit()


def test_too_few_images_for_views_are_refused(tmp_path, pictures):
    few = (pictures[0][:40], None)
    with pytest.raises(FitError, match="at least 64 images, got 40"):
        Fitter(options(tmp_path, few, labels=None)).fit()


def test_an_image_that_cannot_be_read_is_named(tmp_path, pictures):
    broken = ([*pictures[0][:3], b"not an image"], np.array([0, 1, 0, 1]))
    with pytest.raises(ImageError, match=r"not an image|cannot be read|unknown"):
        Fitter(options(tmp_path, broken)).fit()


def test_torch_computes_alone_in_every_thread_and_has_its_threads_back_afterwards(tmp_path, pictures, monkeypatch):
    computed, seen = TokenStore._run, set()

    def watched(self, pixels):
        seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return computed(self, pixels)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        monkeypatch.setattr(TokenStore, "_run", watched)
        Fitter(options(tmp_path, pictures)).tokens(pictures[0], "all", "training")
        assert seen == {(False, 1)}
        assert torch.get_num_threads() == 3
        monkeypatch.setattr(StoredRows, "append", lambda *_: (_ for _ in ()).throw(OutputError("full")))
        with pytest.raises(OutputError, match="full") as caught:
            Fitter(options(tmp_path, pictures)).tokens(pictures[0], "again", "training")
        assert torch.get_num_threads() == 3, caught  # whose traceback keeps what was not closed
    finally:
        torch.set_num_threads(before)


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_threads_sleep()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    let_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


def test_nan_in_the_tokens_is_one_line(tmp_path, pictures, monkeypatch):
    computed = TokenStore._run

    def broken(self, pixels):
        rows = computed(self, pixels)
        rows["patches"][3, 2, 1] = np.nan
        return rows

    monkeypatch.setattr(TokenStore, "_run", broken)
    with pytest.raises(FitError, match="NaN or infinite"):
        Fitter(options(tmp_path, pictures)).fit()


@pytest.mark.parametrize(
    ("ranking", "k", "reason"),
    [
        ([("learned", 48, 0.9), ("norm", 32, 0.8)], None, r"learned, k 48 \(90\.0 % ± 1\.3\): the best"),
        ([("norm", 32, 0.91), ("learned", 48, 0.90)], None, r"learned, k 48 .* within the interval of the best, norm"),
        ([("norm", 32, 0.95), ("learned", 48, 0.90)], None, r"learned, k 48.*norm, k 32 .* is better by more .*--k 32"),
        ([("norm", 32, 0.95), ("learned", 48, 0.90)], "16", r"learned, k 16: as asked for; the best here is norm, k 32"),
        ([("learned", 64, 0.95), ("learned", 48, 0.949)], None, r"learned, k 48 .* within .* best, learned, k 64"),
    ],
)  # fmt: skip
def test_a_choice_says_why_it_was_made(ranking, k, reason):
    candidates = [Candidate(score, kept, recall, 2000) for score, kept, recall in ranking]
    assert re.match(reason, explain_choice(candidates, best_learned(candidates, 64), k))


def test_the_time_left_is_told_from_the_pace_so_far(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr("mimeval.cli.progress.time.monotonic", lambda: clock[0])
    shown = ConsoleProgress()
    for done, clock[0] in ((100, 100.0), (300, 120.0), (600, 150.0)):
        shown.progress("scorer", done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["  scorer: 300 of 1,000, 1 min 10 s left", "  scorer: 600 of 1,000, 40 s left"]


def test_pooling_together_gives_what_pooling_one_by_one_gives(tmp_path, pictures):
    fitter = Fitter(options(tmp_path, pictures, agg="mean"))
    tokens = fitter.tokens(pictures[0], "all", "training")
    kinds = [make_aggregator("topk", fitter.backbone.shape, {"k": share}) for share in ("25%", "75%")]
    for one, together in zip(kinds, pool_all(kinds, tokens, fitter.backbone), strict=True):
        assert torch.equal(pool(one, tokens, fitter.backbone, final=False), together)
