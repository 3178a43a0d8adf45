"""The torch reference is the artifact's own model: rebuilt from its manifest, its digests and its vectors checked."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import msgspec
import numpy as np
import pytest
import safetensors.torch
from catalogue import built, exported_as

from mimeval.baselines import other_norm
from mimeval.deployments import reference_identity
from mimeval.models import find_baselines, group_models
from mimexport import references as reference_module
from mimexport.aliases import ALIASES, Alias
from mimexport.backbone import Backbone
from mimexport.errors import HeadError, WeightsError
from mimexport.heads import embedded_heads, load_head, save_head
from mimexport.loading import PixelConfig
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.preprocessing import config_of, preprocess_of
from mimexport.references import References
from mimexport.weights import load_model
from mimruntime.artifact import Artifact, seal
from mimruntime.engines import open_engine
from mimruntime.errors import ArtifactError, EngineError, OptionError
from mimruntime.manifest import Preprocess
from mimruntime.reference import load_reference

pytestmark = pytest.mark.usefixtures("small_alias")


@pytest.fixture(scope="module")
def random_artifact(small_alias) -> Artifact:
    return built(model=small_alias, agg="topk", random_seed=3, with_selection=True)


@pytest.fixture(scope="module")
def learned_artifact() -> Artifact:
    return built(model="mae-tiny", agg="abmilp", head="abmilp-unlabelled", whiten=128)


def build_plain(donor: Artifact, **options) -> Artifact:
    """An artifact with a graph that is none of its own: what is rebuilt from it is held against its vectors alone."""
    with exported_as(donor):
        return build(BuildOptions(**options))


def copy_with(artifact: Artifact, folder, **changes) -> Artifact:
    """A copy of `artifact` whose manifest says something else."""
    folder.mkdir()
    for name in artifact.manifest.files:
        (folder / name).write_bytes((artifact.path / name).read_bytes())
    seal(folder, msgspec.structs.replace(artifact.manifest, **changes))
    return Artifact.open(folder)


@pytest.mark.parametrize("which", ["random_artifact", "learned_artifact"])
def test_it_gives_what_the_graph_gives(which, request) -> None:
    artifact = request.getfixturevalue(which)
    size = artifact.manifest.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    with References().open([artifact])[0] as reference, open_engine("onnxruntime", artifact.graph) as engine:
        assert reference.name == "torch"
        ours, theirs = reference.run(pixels), engine.run(pixels)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, atol=1e-5)


def test_a_head_that_shares_its_tensors_with_another_is_told_apart_by_its_options(learned_artifact, tmp_path) -> None:
    """Those of `abmilp-unlabelled` and of `abmilp-center-unlabelled` are the same; opened, the vectors are compared."""
    twin = build_plain(learned_artifact, model="mae-tiny", agg="abmilp", head="abmilp-unlabelled", out=tmp_path / "a")
    assert References().open([twin])
    prior = {**twin.manifest.aggregator.params, "prior": "center"}
    aggregator = msgspec.structs.replace(twin.manifest.aggregator, params=prior)
    with pytest.raises(ArtifactError, match="rebuilt from its manifest"):
        References().open([copy_with(twin, tmp_path / "copy", aggregator=aggregator)])


def test_models_of_one_backbone_share_its_pass(learned_artifact, random_artifact, monkeypatch) -> None:
    first, second, other = References().open([learned_artifact, learned_artifact, random_artifact])
    images, passes, encode = np.zeros((2, 64, 64, 3), np.uint8), [], Backbone.encode
    monkeypatch.setattr(Backbone, "encode", lambda self, *given: passes.append(self) or encode(self, *given))
    for reference, pixels in ((first, images), (second, images), (other, images[:, :32, :32].copy())):
        reference.run(pixels)
    assert len(passes) == 2
    second.run(images.copy())  # other images for all that can be known
    assert len(passes) == 3


def test_what_they_share_changes_no_vector(random_artifact, tmp_path) -> None:
    common = {"model": "small", "random_seed": 3}
    artifacts = [
        build_plain(random_artifact, agg=agg, token_norm=norm, out=tmp_path / f"{agg}-{norm}", **common)
        for agg, norm in (("mean", "final"), ("gem", "final"), ("gem", "raw"))
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    alone = [References().open([artifact])[0].run(pixels)["embedding"] for artifact in artifacts]
    for order in permutations(range(3)):
        together = References().open([artifacts[index] for index in order])
        for reference, index in zip(together, order, strict=True):
            np.testing.assert_array_equal(reference.run(pixels)["embedding"], alone[index])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_narrowed_it_computes_in_the_precision_of_the_graph(learned_artifact, tmp_path, precision) -> None:
    graph = msgspec.structs.replace(learned_artifact.manifest.graph, precision=precision)
    artifact = copy_with(learned_artifact, tmp_path / "narrow", graph=graph)
    (narrow,), (wide,) = References().open([artifact], narrow=True), References().open([artifact])
    assert (narrow.precision, wide.precision) == (precision, "fp32")
    images, expected = load_reference(artifact)
    rounding = {"fp16": 2**-11, "bf16": 2**-8}[precision]
    loss = 1 - (narrow.run(images)["embedding"] * expected).sum(1).min()
    assert rounding**2 / 10 < loss < 0.02
    np.testing.assert_allclose(wide.run(images)["embedding"], expected, atol=1e-5)


def test_features_that_no_build_vouches_for_are_not_those_of_other_code(random_artifact, monkeypatch) -> None:
    def identities() -> list[str]:
        artifacts = [random_artifact, other_norm(random_artifact)]
        return [reference_identity(*pair) for pair in zip(artifacts, References().open(artifacts), strict=True)]

    before, again = identities(), identities()
    monkeypatch.setattr("mimexport.torch_reference.code_digest", lambda: "another")
    after = identities()
    assert before == again
    assert before[0] == after[0]  # compared with the vectors of its build
    assert before[1] != after[1]


def test_weights_of_another_digest_are_refused(random_artifact, tmp_path) -> None:
    backbone = msgspec.structs.replace(random_artifact.manifest.backbone, origin="seed 4")
    with pytest.raises(WeightsError, match="give the right file with --weights"):
        References().open([copy_with(random_artifact, tmp_path / "copy", backbone=backbone)])


def test_weights_from_a_file_must_be_given(random_artifact, tmp_path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(load_model("small", random_seed=0).model.state_dict(), file)
    artifact = build_plain(random_artifact, model="small", agg="cls", out=tmp_path / "a", weights=file)
    with pytest.raises(WeightsError, match="give --weights FILE"):
        References().open([artifact])
    assert References(weights=file).open([artifact])[0].run(np.zeros((1, 32, 32, 3), np.uint8))["embedding"].shape


def test_a_head_that_is_not_at_hand_is_asked_for(learned_artifact, tmp_path) -> None:
    aggregator = msgspec.structs.replace(learned_artifact.manifest.aggregator, head_sha256="0" * 64)
    with pytest.raises(HeadError, match="give it with --head FILE"):
        References().open([copy_with(learned_artifact, tmp_path / "copy", aggregator=aggregator)])


def test_a_manifest_that_describes_another_model_is_noticed(random_artifact, tmp_path) -> None:
    aggregator = msgspec.structs.replace(random_artifact.manifest.aggregator, token_norm="final")
    with pytest.raises(ArtifactError, match="rebuilt from its manifest"):
        References().open([copy_with(random_artifact, tmp_path / "copy", aggregator=aggregator)])


def test_a_baseline_is_built_once_for_the_same_backbone_and_whitening(learned_artifact, tmp_path) -> None:
    with exported_as(learned_artifact):
        manifest = References().build_baseline(learned_artifact, tmp_path).manifest
    assert manifest.aggregator.name == "cls"
    assert manifest.embedding.whitening is not None
    assert manifest.backbone.weights_sha256 == learned_artifact.manifest.backbone.weights_sha256
    assert References().build_baseline(learned_artifact, tmp_path).manifest.created == manifest.created


def test_a_baseline_reads_images_as_its_artifact_does_also_when_that_is_built_again(random_artifact, tmp_path) -> None:
    for number, pixels in enumerate(
        [
            PixelConfig(),
            PixelConfig(crop_pct=0.9, interpolation="lanczos"),
            PixelConfig(crop_pct=0.37),
            PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.25)),
        ]
    ):
        topk = build_plain(
            random_artifact, model="small", agg="topk", out=tmp_path / str(number), random_seed=3, pixels=pixels
        )
        with exported_as(random_artifact):
            baseline = References().build_baseline(topk, tmp_path / "built")
        assert baseline.manifest.preprocess == topk.manifest.preprocess
        assert [model.baseline for model in group_models([topk], [baseline])] == [None, baseline.manifest.name]


@pytest.mark.parametrize("size", [32, 64, 224, 518])
def test_every_preprocessing_is_restored_from_its_record(size) -> None:
    config = {"input_size": (3, size, size)}
    for resize in range(size, 3 * size):
        record = Preprocess(
            size=size, resize=resize, mode="squash", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
        )
        assert preprocess_of(config | config_of(record)) == record


def test_a_baseline_whitened_by_another_head_lies_elsewhere(learned_artifact, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reference_module, "build", lambda options: options)
    head = load_head(embedded_heads("mae-tiny")["cls"])
    mean, matrix = head.whitening
    save_head(replace(head, whitening=(mean + 1, matrix)), tmp_path / "other.safetensors")
    shipped = References().build_baseline(learned_artifact, tmp_path)
    given = References(heads=(tmp_path / "other.safetensors",)).build_baseline(learned_artifact, tmp_path)
    assert given.head == str(tmp_path / "other.safetensors")
    assert given.out != shipped.out


def test_a_baseline_in_int8_is_asked_for_since_nothing_here_calibrates_it(random_artifact, tmp_path) -> None:
    graph = msgspec.structs.replace(random_artifact.manifest.graph, precision="int8")
    with pytest.raises(OptionError, match=r"pass it with --baseline: mimexport build --model .* --agg cls --precision"):
        References().build_baseline(copy_with(random_artifact, tmp_path / "copy", graph=graph), tmp_path)


def test_it_refuses_other_pixels_and_to_run_closed(random_artifact) -> None:
    reference = References().open([random_artifact])[0]
    with pytest.raises(EngineError, match="expected uint8"):
        reference.run(np.zeros((1, 32, 32, 3), np.float32))
    reference.close()
    with pytest.raises(EngineError, match="closed"):
        reference.run(np.zeros((1, 32, 32, 3), np.uint8))


def test_registers_alone_are_no_cls_and_the_baseline_is_the_mean(random_artifact, tmp_path, monkeypatch) -> None:
    kwargs = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "class_token": False, "reg_tokens": 4}
    alias = Alias("vit_tiny_patch16_224", 0, 0, 0, 0, "mit", kwargs=kwargs | {"global_pool": "avg", "fc_norm": False})
    monkeypatch.setitem(ALIASES, "registers", alias)
    topk = build_plain(random_artifact, model="registers", agg="topk", out=tmp_path / "topk", random_seed=0)
    assert topk.manifest.backbone.prefix_tokens == 4
    assert not topk.manifest.backbone.reads_cls
    with exported_as(random_artifact):
        mean = References().build_baseline(topk, tmp_path / "built")
    assert mean.manifest.aggregator.name == "mean"
    assert find_baselines([topk, mean]) == ([mean], [])
