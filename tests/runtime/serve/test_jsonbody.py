"""What a body may cost: few objects, one error, no long call on the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from mimruntime.errors import UnknownNameError
from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols import forms, kserve, offload, openai, tensors
from mimruntime.serve.protocols.schemas import EXAMPLE_IMAGE

MB = 1_000_000
URI = "data:image/png;base64,"


def peak_bytes(work: Callable[[], object]) -> int:
    """What `work` holds at most of Python's memory; it may refuse."""
    tracemalloc.start()
    try:
        work()
    except Problem:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def openai_body(text: bytes) -> object:
    return openai._decode(text, 64)


def infer_body(text: bytes) -> object:
    return kserve._decode(text, 100_000)


def tensor_body(**change: object) -> bytes:
    tensor = {"name": "pixels", "shape": [1, 64, 64, 3], "datatype": "UINT8"} | change
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        (openai_body, b'{"model":"toy","input":[' + b"0," * MB + b"0]}"),
        (openai_body, b'{"model":"toy","input":[' + b'"https://",' * 100_000 + b'""]}'),
        (openai_body, b'{"model":"toy","input":' + b"[" * MB),
        (openai_body, json.dumps({f"k{number}": 0 for number in range(100_000)}).encode()),
        (openai_body, b'{"' + b"a" * MB + "\U0001f600".encode() + b'":1}'),
        (openai_body, b'{"model":"toy","input":"' + URI.encode() + b"A" * MB + b'\\ud83d\\ude00"}'),
        (openai_body, b'{"input":"x","model":"' + b"a" * MB + b'"}'),
        (openai_body, b'{"input":"x","dimensions":' + b"1" * MB + b"}"),
        (openai_body, b'{"input":"x","model":"' + b"\\n" * MB + b'"}'),
        (openai_body, b'{"model":"toy",' + b" " * MB + b'"input":"x"}'),
        (infer_body, b'{"inputs":[],"parameters":{' + b",".join(b'"k%d":0' % n for n in range(50_000)) + b"}}"),
        (infer_body, b'{"inputs":[],"outputs":[' + b'{"name":"embedding"},' * 50_000 + b"{}]}"),
        (infer_body, b'{"inputs":[' + b'{"name":"pixels"},' * 50_000 + b"{}]}"),
        (infer_body, tensor_body(shape=[300] * 90_000)),
        (infer_body, tensor_body(name="a" * MB)),
        (infer_body, tensor_body(data=[0] * MB)),
        (infer_body, tensor_body(data=[""] * 90_000)),
    ],
)
def test_whatever_the_body_its_memory_is_bounded_by_its_size(decode: Callable[[bytes], object], text: bytes) -> None:
    assert peak_bytes(lambda: decode(text)) < 3 * len(text) + 500_000


@pytest.mark.parametrize("data", [[0] * 90_000, ["A"] * 30_000, ["A" * 90_000], [[]] * 30_000])
def test_so_is_that_of_a_tensors_data(data: list) -> None:
    text = tensor_body(name="image", datatype="BYTES", shape=[1], data=data)
    request = infer_body(text)
    assert peak_bytes(lambda: tensors.read_images(request, memoryview(b""), 64)) < 3 * len(text)


def test_of_a_binary_tensor_no_more_elements_are_read_than_its_shape_says() -> None:
    request = infer_body(
        tensor_body(name="image", datatype="BYTES", shape=[1], parameters={"binary_data_size": 4 * MB})
    )
    binary = memoryview(bytes(4 * MB))  # a million elements of no bytes
    assert peak_bytes(lambda: tensors.read_images(request, binary, 64)) < MB


def test_pixels_in_json_are_decoded_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    nested = infer_body(tensor_body(shape=pixels.shape, data=pixels.tolist()))
    flat = infer_body(tensor_body(shape=pixels.shape, data=pixels.ravel().tolist()))
    sizes, decode = [], msgspec.json.decode
    monkeypatch.setattr(msgspec.json, "decode", lambda text, **how: sizes.append(len(text)) or decode(text, **how))
    for request in (nested, flat):
        assert np.array_equal(tensors.read_images(request, memoryview(b""), 64), pixels)
    assert len(sizes) > 2
    assert max(sizes) < 70_000


@pytest.mark.parametrize(("length", "apart"), [(1000, False), (offload.SHORT + 1, True)])
def test_a_long_body_is_parsed_off_the_event_loop(length: int, apart: bool) -> None:
    async def where() -> bool:
        return await offload.parse(lambda _: threading.current_thread() is not threading.main_thread(), bytes(length))

    assert asyncio.run(where()) == apart


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"model": "toy", "input": [7] * 1000}).encode(),
        b'{"input":"x","model":"toy","' + b"a" * 60_000 + b'":1}',
        b'{"input":"x","model":"toy","user":["' + b"a" * 10_000 + b'"]}',
    ],
)
def test_one_error_is_told_in_one_short_line(text: bytes) -> None:
    with pytest.raises(Problem) as caught:
        openai_body(text)
    assert caught.value.status_code == 422
    assert len(caught.value.detail) < 300


def test_a_long_name_is_cut_before_it_is_compared_and_shown() -> None:
    assert len(str(UnknownNameError("model", "a" * MB, ["toy"]))) < 200


@pytest.mark.parametrize("escaped", [lambda text: text.replace("/", "\\/"), lambda text: text.replace("+", "\\u002B")])
def test_base64_may_be_escaped_as_php_and_dotnet_do(escaped: Callable[[str], str]) -> None:
    text = escaped(json.dumps({"model": "toy", "input": [EXAMPLE_IMAGE] * 2, "user": "\u00e9\u4e2d"}))
    assert openai_body(text.encode()).input == [EXAMPLE_IMAGE] * 2


FILE = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"--b\r\n" + (FILE + b"\r\n--b\r\n") * 1000, 413),
        (b"--b\r\n" + b"A: b\r\n" * 10_000, 400),
        (b"--b\r\nA: " + b"b" * MB, 400),
        (b"--b\r\n" + FILE + b"x\r\n--b" + b" " * MB, 400),
        (b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--b--\r\n", 400),
    ],
)
def test_a_form_of_too_much_but_files_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(Problem) as caught:
        forms.read_form(body, "multipart/form-data; boundary=b", 64)
    assert caught.value.status_code == status


def test_files_of_a_form_keep_their_order_and_bytes() -> None:
    field = b'Content-Disposition: form-data; name="note"\r\n\r\nhello\r\n--b\r\n'
    body = b"--b\r\n" + FILE + b"\r\n-\r\n--c\r\n--b\r\n" + field + FILE + b"two\r\n--b--\r\n"
    form = forms.read_form(body, 'multipart/form-data; charset=undefined; boundary="b"', 64)
    assert form == forms.Form([b"\r\n-\r\n--c", b"two"], model=None)
