"""A build ends in a whole artifact or in none, and the artifact says what it is."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import skimage

from mimexport import pipeline as building
from mimexport.aliases import ALIASES, Alias
from mimexport.pipeline import BuildOptions, build, preprocess_of
from mimruntime import Embedder, MimError, parity
from mimruntime.artifact import Artifact
from mimruntime.errors import MissingExtraError, OptionError, OutputError, ParityError, UnknownNameError
from mimruntime.verification import verify

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def small_alias(monkeypatch):
    monkeypatch.setitem(ALIASES, "small", Alias("vit_tiny_patch16_224", 32, 8, 16, 48, "mit", kwargs=SMALL))


def options(out, **changes):
    return BuildOptions(**{"model": "small", "agg": "topk", "out": out, "random_seed": 0, "force": True} | changes)


@pytest.fixture(scope="module")
def tiny_artifact(tmp_path_factory):
    """The embedded backbone with its default aggregator, built once."""
    return build(
        BuildOptions(model="mae-tiny", agg="topk", out=tmp_path_factory.mktemp("b") / "tiny", with_selection=True)
    )


def test_the_artifact_embeds_photographs_alike_to_torch(tiny_artifact):
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    with Embedder.open(tiny_artifact.path) as embedder:
        vectors, shares = embedder.embed(photos), embedder.select(photos)
        pixels = np.stack([embedder.prepare(photo) for photo in photos])
    loaded = building.load_model("mae-tiny")
    model, _ = building.compose(loaded, options(tiny_artifact.path, model="mae-tiny", random_seed=None))
    expected = building.embed_with_torch(model, pixels)
    np.testing.assert_allclose((vectors * expected).sum(1), 1, atol=1e-5)
    assert shares.shape == (3, 8, 8)
    np.testing.assert_allclose(np.unique(shares), [0, 1 / 48], rtol=1e-6)
    assert np.abs(vectors @ vectors.T - np.eye(3)).max() < 0.98  # three photographs are three vectors


def test_the_manifest_says_what_was_built(tiny_artifact):
    m = tiny_artifact.manifest
    assert (m.backbone.model, m.backbone.source, m.backbone.license) == ("mae-tiny", "embedded", "research-only")
    assert (m.backbone.patch, m.backbone.grid, m.backbone.prefix_tokens) == (8, (8, 8), 1)
    assert m.aggregator.params == {"k": 48, "score": "center-norm"}
    assert (m.aggregator.token_norm, m.graph.last_block, m.embedding.dim) == ("raw", "reduced", 192)
    assert (m.preprocess.size, m.preprocess.resize, m.preprocess.mode) == (64, 64, "shortest")
    assert {"torch", "timm", "onnx", "onnxruntime", "mimexport"} <= m.versions.keys()
    assert set(m.files) == {"README.md", "model.onnx", "preprocessor_config.json", "reference.npz"}
    assert m.parity.worst_cosine >= 0.99999
    assert "mae-tiny" in (tiny_artifact.path / "README.md").read_text()


def test_what_is_deployed_can_be_verified_without_torch(tiny_artifact):
    assert verify(tiny_artifact.path).parity.worst_cosine >= 0.99999


def test_the_preprocessor_file_is_read_by_other_tools_as_resize_and_crop_only(tiny_artifact):
    config = json.loads((tiny_artifact.path / "preprocessor_config.json").read_text())
    assert (config["size"], config["crop_size"]) == ({"shortest_edge": 64}, {"height": 64, "width": 64})
    assert not config["do_normalize"]
    assert not config["do_rescale"]


def test_the_space_follows_what_changes_a_vector_and_nothing_else(tmp_path):
    def space(**changes):
        return build(options(tmp_path / "a", **changes)).manifest.embedding_space

    first = space()
    assert first == space(precision="fp16", with_selection=True)
    others = [space(random_seed=1), space(agg_options={"k": "3"}), space(token_norm="final"), space(size=48)]
    assert len({first, *others}) == 1 + len(others)


def test_random_weights_are_recorded_in_manifest_and_card(tmp_path):
    artifact = build(options(tmp_path / "a"))
    assert (artifact.manifest.backbone.source, artifact.manifest.backbone.origin) == ("random", "seed 0")
    assert "weights are random" in (artifact.path / "README.md").read_text()


def test_a_second_build_replaces_the_first_and_leaves_nothing_beside_it(tmp_path):
    build(options(tmp_path / "a", agg="mean"))
    build(options(tmp_path / "a", agg="cls"))
    assert Artifact.open(tmp_path / "a").manifest.aggregator.name == "cls"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"agg": "topkk"}, UnknownNameError, "unknown aggregator 'topkk'; did you mean topk"),
        ({"model": "vit_smoll"}, UnknownNameError, "unknown model 'vit_smoll'"),
        ({"agg_options": {"k": "17"}}, OptionError, "--k 17: expected a count from 1 to 16"),
        ({"agg_options": {"k": "0"}}, OptionError, "--k 0: expected"),
        (
            {"agg": "max", "with_selection": True},
            OptionError,
            "--with-selection: aggregator max gives patches no share",
        ),
        ({"model": "resnet18"}, OptionError, "ResNet is not a supported backbone class"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_the_old_artifact(tmp_path, changes, error, message):
    old = build(options(tmp_path / "a"))
    with pytest.raises(error, match=message) as caught:
        build(options(tmp_path / "a", **changes))
    assert "\n" not in str(caught.value)
    assert Artifact.open(tmp_path / "a").manifest == old.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_graph_that_differs_from_torch_is_not_kept(tmp_path, monkeypatch):
    right = building.embed_with_torch
    monkeypatch.setattr(building, "embed_with_torch", lambda model, images: np.roll(right(model, images), 1, axis=1))
    with pytest.raises(ParityError, match="worst cosine"):
        build(options(tmp_path / "a"))
    assert not any(tmp_path.iterdir())


def test_a_graph_that_depends_on_its_batch_is_not_kept(tmp_path, monkeypatch):
    measured = parity.measure

    def unstable(run, *args, **kwargs):
        return measured(lambda pixels: run(pixels) + np.float32(len(pixels) * 3e-5), *args, **kwargs)

    monkeypatch.setattr(parity, "measure", unstable)
    with pytest.raises(ParityError, match="changes with its batch"):
        build(options(tmp_path / "a"))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_artifact_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists and is not an artifact; it is left alone"):
        build(options(tmp_path / "photos"))
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"


def test_an_artifact_is_replaced_by_force_only(tmp_path):
    build(options(tmp_path / "a", agg="mean"))
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="a exists; replace it with --force, or choose another --out"):
        build(options(tmp_path / "a", model="nothing that is loaded", force=False))
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("precision", "module"), [("fp32", "onnxruntime"), ("bf16", "openvino")])
def test_a_missing_engine_to_compare_in_is_found_out_before_the_work(tmp_path, monkeypatch, precision, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("mimexport.pipeline.load_model", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        build(options(tmp_path / "a", precision=precision))
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_no_folder_that_was_not_there(tmp_path):
    with pytest.raises(UnknownNameError):
        build(options(tmp_path / "artifacts" / "a", model="vit_smoll"))
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    build(options(tmp_path / "a"))
    (tmp_path / "link").symlink_to("a")
    build(options(tmp_path / "link", agg="mean"))
    assert Artifact.open(tmp_path / "a").manifest.aggregator.name == "mean"
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "link"}


def test_a_place_that_cannot_be_written_is_found_out_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        build(options(tmp_path / "file" / "a", model="nothing that is loaded"))


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "write_card", full)
    with pytest.raises(OutputError, match="No space left on device"):
        build(options(tmp_path / "a"))
    assert not any(tmp_path.iterdir())


def test_a_transform_this_project_does_not_have_is_refused():
    config = {"input_size": (3, 224, 224), "crop_mode": "border", "crop_pct": 0.9}
    with pytest.raises(OptionError, match=r"crop mode 'border'"):
        preprocess_of(config)
    with pytest.raises(OptionError, match=r"wants 256×224 px"):
        preprocess_of(config | {"input_size": (3, 224, 256), "crop_mode": "center"})


_KILLED = """
import sys, time
from pathlib import Path
from mimexport.aliases import ALIASES, Alias
from mimexport.pipeline import BuildOptions, build
ALIASES["small"] = Alias("vit_tiny_patch16_224", 32, 8, 16, 48, "mit", kwargs={small})
build(BuildOptions(model="small", agg="topk", out=Path(sys.argv[1]), random_seed=0, force=True))  # warm: later ones are fast
print("ready", flush=True)
while True:
    build(BuildOptions(model="small", agg="mean", out=Path(sys.argv[1]), random_seed=0, force=True))
    build(BuildOptions(model="small", agg="topk", out=Path(sys.argv[1]), random_seed=0, force=True))
