"""An engine runs what was asked for, or says why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from mimruntime.artifact import Artifact
from mimruntime.cpus import available_cpus
from mimruntime.engines import onnxruntime as wrapped
from mimruntime.engines import open_engine
from mimruntime.engines.opening import open_for
from mimruntime.errors import EngineError, MissingExtraError, OptionError, UnknownNameError

pytestmark = pytest.mark.cpu


@pytest.fixture
def graph(toy_artifact: Path) -> Path:
    return toy_artifact / "model.onnx"


def test_a_graph_opens_from_its_path_alone_and_names_what_runs(graph: Path) -> None:
    with open_engine("onnxruntime", graph) as engine:
        assert (engine.name, engine.provider, engine.version) == ("onnxruntime", "cpu", onnxruntime.__version__)
        assert engine.outputs == ("embedding", "selection")
        arrays = engine.run(np.zeros((3, 64, 64, 3), np.uint8) + np.uint8(9))
    assert arrays["embedding"].shape == (3, 16)
    assert arrays["embedding"].dtype == np.float32
    assert arrays["selection"].shape == (3, 8, 8)


def test_auto_is_onnxruntime_where_nothing_is_compiled(toy_artifact: Path) -> None:
    with open_for(Artifact.open(toy_artifact), "auto") as engine:
        assert (engine.name, engine.compiled) == ("onnxruntime", None)


def test_an_unknown_engine_gets_the_nearest_name(graph: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine 'onnxruntim'; did you mean onnxruntime"):
        open_engine("onnxruntim", graph)


def test_an_unknown_provider_gets_the_known_ones(graph: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown provider .*'gpu'; .*cpu"):
        open_engine("onnxruntime", graph, provider="gpu")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_compiled_in_is_refused_with_the_remedy(graph: Path, provider: str) -> None:
    if wrapped.PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip("the gpu package is installed")
    with pytest.raises(
        EngineError,
        match=rf"provider '{provider}' is not part of onnxruntime .* has cpu; .*pip install 'mimexport\[gpu\]'",
    ):
        open_engine("onnxruntime", graph, provider=provider)


@pytest.mark.parametrize(("provider", "hint"), [("cuda", "cuDNN"), ("tensorrt", "TensorRT 10")])
def test_a_session_that_fell_back_is_refused_though_it_would_run(
    graph: Path, monkeypatch: pytest.MonkeyPatch, provider: str, hint: str
) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas.so\nSee\n"))
    cpu_session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(wrapped.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: cpu_session)
    missing = r"Failed to load libcublas\.so"
    with pytest.raises(
        EngineError, match=rf"provider '{provider}' was requested, .* fell back to 'cpu': {missing}; .*{hint}"
    ):
        open_engine("onnxruntime", graph, provider=provider)


def test_the_gpu_chain_begins_with_what_was_asked_and_its_libraries_are_loaded(
    graph: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def session(
        path: str, options: object, providers: list[tuple[str, dict[str, str]]], disabled_optimizers: object
    ) -> SimpleNamespace:
        assert disabled_optimizers is None  # measured on a CPU alone
        seen["providers"] = providers
        port = SimpleNamespace(name="embedding", shape=["B", 4, 4, 3])
        return SimpleNamespace(
            get_providers=lambda: [name for name, _ in providers], get_inputs=lambda: [port], get_outputs=lambda: [port]
        )

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(wrapped.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    (tmp_path / "tensorrt.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    loaded: list[str] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("cuda"))
    with open_engine("onnxruntime", graph, provider="tensorrt") as engine:
        assert engine.provider == "tensorrt"
    assert sys.modules.pop("tensorrt").__file__ == str(tmp_path / "tensorrt.py")
    assert loaded == ["cuda"]
    assert [name for name, _ in seen["providers"]] == [wrapped.PROVIDERS[name] for name in ("tensorrt", "cuda", "cpu")]
    assert dict(seen["providers"])["CUDAExecutionProvider"]["use_tf32"] == "0"


def test_a_missing_library_gives_the_pip_line(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"the engine 'onnxruntime' needs .*pip install 'mimexport\[cpu\]'"):
        open_engine("onnxruntime", graph)


@pytest.mark.parametrize("content", [b"", b"not a graph", bytes(range(256))])
def test_a_file_that_is_no_graph_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError) as caught:
        open_engine("onnxruntime", path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"gone\.onnx: no such graph"):
        open_engine("onnxruntime", tmp_path / "gone.onnx")


def test_a_graph_without_an_embedding_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.UINT8, ["B", 2, 2, 3]) for name in ("pixels", "copy")]
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["copy"])], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="has outputs copy; expected 'embedding'"):
        open_engine("onnxruntime", tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((1, 64, 64, 3), np.float32), np.zeros((1, 63, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)],
)
def test_pixels_of_another_shape_or_type_are_refused_at_the_door(graph: Path, pixels: np.ndarray) -> None:
    with (
        open_engine("onnxruntime", graph) as engine,
        pytest.raises(EngineError, match=r"expected uint8 \(B, 64, 64, 3\)"),
    ):
        engine.run(pixels)


def test_a_closed_engine_says_so(graph: Path) -> None:
    engine = open_engine("onnxruntime", graph)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(np.zeros((1, 64, 64, 3), np.uint8))


def test_fewer_than_one_thread_is_refused(graph: Path) -> None:
    with pytest.raises(OptionError, match="threads must be at least 1, got 0"):
        open_engine("onnxruntime", graph, threads=0)


def test_threads_do_not_change_the_vector(graph: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    results = []
    for threads in (1, 2):
        with open_engine("onnxruntime", graph, threads=threads) as engine:
            results.append(engine.run(pixels)["embedding"])
    assert np.abs(results[0] - results[1]).max() < 1e-6


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("10000 100000", 1), ("max 100000", None), ("", None)]
)
def test_the_quota_of_a_container_limits_the_cpus(tmp_path: Path, quota: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    everything = available_cpus(tmp_path / "no such file")
    assert available_cpus(tmp_path / "cpu.max") == (expected or everything)


def test_a_signal_after_openvino_was_closed_in_another_thread_reaches_its_handler(graph: Path) -> None:
    """The library would free the stack on which the kernel runs handlers of the thread that opened it."""
    work = (
        "import pathlib, signal, sys, threading; from mimruntime.engines import open_engine;"
        " signal.signal(signal.SIGTERM, lambda *_: sys.exit(9));"
        " engine = open_engine('openvino', pathlib.Path(sys.argv[1])); thread = threading.Thread(target=engine.close);"
        " thread.start(); thread.join(); signal.raise_signal(signal.SIGTERM)"
    )
    assert subprocess.run([sys.executable, "-c", work, str(graph)], check=False).returncode == 9


def test_onnx_runtime_sends_no_usage_data_and_writes_nothing_where_there_is_no_home(graph: Path) -> None:
    work = (
        "import pathlib, sys; from mimruntime.engines import onnxruntime;"
        "onnxruntime.open_engine(pathlib.Path(sys.argv[1]), provider=None, threads=1).close()"
    )
    env = {**os.environ, "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    env.pop("ORT_DISABLE_TELEMETRY", None)  # set in this process by now
    done = subprocess.run([sys.executable, "-c", work, graph], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
