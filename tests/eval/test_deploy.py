"""What runs here is opened, what does not is listed, and features of another compiled engine are other features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import mimruntime
from mimeval.deployments import Deployment, SkippedDeployment, code_digest, deploy, parse_engines
from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder
from mimruntime.engines import ENGINES, onnxruntime
from mimruntime.errors import OptionError


@pytest.fixture
def small_plan(monkeypatch):
    """Make ONNX Runtime run so many images at most, as a plan that was compiled for few does."""
    monkeypatch.setattr("mimeval.deployments.ENGINES", {"onnxruntime": ENGINES["onnxruntime"]})
    original = onnxruntime.open_engine

    def small_plan(largest: int, best: int | None) -> None:
        def limited(graph: Path, **options):
            engine = original(graph, **options)
            engine.largest_batch, engine.best_batch = largest, best
            return engine

        monkeypatch.setattr(onnxruntime, "open_engine", limited)

    return small_plan


def no_references(artifacts, *, narrow=False):
    pytest.fail("torch was not asked for")


def test_torch_in_the_precision_of_the_graph_is_a_deployment(toy_copy) -> None:
    artifact = Artifact.open(toy_copy)
    manifest = msgspec.structs.replace(
        artifact.manifest, graph=msgspec.structs.replace(artifact.manifest.graph, precision="bf16")
    )
    artifact = replace(artifact, manifest=manifest)
    asked = []

    def references(artifacts, *, narrow=False):
        asked.append(narrow)
        engine = onnxruntime.open_engine(artifacts[0].graph, provider=None, threads=None)
        engine.name, engine.precision = "torch", "bf16"
        return [engine]

    opened = list(deploy([artifact], parse_engines(["torch:bf16"]), [], references))
    assert [one.name for one in opened] == ["torch bf16"]
    assert opened[0].precision == "bf16"
    assert asked == [True]


@pytest.mark.parametrize("text", ["torch", "torch:fp32", "torch:int8"])
def test_torch_in_another_precision_is_refused_with_what_it_has(text) -> None:
    with pytest.raises(OptionError, match=f"--engine {text}: .* expected torch:bf16 or torch:fp16"):
        parse_engines([text])


def test_a_plan_of_few_images_is_run_with_its_own_batches(toy_artifact, small_plan) -> None:
    small_plan(4, 4)
    artifact = Artifact.open(toy_artifact)
    sizes = [
        opened.embedder.describe().batch_sizes
        for opened in deploy([artifact], parse_engines(["all"]), [], no_references)
    ]
    assert sizes == [(4, 2, 1)]


def test_a_plan_that_names_no_batch_it_can_run_is_listed(toy_artifact, small_plan) -> None:
    small_plan(4, None)
    skipped: list[SkippedDeployment] = []
    assert not list(deploy([Artifact.open(toy_artifact)], parse_engines(["all"]), skipped, no_references))
    assert [skip.kind for skip in skipped] == ["refused"]
    assert "runs 4 images at most" in skipped[0].reason


def test_another_compiled_engine_has_another_identity(toy_copy) -> None:
    record = toy_copy / "engines" / "onnxruntime-0123" / "engine.json"
    record.parent.mkdir(parents=True)
    artifact = Artifact.open(toy_copy)
    with Embedder.open(toy_copy, engine="onnxruntime") as embedder:
        deployment = Deployment(artifact, embedder, "onnxruntime fp32")
        found = [deployment.identity]
        embedder._engine.compiled = record.parent.name
        for content in ("one", "other"):
            record.write_text(content)
            found.append(deployment.identity)
    assert len(set(found)) == 3


@pytest.mark.parametrize(("graph", "engine"), [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", None)])
def test_the_narrower_precision_of_graph_and_engine_counts(toy_artifact, graph, engine) -> None:
    with Embedder.open(toy_artifact, engine="onnxruntime") as embedder:
        artifact = embedder.artifact
        manifest = msgspec.structs.replace(
            artifact.manifest, graph=msgspec.structs.replace(artifact.manifest.graph, precision=graph)
        )
        embedder._artifact = replace(artifact, manifest=manifest)
        embedder._engine.precision = engine
        assert Deployment(embedder.artifact, embedder, "any").precision == "bf16"


@pytest.mark.parametrize("part", ["code_digest", "describe_cpu"])
def test_other_code_or_another_cpu_is_another_identity(toy_artifact, monkeypatch, part) -> None:
    with Embedder.open(toy_artifact, engine="onnxruntime") as embedder:
        deployment = Deployment(embedder.artifact, embedder, "onnxruntime fp32")
        before = deployment.identity
        monkeypatch.setattr(f"mimeval.deployments.{part}", lambda: "another")
        assert deployment.identity != before


def test_another_preprocessing_is_another_identity(toy_artifact) -> None:
    with Embedder.open(toy_artifact, engine="onnxruntime") as embedder:
        artifact = embedder.artifact
        manifest = msgspec.structs.replace(
            artifact.manifest,
            preprocess=msgspec.structs.replace(artifact.manifest.preprocess, interpolation="bilinear"),
        )
        same, other = (Deployment(one, embedder, "any") for one in (artifact, replace(artifact, manifest=manifest)))
        assert other.identity != same.identity


@pytest.mark.parametrize(
    "name",
    [
        "decode.py",
        "decoding/jpeg.py",
        "preparation.py",
        "preprocess.py",
        "embedder.py",
        "batching.py",
        "engines/base.py",
    ],
)
def test_code_between_an_image_and_its_vector_is_in_the_digest(tmp_path, monkeypatch, name) -> None:
    copy = Path(shutil.copytree(Path(mimruntime.__file__).parent, tmp_path / "mimruntime"))
    monkeypatch.setattr(mimruntime, "__file__", str(copy / "__init__.py"))
    before = code_digest.__wrapped__()  # uncached
    with (copy / name).open("a") as stream:
        stream.write("# changed")
    assert code_digest.__wrapped__() != before