"""


def test_a_build_killed_at_any_moment_leaves_the_old_artifact_the_new_one_or_none(tmp_path):
    target = tmp_path / "a"
    script = _KILLED.replace("{small}", repr(SMALL))
    moments = np.random.default_rng(0).uniform(0, 3, 3)
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            time.sleep(moment)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        if target.exists():
            assert Artifact.open(target).manifest.aggregator.name in {"topk", "mean"}
    leftovers = [path.name for path in tmp_path.iterdir() if path != target]
    assert all(re.fullmatch(r"\.a\..*\.(partial|old)", name) for name in leftovers)


@pytest.mark.parametrize("call", ["rename", "write_bytes", "write_card"])
def test_a_build_that_dies_at_a_named_step_leaves_the_old_artifact_or_none(tmp_path, call):
    """As above, with the moment chosen instead of drawn: the process exits without any clean-up."""
    target = tmp_path / "a"
    build(options(target, agg="mean"))
    place = {
        "rename": "pathlib.Path.rename", "write_bytes": "pathlib.Path.write_bytes",
        "write_card": "mimexport.pipeline.write_card",
    }[call]  # fmt: skip
    owner, name = place.rsplit(".", 1)
    script = f"""
import os, pathlib, numpy, mimexport.pipeline, mimexport.graph
from mimexport.pipeline import BuildOptions
from mimexport.aliases import ALIASES, Alias
ALIASES["small"] = Alias("vit_tiny_patch16_224", 32, 8, 16, 48, "mit", kwargs={SMALL!r})
right = {owner}.{name}
def dying(*args, **kwargs):
    right(*args, **kwargs)
    os._exit(9)
{owner}.{name} = dying
mimexport.pipeline.build(BuildOptions(model="small", agg="topk", out=pathlib.Path({str(target)!r}), random_seed=0, force=True))
"""
    died = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert died.returncode == 9
    if target.exists():
        assert Artifact.open(target).manifest.aggregator.name == "mean"
    assert build(options(target)).manifest.aggregator.name == "topk"


def test_every_error_of_a_build_is_a_mim_error():
    assert all(issubclass(kind, MimError) for kind in (OptionError, OutputError, ParityError, UnknownNameError))
