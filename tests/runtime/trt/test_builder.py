"""Plans are built by the real TensorRT-RTX, with no GPU; what it fails at silently is one exception with its cause."""

from __future__ import annotations

import gc
import subprocess
import sys
import types
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mimruntime.engines.gpu_name import NO_GPU, gpu_name
from mimruntime.engines.record import BatchProfile
from mimruntime.engines.trt import builder
from mimruntime.engines.trt.flavour import TENSORRT, TENSORRT_RTX
from mimruntime.engines.trt.plan import BuildPlan
from mimruntime.errors import EngineError, OutputError

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'mimexport[tensorrt-rtx]'")
without_gpu = pytest.mark.skipif(
    gpu_name() != NO_GPU, reason="says what a machine without a driver answers, and this one has a GPU"
)


def plan(precision="fp32", batch=(1, 4, 8), **options):
    least, best, most = batch
    profile = BatchProfile(least=least, best=best, most=most)
    return BuildPlan(**{"flavour": TENSORRT_RTX, "precision": precision, "batch": profile, **options})


def build(graph, asked=None, progress=lambda *_: None):
    return bytes(builder.build(trt, graph, asked or plan(), progress))


@pytest.fixture(scope="session")
def graph(toy_artifact):
    return toy_artifact / "model.onnx"


@pytest.fixture(scope="session")
def half(graph, tmp_path_factory):
    """The toy graph with its matrix product in half precision."""
    model = onnx.load(graph)
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights).astype(np.float16), "weights"))
    at = next(index for index, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    model.graph.node[at].input[0], model.graph.node[at].output[0] = "narrow", "product"
    model.graph.node.insert(at + 1, helper.make_node("Cast", ["product"], ["linear"], to=TensorProto.FLOAT))
    model.graph.node.insert(at, helper.make_node("Cast", ["patches"], ["narrow"], to=TensorProto.FLOAT16))
    path = tmp_path_factory.mktemp("half") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def quantized(graph, tmp_path_factory):
    """The toy graph, its product one inside a block, as `--precision int8` makes it."""
    from mimexport.quantize import Recipe, quantize_graph

    model = onnx.load(graph)
    inside = "backbone.blocks.0.weights"
    next(tensor for tensor in model.graph.initializer if tensor.name == "weights").name = inside
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}"
        node.input[:] = [inside if name == "weights" else name for name in node.input]
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    onnx.save(model, path)
    images = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), np.uint8)
    quantize_graph(path, images, Recipe(skip_first=0, skip_last=0))
    return path


def test_two_builds_give_plans_of_one_size(graph):
    """Mostly they are equal to the byte; now and then the library chooses another kernel."""
    first, second = (len(build(graph)) for _ in range(2))
    assert second == pytest.approx(first, rel=0.01)


@pytest.mark.parametrize(
    "architectures", [("sm80",), ("sm86", "sm89", "sm120"), ("sm121",), ()], ids=lambda names: "+".join(names) or "any"
)
def test_a_plan_is_built_ahead_of_time_for_any_architecture(graph, architectures):
    assert build(graph, plan(architectures=architectures))[:4] == b"vtrt"


def test_the_graph_without_selection_and_a_fixed_batch_build(toy_without_selection):
    assert build(toy_without_selection / "model.onnx", plan(batch=(3, 3, 3)))


def test_half_precision_and_int8_build_and_are_told_apart(half, quantized):
    assert build(half, plan("fp16"))
    assert build(half, plan("fp16", architectures=("sm75",)))
    assert build(quantized, plan("int8"))
    with pytest.raises(EngineError, match="computes in fp16, but its manifest says fp32; build the artifact again"):
        build(half)
    with pytest.raises(EngineError, match="computes in int8, but its manifest says fp16"):
        build(quantized, plan("fp16"))


@pytest.mark.parametrize("asked", [False, True])
def test_tf32_is_off_unless_it_is_asked_for(graph, monkeypatch, asked):
    real, flags = builder._configure, []

    def configure(*arguments):
        config = real(*arguments)
        flags.append(config.get_flag(trt.BuilderFlag.TF32))
        return config

    monkeypatch.setattr(builder, "_configure", configure)
    assert build(graph, plan(tf32=asked, workspace_gib=0.5))
    assert flags == [asked]


