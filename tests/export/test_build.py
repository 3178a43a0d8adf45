"""A build ends in a whole artifact or in none, and the artifact says what it is."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import skimage
from catalogue import built, copied, exported_as
from safetensors.torch import save_file

from mimexport import pipeline as building
from mimexport.aliases import ALIASES
from mimexport.composition import compose
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.preprocessing import preprocess_of
from mimexport.weights import load_model
from mimruntime import Embedder, parity
from mimruntime.artifact import Artifact
from mimruntime.cli.inspect import inspect_command
from mimruntime.errors import MissingExtraError, OptionError, OutputError, ParityError, UnknownNameError
from mimruntime.storage import codec_for, measure_statistics
from mimruntime.verification import verify

pytestmark = pytest.mark.usefixtures("small_alias")


def options(out, **changes):
    return BuildOptions(**{"model": "small", "agg": "topk", "out": out, "random_seed": 0, "force": True} | changes)


@pytest.fixture(scope="module")
def tiny_artifact():
    """The embedded backbone with its default aggregator."""
    return built(model="mae-tiny", agg="topk", with_selection=True)


@pytest.fixture(scope="module")
def small(small_alias):
    """What the options of `options` make."""
    return built(model=small_alias, agg="topk", random_seed=0)


@pytest.fixture
def exported(small, monkeypatch):
    """Takes the place of the exporter, which would write the graph of `small` again."""
    ports = small.manifest.graph.inputs, small.manifest.graph.outputs
    monkeypatch.setattr(
        "mimexport.graph.export_graph", lambda _, stage, size: shutil.copy(small.graph, stage) and ports
    )


@pytest.mark.usefixtures("exported")
def test_real_images_say_how_vectors_are_spread_in_fp32_too(small, tmp_path, calibration_crops):
    artifact = build(options(tmp_path / "a", calibrate=calibration_crops))
    assert artifact.manifest.conversion is None
    assert artifact.manifest.embedding_space == small.manifest.embedding_space
    images = [path for row, path in enumerate(sorted(calibration_crops.iterdir())) if row % 5]
    with Embedder.open(artifact.path) as embedder:
        vectors = embedder.embed(images)
    found, expected = artifact.manifest.statistics, measure_statistics(vectors)
    assert found.images == len(images)
    for ours, theirs in ((found.mean, expected.mean), (found.std, expected.std)):
        assert np.abs(np.frombuffer(ours, "<f4") - np.frombuffer(theirs, "<f4")).max() < 1e-5
    codec = codec_for(artifact.manifest, "int8")
    assert (codec.decode(codec.encode(vectors)) * vectors).sum(axis=1).min() > 0.9999


def test_the_artifact_embeds_photographs_alike_to_torch(tiny_artifact):
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
    with Embedder.open(tiny_artifact.path) as embedder:
        vectors, shares = embedder.embed(photos), embedder.select(photos)
        pixels = np.stack([embedder.prepare(photo) for photo in photos])
    loaded = load_model("mae-tiny")
    model, _ = compose(loaded, options(tiny_artifact.path, model="mae-tiny", random_seed=None))
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


def test_the_space_follows_what_changes_a_vector_and_nothing_else(small, tmp_path):
    def space(**changes):
        with exported_as(small):
            return build(options(tmp_path / "a", **changes)).manifest.embedding_space

    first = space()
    assert first == space(precision="fp16", with_selection=True)
    others = [space(random_seed=1), space(agg_options={"k": "3"}), space(token_norm="final"), space(size=48)]
    assert len({first, *others}) == 1 + len(others)


@pytest.mark.usefixtures("exported")
def test_pixels_and_another_image_size_than_the_checkpoints_are_told_by_card_and_inspect(
    small, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(parity, "measure", lambda *_, **__: small.manifest.parity)
    save_file(load_model("small", random_seed=0).model.state_dict(), tmp_path / "w.safetensors")
    built = build(options(tmp_path / "a", weights=tmp_path / "w.safetensors", random_seed=None, size=48))
    resampled = "its 17 positions were resampled to 37"
    pixels = "mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    card = (built.path / "README.md").read_text()
    assert resampled in card
    assert pixels in card
    inspect_command.main([str(built.path)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("note ") and resampled in line for line in lines)
    assert any(line.startswith("preprocess ") and pixels in line for line in lines)


def test_random_weights_are_recorded_in_manifest_and_card(small):
    assert (small.manifest.backbone.source, small.manifest.backbone.origin) == ("random", "seed 0")
    assert "weights are random" in (small.path / "README.md").read_text()


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
            "--with-selection: aggregator max does not weight patches",
        ),
        ({"model": "resnet18"}, OptionError, "ResNet is not a supported backbone class"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_the_old_artifact(small, tmp_path, changes, error, message):
    old = copied(small, tmp_path / "a")
    with pytest.raises(error, match=message) as caught:
        build(options(tmp_path / "a", **changes))
    assert "\n" not in str(caught.value)
    assert Artifact.open(tmp_path / "a").manifest == old.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.usefixtures("exported")
def test_a_graph_that_differs_from_torch_is_not_kept(tmp_path, monkeypatch):
    right = building.embed_with_torch
    monkeypatch.setattr(building, "embed_with_torch", lambda model, images: np.roll(right(model, images), 1, axis=1))
    with pytest.raises(ParityError, match="worst cosine"):
        build(options(tmp_path / "a"))
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("exported")
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
    with pytest.raises(OutputError, match="exists and is not an artifact, so it is not overwritten"):
        build(options(tmp_path / "photos"))
    assert (tmp_path / "photos" / "a.jpg").read_bytes() == b"mine"


def test_an_artifact_is_replaced_by_force_only(small, tmp_path):
    copied(small, tmp_path / "a")
    before = (tmp_path / "a" / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match=r"a exists; replace it with --force \(in Python: force=True\), or choose"):
        build(options(tmp_path / "a", model="nothing that is loaded", force=False))
    assert (tmp_path / "a" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(("precision", "module"), [("fp32", "onnxruntime"), ("bf16", "openvino")])
def test_a_missing_engine_to_compare_in_is_found_out_before_the_work(tmp_path, monkeypatch, precision, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("mimexport.pipeline.load_any", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        build(options(tmp_path / "a", precision=precision))
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_no_folder_that_was_not_there(tmp_path):
    with pytest.raises(UnknownNameError):
        build(options(tmp_path / "artifacts" / "a", model="vit_smoll"))
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_behind_a_link_is_replaced_and_the_link_stays_with_nothing_beside(small, tmp_path):
    copied(small, tmp_path / "a")
    (tmp_path / "link").symlink_to("a")
    with exported_as(small):
        build(options(tmp_path / "link", agg="mean"))
    assert Artifact.open(tmp_path / "a").manifest.aggregator.name == "mean"
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "link"}


def test_a_place_that_cannot_be_written_is_found_out_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        build(options(tmp_path / "file" / "a", model="nothing that is loaded"))


@pytest.mark.usefixtures("exported")
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mimexport.build_records.write_card", full)
    with pytest.raises(OutputError, match="No space left on device"):
        build(options(tmp_path / "a"))
    assert not any(tmp_path.iterdir())


def test_a_transform_this_project_does_not_have_is_refused():
    config = {"input_size": (3, 224, 224), "crop_mode": "border", "crop_pct": 0.9}
    with pytest.raises(OptionError, match=r"crop mode 'border'"):
        preprocess_of(config)
    with pytest.raises(OptionError, match=r"needs 256×224 px"):
        preprocess_of(config | {"input_size": (3, 224, 256), "crop_mode": "center"})


def test_a_build_that_is_killed_leaves_the_old_artifact_and_nothing_that_stays(small, tmp_path):
    """In the midst of the work; the steps on the disk are those of `staged_folder`, killed one by one where it is tested."""
    target = tmp_path / "a"
    old = copied(small, target).manifest
    script = f"""
import os, pathlib
from mimexport import build_records, graph, options, pipeline
from mimexport.aliases import ALIASES, Alias
ALIASES["small"] = Alias(**{dataclasses.asdict(ALIASES["small"])!r})
graph.export_graph = lambda model, stage, size: (stage / "model.onnx").write_bytes(b"half") and os._exit(9)
pipeline.build(options.BuildOptions(model="small", agg="mean", out=pathlib.Path({str(target)!r}), random_seed=0, force=True))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert Artifact.open(target).manifest == old
    assert len(list(tmp_path.iterdir())) == 2
    with exported_as(small):
        assert build(options(target, agg="mean")).manifest.aggregator.name == "mean"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
