"""On a card: plans open, give the vectors of torch, run as CUDA graphs, give memory back, and keep kernel timings."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from mimruntime.artifact import Artifact
from mimruntime.engines.compilation import compile_artifact
from mimruntime.engines.opening import open_for
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import BatchProfile
from mimruntime.engines.trt import cuda
from mimruntime.engines.trt.flavour import TENSORRT, TENSORRT_RTX
from mimruntime.errors import MimError
from mimruntime.verification import verify

pytestmark = pytest.mark.gpu
BATCH = BatchProfile(least=1, best=4, most=8)


@pytest.fixture(scope="module")
def card():
    try:
        return cuda.probe("this test", "tensorrt-rtx")
    except MimError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=[TENSORRT, TENSORRT_RTX], ids=lambda flavour: flavour.name)
def flavour(request, card):
    chosen = request.param
    if card.arch in chosen.refused:
        pytest.skip(f"{card}: {chosen.refused[card.arch]}")
    pytest.importorskip(chosen.module, reason=f"pip install 'mimexport[{chosen.name}]'")
    return chosen


@pytest.fixture(scope="module")
def artifact(flavour, toy_artifact, tmp_path_factory):
    """The toy artifact, compiled for this card by this library."""
    folder = Path(shutil.copytree(toy_artifact, tmp_path_factory.mktemp(flavour.name) / "toy"))
    compile_artifact(folder, CompileOptions(engine=flavour.name, batch=BATCH))
    return folder


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_a_plan_gives_the_vectors_of_torch_on_the_card(artifact, flavour):
    parity = verify(artifact, engine=flavour.name).parity
    assert parity.worst_cosine > 0.99999
    assert parity.deterministic


@pytest.mark.parametrize("count", [1, 3, 4, 7, 8])
def test_every_batch_equals_onnx_runtime(artifact, flavour, count):
    opened = Artifact.open(artifact)
    with open_for(opened, flavour.name) as engine, open_for(opened, "onnxruntime") as reference:
        ours, theirs = engine.run(images(count)), reference.run(images(count))
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-4)


def test_a_batch_size_is_captured_once_and_its_launches_agree(artifact, flavour):
    with open_for(Artifact.open(artifact), flavour.name) as engine:
        first = engine.run(images(4))["embedding"]
        captured = engine._executor._buckets[4].graph
        assert captured is not None
        engine.run(images(8))
        np.testing.assert_array_equal(engine.run(images(4))["embedding"], first)
        assert engine._executor._buckets[4].graph is captured


def test_closing_gives_the_memory_of_the_card_back(artifact, flavour):
    runtime = importlib.import_module("cuda.bindings.runtime")

    def used():
        _, free, total = runtime.cudaMemGetInfo()
        return total - free

    def open_run_close():
        with open_for(Artifact.open(artifact), flavour.name) as engine:
            engine.run(images(8))

    open_run_close()
    before = used()
    for _ in range(5):
        open_run_close()
    assert used() - before < 32 << 20


def test_a_timing_cache_is_written_and_read(artifact, flavour, tmp_path):
    if flavour.name != "tensorrt":
        pytest.skip("tensorrt-rtx times nothing while it builds")
    options = CompileOptions(engine="tensorrt", batch=BATCH, timing_cache=tmp_path / "timings")
    compile_artifact(artifact, options)
    written = (tmp_path / "timings").read_bytes()
    assert written
    compile_artifact(artifact, options)
    (tmp_path / "timings").write_bytes(b"of another version")
    with pytest.raises(MimError, match="--timing-cache"):
        compile_artifact(artifact, options)