def test_progress_is_told_in_the_callers_thread(graph):
    import threading

    seen = []
    build(graph, progress=lambda phase, done, steps: seen.append((phase, done, steps, threading.current_thread())))
    assert {thread for *_, thread in seen} == {threading.current_thread()}
    assert all(0 <= done <= steps for _, done, steps, _ in seen)
    assert len({phase for phase, *_ in seen}) > 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_exception_of_progress_cancels_the_build(graph, error):
    calls = []

    def progress(phase, done, steps):
        calls.append(phase)
        raise error

    with pytest.raises(error):
        build(graph, progress=progress)
    assert len(calls) == 1


def with_flag(monkeypatch, name):
    real = builder._configure

    def configure(*arguments):
        config = real(*arguments)
        config.set_flag(getattr(trt.BuilderFlag, name))
        return config

    monkeypatch.setattr(builder, "_configure", configure)


@without_gpu
@pytest.mark.parametrize(
    ("flag", "cause"),
    [
        ("REFIT", "CUDA_SUCCESS"),
        ("REFIT_IDENTICAL", "CUDA_SUCCESS"),
        ("STRIP_PLAN", "CUDA_SUCCESS"),
        ("VERSION_COMPATIBLE", "Unable to load library: libnvinfer_lean"),
    ],
)
def test_what_needs_a_driver_fails_with_its_cause_and_nothing_on_the_terminal(graph, monkeypatch, capfd, flag, cause):
    with_flag(monkeypatch, flag)
    with pytest.raises(EngineError, match=f"cannot build .*{cause}") as caught:
        build(graph)
    assert "\n" not in str(caught.value)
    assert "/_src/" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@without_gpu
def test_the_architecture_at_hand_needs_a_gpu(graph):
    with pytest.raises(EngineError, match=r"cannot build .*cudaError 35"):
        build(graph, plan(architectures=("current",)))


def test_an_architecture_that_is_not_taken_is_refused_with_the_first_cause(graph):
    with pytest.raises(EngineError, match=r"does not build for none: .*Compute capability cannot be kNONE"):
        build(graph, plan(architectures=("none",)))


def test_turing_has_no_fp32_product(graph):
    with pytest.raises(
        EngineError, match=r"Turing has no fp32 matrix product in tensorrt-rtx, and .* has 1 \(node_of_"
    ):
        build(graph, plan(architectures=("sm75",)))


def test_a_profile_out_of_order_is_refused(graph):
    with pytest.raises(EngineError, match=r"does not take the batch profile \[\(4, 64.*MIN<=OPT<=MAX"):
        build(graph, plan(batch=(4, 2, 8)))


def test_a_wrong_input_name_shows_at_the_build(graph, monkeypatch):
    def add(made, network, config, *_):
        profile = made.create_optimization_profile()
        profile.set_shape("pixel", *[(1, 64, 64, 3)] * 3)
        config.add_optimization_profile(profile)

    monkeypatch.setattr(builder, "_add_profile", add)
    with pytest.raises(EngineError, match=r"cannot build .*Dynamic input tensor pixels is missing dimensions"):
        build(graph)


def small_graph(path, nodes, opset, shape, inputs=("x",)):
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(np.array([1, 1, 0.5, 0.5], np.float32), "scales")]
    made = helper.make_graph(nodes, "g", ports, out, constants)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def test_an_antialiased_resize_is_refused(tmp_path):
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="cubic", antialias=1)
    path = small_graph(tmp_path / "m.onnx", [node], 18, ["B", 3, 8, 8])
    with pytest.raises(EngineError, match=r"cannot parse .*Antialiasing is not supported"):
        build(path)


def test_an_attention_operator_in_fp32_is_refused(tmp_path):
    # Three tensors: with one for all three, the library (1.7.1) crashes. The export lets no such operator through.
    parts = [helper.make_node(kind, ["x"], [kind]) for kind in ("Relu", "Tanh", "Sigmoid")]
    nodes = [*parts, helper.make_node("Attention", [part.op_type for part in parts], ["y"])]
    path = small_graph(tmp_path / "m.onnx", nodes, 23, ["B", 2, 16, 32])
    with pytest.raises(EngineError, match="not supported by a dedicated kernel"):
        build(path)


