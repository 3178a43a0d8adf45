"""The executor gives what ONNX Runtime gives, at any batch of its profile, and gives all memory back."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from host_device import HostDevice, OrtContext, OrtEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from mimruntime.engines.trt.device import Device
from mimruntime.engines.trt.executor import Executor, bucket_sizes
from mimruntime.engines.trt.messages import Messages
from mimruntime.errors import EngineError

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'mimexport[tensorrt-rtx]'")
PROFILE = (2, 5, 9)


@pytest.fixture(scope="session")
def graph(toy_artifact):
    return toy_artifact / "model.onnx"


@pytest.fixture(scope="session")
def reference(graph):
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return lambda pixels: dict(zip(("embedding", "selection"), session.run(None, {"pixels": pixels}), strict=True))


def opened(graph, profile=PROFILE):
    device = HostDevice()
    engine = OrtEngine(trt, graph, device, profile)
    return Executor(trt, engine, device, Messages()), engine, device


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("count", range(1, 10))
def test_every_batch_of_the_profile_gives_the_reference(graph, reference, count):
    executor, _, _ = opened(graph)
    pixels = images(count)
    arrays = executor.run(pixels)
    expected = reference(pixels)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.shape == expected[name].shape
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=1e-6)
    executor.close()


def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(graph):
    assert bucket_sizes(*PROFILE) == (2, 4, 5, 8, 9)
    executor, engine, _ = opened(graph)
    for count, bucket in ((1, 2), (2, 2), (3, 4), (5, 5), (6, 8), (9, 9)):
        executor.run(images(count))
        assert bucket in {context.shape[0] for context in engine.contexts}
    assert len(engine.contexts) == 5
    executor.close()


@pytest.mark.parametrize(
    ("profile", "sizes"), [((1, 1, 1), (1,)), ((1, 8, 32), (1, 2, 4, 8, 16, 32)), ((3, 6, 7), (3, 4, 6, 7))]
)
def test_the_buckets_are_the_profile_and_the_powers_of_two_in_it(profile, sizes):
    assert bucket_sizes(*profile) == sizes


def test_memory_is_taken_once_and_the_second_run_of_a_bucket_is_one_launch(graph):
    executor, engine, device = opened(graph)
    executor.run(images(4))
    taken = dict(device.blocks), len(device.pinned), len(engine.contexts), device.launches
    for seed in range(5):
        executor.run(images(4, seed))
    assert (dict(device.blocks), len(device.pinned), len(engine.contexts), device.launches - 5) == taken
    assert len(device.graphs) == 1
    executor.close()


def test_a_result_is_the_callers_own(graph):
    executor, _, _ = opened(graph)
    first = executor.run(images(3, 1))["embedding"]
    kept = first.copy()
    executor.run(images(3, 2))
    np.testing.assert_array_equal(first, kept)
    executor.close()
    np.testing.assert_array_equal(first, kept)


def test_a_context_that_cannot_be_captured_runs_all_the_same(graph, reference, monkeypatch):
    monkeypatch.setattr(OrtContext, "capturable", False)
    executor, _, device = opened(graph)
    for seed in (1, 2):
        pixels = images(3, seed)
        np.testing.assert_allclose(executor.run(pixels)["embedding"], reference(pixels)["embedding"], atol=1e-6)
    assert device.launches == 0
    executor.close()


@pytest.mark.parametrize("count", [0, 10, 100])
def test_a_batch_outside_of_the_profile_is_refused_and_the_next_one_runs(graph, count):
    executor, _, _ = opened(graph)
    with pytest.raises(EngineError, match=f"a batch of {count}: this plan runs 1 to 9 images at once"):
        executor.run(images(count))
    assert executor.run(images(9))["embedding"].shape == (9, 16)
    executor.close()


def test_close_gives_everything_back_and_a_closed_executor_says_so(graph):
    executor, _, device = opened(graph)
    executor.run(images(2))
    executor.run(images(9))
    executor.close()
    assert device.closed  # which asserts that nothing leaked
    executor.close()
    with pytest.raises(EngineError, match="closed"):
        executor.run(images(1))


@pytest.mark.parametrize("call", ["allocate", "pin"])
@pytest.mark.parametrize("at", range(3))
def test_memory_that_runs_out_while_opening_leaks_nothing(graph, monkeypatch, call, at):
    device = HostDevice()
    taken = []
    real = getattr(device, call)

    def scarce(size):
        taken.append(size)
        if len(taken) > at:
            raise EngineError("cudaMalloc failed: out of memory (cudaErrorMemoryAllocation 2)")
        return real(size)

    monkeypatch.setattr(device, call, scarce)
    with pytest.raises(EngineError, match="out of memory"):
        Executor(trt, OrtEngine(trt, graph, device, PROFILE), device, Messages())
    assert device.closed


def test_a_run_that_fails_gives_the_first_logged_cause_and_leaks_nothing(graph, monkeypatch):
    executor, _, device = opened(graph)
    executor.run(images(2))

    def fail(context, stream):
        executor._messages.add("the cause")
        executor._messages.add("what follows from it")
        return False

    monkeypatch.setattr(OrtContext, "execute_async_v3", fail)
    with pytest.raises(EngineError, match=r"^a batch of 9 failed: the cause$"):
        executor.run(images(9))
    device.queue.clear()
    executor.close()
    assert device.closed


@pytest.mark.parametrize("refusal", ["set_input_shape", "set_tensor_address"])
def test_what_the_context_silently_refuses_is_an_error(graph, monkeypatch, refusal):
    executor, _, device = opened(graph)
    monkeypatch.setattr(OrtContext, refusal, lambda *_: False)
    with pytest.raises(EngineError, match="the engine does not take a batch of 4"):
        executor.run(images(3))
    executor.close()
    assert device.closed


def test_an_engine_without_a_context_is_an_error(graph, monkeypatch):
    executor, _, _device = opened(graph)
    monkeypatch.setattr(OrtEngine, "create_execution_context", lambda *_: executor._messages.add("no memory"))
    with pytest.raises(EngineError, match="the engine gives no execution context: no memory"):
        executor.run(images(3))
    executor.close()


@pytest.mark.parametrize(("type_", "message"), [("FLOAT", "'pixels' is float32, expected uint8")])
def test_a_plan_of_other_types_is_refused_at_the_door(graph, monkeypatch, type_, message):
    monkeypatch.setattr(OrtEngine, "get_tensor_dtype", lambda *_: getattr(trt.DataType, type_))
    with pytest.raises(EngineError, match=message):
        opened(graph)


def test_plain_tensorrt_is_asked_for_a_context_without_a_runtime_config(graph, monkeypatch):
    plain = SimpleNamespace(
        TensorIOMode=trt.TensorIOMode,
        DataType=trt.DataType,
        nptype=trt.nptype,
        ExecutionContextAllocationStrategy=trt.ExecutionContextAllocationStrategy,
    )
    asked = []
    make = OrtEngine.create_execution_context
    monkeypatch.setattr(OrtEngine, "create_runtime_config", None)
    monkeypatch.setattr(
        OrtEngine, "create_execution_context", lambda self, how: (asked.append(how), make(self, how))[1]
    )
    monkeypatch.setattr(OrtContext, "is_stream_capturable", None)
    device = HostDevice()
    executor = Executor(plain, OrtEngine(plain, graph, device, PROFILE), device, Messages())
    executor.run(images(2))
    assert asked == [trt.ExecutionContextAllocationStrategy.USER_MANAGED]
    assert len(device.graphs) == 1
    executor.close()


@given(
    profile=st.lists(st.integers(1, 12), min_size=3, max_size=3).map(sorted),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_any_sequence_of_batches_gives_the_reference_and_leaks_nothing(graph, reference, profile, data):
    executor, _, device = opened(graph, profile)
    counts = data.draw(st.lists(st.integers(1, profile[2]), max_size=8))
    for seed, count in enumerate(counts):
        pixels = images(count, seed)
        np.testing.assert_allclose(executor.run(pixels)["embedding"], reference(pixels)["embedding"], atol=1e-6)
    executor.close()
    assert device.closed


@pytest.mark.parametrize(
    ("stand_in", "real"), [(OrtEngine, trt.ICudaEngine), (OrtContext, trt.IExecutionContext)], ids=["engine", "context"]
)
def test_the_stand_ins_have_no_name_the_real_classes_lack(stand_in, real):
    names = {name for name in vars(stand_in) if not name.startswith("_")} - {"capturable"}
    assert names
    assert names <= set(dir(real))


def test_what_the_executor_asks_of_a_context_config_is_there():
    assert hasattr(trt.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")


def test_the_host_device_has_the_protocol_of_a_device_and_so_has_the_gpu():
    from mimruntime.engines.trt.cuda import CudaDevice

    for name, method in vars(Device).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            for kind in (HostDevice, CudaDevice):
                assert list(inspect.signature(getattr(kind, name)).parameters) == list(
                    inspect.signature(method).parameters
                )


class TestTheHostDevice:
    """Catches what it is there to catch."""

    def test_an_upload_without_synchronize_has_not_happened(self):
        device = HostDevice()
        address, memory = device.allocate(8), device.pin(8)
        memory[:] = 1
        device.upload(address, memory)
        assert (device.at(address, 8) == 0xCD).all()
        device.synchronize()
        assert (device.at(address, 8) == 1).all()

    def test_a_second_free_a_leak_an_overrun_and_unpinned_memory_fail(self):
        device = HostDevice()
        address = device.allocate(8)
        with pytest.raises(AssertionError, match="leaked"):
            device.close()
        with pytest.raises(AssertionError, match="9 bytes wanted of a block of 8"):
            device.at(address, 9)
        with pytest.raises(AssertionError, match="not pinned"):
            device.upload(address, np.zeros(8, np.uint8))
        device.free(address)
        with pytest.raises(KeyError):
            device.free(address)
