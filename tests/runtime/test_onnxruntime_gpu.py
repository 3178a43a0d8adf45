"""On a card: ONNX Runtime's CUDA provider gives the vectors of torch, is tuned, measured and served, and never falls back."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mimruntime.artifact import Artifact
from mimruntime.cli.bench import bench_command
from mimruntime.embedder import Embedder
from mimruntime.engines import onnxruntime as wrapped
from mimruntime.engines import tuning
from mimruntime.engines.compilation import compile_artifact
from mimruntime.engines.compiled import choose_compiled
from mimruntime.engines.gpu_name import NO_GPU, gpu_name
from mimruntime.engines.opening import open_for
from mimruntime.engines.options import CompileOptions
from mimruntime.errors import EngineError
from mimruntime.verification import verify

pytestmark = pytest.mark.gpu
CUDA = CompileOptions(engine="onnxruntime", provider="cuda")


@pytest.fixture(scope="module", autouse=True)
def card() -> str:
    if (name := gpu_name()) == NO_GPU:
        pytest.skip("no GPU")
    if wrapped.PROVIDERS["cuda"] not in wrapped._library().get_available_providers():
        pytest.skip("onnxruntime was built without CUDA: pip install onnxruntime-gpu")
    return name


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_LEAST_SECONDS", 0.0)


@pytest.fixture
def compiled(quick: None, toy_copy: Path) -> Path:
    compile_artifact(toy_copy, CUDA)
    return toy_copy


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_the_card_gives_the_vectors_of_torch(toy_artifact: Path) -> None:
    checked = verify(toy_artifact, engine="onnxruntime", provider="cuda")
    assert checked.provider == "cuda"
    assert checked.parity.worst_cosine > 0.99999
    assert checked.parity.deterministic


@pytest.mark.parametrize("count", [1, 3, 8, 33])
def test_every_batch_equals_the_cpu(toy_artifact: Path, count: int) -> None:
    artifact = Artifact.open(toy_artifact)
    with (
        open_for(artifact, "onnxruntime", provider="cuda") as gpu,
        open_for(artifact, "onnxruntime", provider="cpu") as cpu,
    ):
        ours, theirs = gpu.run(images(count)), cpu.run(images(count))
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-4)


def test_what_was_compiled_for_the_card_is_taken_and_has_batches_of_a_card(compiled: Path, card: str) -> None:
    artifact = Artifact.open(compiled)
    chosen = choose_compiled(artifact, wrapped)
    assert card in chosen.record.hardware
    assert {trial.batch for trial in chosen.record.trials} == set(wrapped._GPU_BATCHES)
    with Embedder.open(compiled) as embedder:  # "auto"
        assert embedder.describe().provider == "cuda"


def test_a_benchmark_on_the_card_has_no_share_of_the_cpus_rate(compiled: Path, tmp_path: Path) -> None:
    arguments = [compiled, "--engine", "onnxruntime", "--provider", "cuda", "--batches", "1,2", "--seconds", 0]
    arguments += ["--json", tmp_path / "b.json"]
    done = CliRunner().invoke(bench_command(), list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (runner,) = json.loads((tmp_path / "b.json").read_text())["runners"]
    assert " on cuda" in runner["what"]
    assert runner["share"] is None


def test_tensorrt_that_is_not_installed_is_an_error_not_cuda(toy_artifact: Path) -> None:
    try:
        __import__("tensorrt")
    except ImportError:
        with pytest.raises(EngineError, match=r"provider 'tensorrt' was requested.*fell back to 'cuda'.*TensorRT 10"):
            open_for(Artifact.open(toy_artifact), "onnxruntime", provider="tensorrt")
    else:
        pytest.skip("TensorRT is installed")


def test_pixels_on_the_card_give_the_vectors_of_pixels_on_the_host(toy_artifact: Path) -> None:
    import onnxruntime as ort

    pixels = images(5)
    with open_for(Artifact.open(toy_artifact), "onnxruntime", provider="cuda") as engine:
        there = ort.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0)
        on_device, from_host = engine.run_on_device(there.data_ptr(), len(pixels)), engine.run(pixels)
    assert on_device.keys() == from_host.keys()
    for name, array in from_host.items():
        np.testing.assert_array_equal(on_device[name], array)


def test_runs_at_the_same_time_give_the_vectors_of_runs_in_turn(toy_artifact: Path) -> None:
    batches = [images(count) for count in (32, 31, 30, 29) * 5]
    with open_for(Artifact.open(toy_artifact), "onnxruntime", provider="cuda") as engine:
        in_turn = [engine.run(batch)["embedding"] for batch in batches]
        with ThreadPoolExecutor(engine.parallel_runs) as pool:
            at_once = list(pool.map(lambda batch: engine.run(batch)["embedding"], batches))
    assert engine.parallel_runs > 1
    for ours, theirs in zip(at_once, in_turn, strict=True):
        np.testing.assert_array_equal(ours, theirs)