def test_pixels_transposed_before_they_are_cast_are_refused(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["y"], to=1),
    ]
    path = small_graph(tmp_path / "m.onnx", nodes, 18, ["B", 8, 8, 3])
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, path)
    with pytest.raises(EngineError, match="first input has type UInt8"):
        build(path)


def test_a_graph_of_two_inputs_is_refused(tmp_path):
    path = small_graph(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], 18, ["B", 4], ("x", "z"))
    with pytest.raises(EngineError, match="the graph has 2 inputs, expected one"):
        build(path)


@pytest.mark.parametrize(("content", "cause"), [(None, "cannot be found"), (b"junk", "Failed to parse the ONNX model")])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content, cause):
    path = tmp_path / "model.onnx"
    if content:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=f"cannot parse {path}: .*{cause}"):
        build(path)


def test_no_garbage_is_collected_while_the_library_may_hold_its_lock(graph, monkeypatch):
    """An old builder that is freed inside the library's log callback waits for ever."""

    class Cycle:
        def __init__(self):
            self.me = self

    seen = []
    left_over = weakref.ref(Cycle())
    real = trt.Builder
    monkeypatch.setattr(trt, "Builder", lambda logger: seen.append((gc.isenabled(), left_over())) or real(logger))
    assert build(graph)
    assert seen == [(False, None)]
    assert gc.isenabled()


def test_what_pybind_raises_is_the_same_exception(graph, monkeypatch):
    monkeypatch.setattr(trt, "OnnxParser", lambda *_: (_ for _ in ()).throw(RuntimeError("odd")))
    with pytest.raises(EngineError, match=r"tensorrt-rtx cannot build .*: odd"):
        build(graph)


SCRIPT = """
import os, signal, sys
from mimruntime.engines.trt import builder
from mimruntime.engines.trt.flavour import TENSORRT_RTX
trt = TENSORRT_RTX.load()
real = builder._configure
def configure(*arguments):
    config = real(*arguments)
    config.set_flag(trt.BuilderFlag.REFIT)
    return config
builder._configure = configure
from mimruntime import cli
from mimruntime.engines import compilation as compile
real_compile = compile.compile_artifact
def progress(phase, done, steps):
    print("phase:", phase, file=sys.stderr)
    if sys.argv[2] == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
compile.compile_artifact = lambda path, options, _: real_compile(path, options, progress)
cli.run(cli.COMMANDS, ["compile", sys.argv[1], "--engine", "tensorrt-rtx"])
"""


@pytest.mark.parametrize(("what", "status"), [pytest.param("fail", 1, marks=without_gpu), ("interrupt", 130)])
def test_ctrl_c_and_failure_leave_nothing_and_progress_still_shows(toy_copy, what, status):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, toy_copy, what], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == status, done.stderr
    assert "phase: Building engine" in done.stderr
    assert "Internal Error" not in done.stderr
    assert done.stderr.count("error:") == (1 if what == "fail" else 0)
    assert not (toy_copy / "engines").exists()


@pytest.fixture
def plain():
    """TensorRT 10 as far as a build can tell: the real objects of RTX, under the other name and version."""
    module = types.ModuleType("tensorrt")
    vars(module).update({name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")})
    module.__version__ = "10.16.0"
    return module


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_path_of_plain_tensorrt_takes_its_options(plain, graph, tmp_path):
    cache = tmp_path / "timings"
    asked = plan(flavour=TENSORRT, hardware_compatibility="ampere+", timing_cache=cache)
    assert bytes(builder.build(plain, graph, asked, lambda *_: None))
    assert [path.name for path in tmp_path.iterdir()] == ["timings"]
    assert bytes(builder.build(plain, graph, asked, lambda *_: None))  # now it is read


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_a_timing_cache_that_cannot_be_written_is_one_line_before_the_build(plain, graph, tmp_path):
    (tmp_path / "file").touch()
    for place, cause in ((tmp_path, "it is a folder"), (tmp_path / "file" / "x", "File exists")):
        steps = []
        with pytest.raises(OutputError, match=f"cannot write .*: {cause}"):
            builder.build(
                plain, graph, plan(flavour=TENSORRT, timing_cache=place), lambda *step, of=steps: of.append(step)
            )
        assert steps == []


def test_tensorrt_10_is_asked_for_strong_typing(plain):
    assert builder._network_flags(plain) == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    plain.__version__ = "11.4.0"
    assert builder._network_flags(plain) == builder._network_flags(trt) == 0
