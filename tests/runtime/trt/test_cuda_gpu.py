"""On a card: the device protocol as `CudaDevice` keeps it, without TensorRT."""

from __future__ import annotations

import numpy as np
import pytest

from mimruntime.engines.gpu_name import gpu_name
from mimruntime.engines.trt import cuda
from mimruntime.errors import EngineError, MimError

pytestmark = pytest.mark.gpu
SIZE = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def card():
    try:
        return cuda.probe("this test", "tensorrt-rtx")
    except MimError as error:
        pytest.skip(str(error))


@pytest.fixture
def device(card):
    device = cuda.CudaDevice("this test", "tensorrt-rtx")
    yield device
    device.close()


@pytest.fixture
def block(device):
    address = device.allocate(SIZE)
    yield address
    device.free(address)


@pytest.fixture
def pinned(device):
    both = device.pin(SIZE), device.pin(SIZE)
    both[0][:] = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    both[1][:] = 0
    yield both
    for one in both:
        device.unpin(one)


def test_the_driver_and_the_runtime_name_the_same_card(card):
    assert card.name == gpu_name()
    assert card.capability >= 70


def test_what_went_up_comes_down(device, block, pinned):
    there, back = pinned
    device.upload(block, there)
    device.download(back, block)
    device.synchronize()
    np.testing.assert_array_equal(back, there)


def test_a_captured_graph_does_nothing_until_it_is_launched_and_reads_what_is_there_then(device, block, pinned):
    there, back = pinned

    def copies():
        device.upload(block, there)
        device.download(back, block)

    graph = device.capture(copies)
    device.synchronize()
    assert not back.any()
    for value in (7, 9):
        there[:] = value
        device.launch(graph)
        device.synchronize()
        assert (back == value).all()
    device.discard(graph)


def test_work_that_fails_while_it_is_captured_leaves_the_stream_usable(device, block, pinned):
    there, back = pinned

    def fail():
        device.upload(block, there)
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        device.capture(fail)
    device.upload(block, there)
    device.download(back, block)
    device.synchronize()
    np.testing.assert_array_equal(back, there)


def test_more_than_the_card_holds_is_one_line_and_the_card_goes_on(device, block, pinned):
    with pytest.raises(EngineError, match=r"cudaMalloc failed: out of memory \(cudaErrorMemoryAllocation 2\)"):
        device.allocate(1 << 50)
    test_what_went_up_comes_down(device, block, pinned)
