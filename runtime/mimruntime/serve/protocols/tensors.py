"""Tensors of the Open Inference Protocol, in JSON and in its binary extension."""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, UnsetType

from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols.jsonbody import check_ascii, decode
from mimruntime.serve.protocols.schemas_kserve import InferRequest, InputTensor

HEADER_LENGTH = "Inference-Header-Content-Length"
_NUMBER = re.compile("[0-9]{1,18}")
_LENGTH = struct.Struct("<I")
_PIXELS = list[Annotated[int, Meta(ge=0, le=255)]]
_STEP = 65_536
"""Bytes of JSON decoded in one call."""


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON part and the binary part.

    Raises:
        Problem: 400 if the length is not a number or is larger than the body.

    """
    if header_length is None:
        return body, memoryview(b"")
    if not _NUMBER.fullmatch(header_length) or int(header_length) > len(body):
        raise Problem(400, "malformed", f"{HEADER_LENGTH} is '{header_length[:20]}', the body has {len(body)} bytes")
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def read_images(request: InferRequest, binary: memoryview, edge: int) -> list[bytes | str | np.ndarray]:
    """Return the images of the request's one input.

    Args:
        request: its JSON part.
        binary: the bytes after the JSON part.
        edge: px of the graph's square input.

    Raises:
        Problem: 400, with the given and the expected form of the input.

    """
    tensor = request.inputs[0]
    raw = _raw(tensor, binary)
    images = list(_read_image(tensor, raw) if tensor.name == "image" else _read_pixels(tensor, raw, edge))
    if not images:
        raise Problem(400, "malformed", f"input '{tensor.name}' holds no image")
    return images


def write_numbers(name: str, numbers: np.ndarray, datatype: str, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return an output tensor and its binary part, which is empty in JSON; numbers are (B, …), little-endian."""
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(numbers.shape)}
    if not binary:
        return tensor | {"data": numbers.ravel().tolist()}, b""
    raw = numbers.tobytes()
    return tensor | {"parameters": {"binary_data_size": len(raw)}}, raw


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Return a BYTES tensor in its binary form: each element after its length, little-endian uint32."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def write_texts(name: str, texts: Sequence[str], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return an output tensor BYTES (B,) and its binary part, which is empty in JSON."""
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(texts)]}
    if not binary:
        return tensor | {"data": [*texts]}, b""
    raw = pack_bytes(text.encode() for text in texts)
    return tensor | {"parameters": {"binary_data_size": len(raw)}}, raw


def _raw(tensor: InputTensor, binary: memoryview) -> memoryview | None:
    """Return the binary part, or None if the tensor's data are in the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        return None
    if size != len(binary):
        raise Problem(400, "malformed", f"binary_data_size is {size}, {len(binary)} bytes follow the JSON")
    return binary


def _read_image(tensor: InputTensor, raw: memoryview | None) -> Iterator[bytes | str]:
    if tensor.datatype != "BYTES" or len(tensor.shape) not in {1, 2} or tensor.shape[1:] not in ([], [1]):
        raise Problem(
            400, "malformed", f"input 'image' is {tensor.datatype} {tensor.shape}; expected BYTES [B] or [B, 1]"
        )
    count = tensor.shape[0]
    found = _texts(tensor, count) if raw is None else list(itertools.islice(_elements(raw), count + 1))
    if len(found) != count:
        number = f"over {count}" if len(found) > count else len(found)
        raise Problem(400, "malformed", f"input 'image' has shape {tensor.shape} and {number} elements")
    yield from found


def _texts(tensor: InputTensor, count: int) -> list[str]:
    """Return the base64 strings of a tensor in JSON: a list of strings, or a list of lists with one string each."""
    if tensor.data is UNSET:
        return []
    check_ascii(tensor.data, "inputs[0].data")
    if bytes(tensor.data).count(b",") > 2 * count:  # one after each string, and one in each data URI
        raise Problem(400, "malformed", f"input 'image' has shape {tensor.shape} and over {count} elements")
    nested = decode(tensor.data, list[str | list[str]], at="inputs[0].data")
    return [text for texts in nested for text in ([texts] if isinstance(texts, str) else texts)]


def _elements(raw: memoryview) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor: each is its length, little-endian uint32, then its bytes."""
    position = 0
    while position < len(raw):
        start = position + _LENGTH.size
        if start > len(raw):
            raise Problem(400, "malformed", "a BYTES tensor ends inside a length")
        position = start + _LENGTH.unpack_from(raw, start - _LENGTH.size)[0]
        if position > len(raw):
            raise Problem(400, "malformed", "a BYTES tensor ends inside an element")
        yield bytes(raw[start:position])


def _read_pixels(tensor: InputTensor, raw: memoryview | None, edge: int) -> np.ndarray:
    if tensor.datatype != "UINT8" or tensor.shape[1:] != [edge, edge, 3]:
        raise Problem(
            400,
            "malformed",
            f"input 'pixels' is {tensor.datatype} {tensor.shape}; expected UINT8 [B, {edge}, {edge}, 3]",
        )
    try:
        flat = _numbers(tensor.data, math.prod(tensor.shape)) if raw is None else np.frombuffer(raw, np.uint8)
        return flat.reshape(tensor.shape)
    except ValueError as error:  # of numpy, or of msgspec
        raise Problem(400, "malformed", f"input 'pixels' of shape {tensor.shape}: {error}") from None


def _numbers(data: Raw | UnsetType, count: int) -> np.ndarray:
    """Return the numbers in nested arrays, row by row, as uint8; stop once there are at least `count`.

    Numbers are decoded in steps, so that they are never all Python objects at once, and other threads run in between.

    Raises:
        ValueError: a value is not a whole number from 0 to 255.

    """
    text = memoryview(b"" if data is UNSET else data)
    numbers = [np.empty(0, np.uint8)]
    start = found = 0
    while start < len(text) and found <= count:
        piece = bytes(text[start : start + _STEP])
        end = len(piece) if start + len(piece) == len(text) else piece.rfind(b",")
        if end < 0:
            raise ValueError(f"no number ends within {_STEP:,} bytes")
        # The body is valid JSON, so without brackets and spaces there is a number between any two commas.
        values = msgspec.json.decode(b"[" + piece[:end].translate(None, b"[] \t\r\n") + b"]", type=_PIXELS)
        numbers.append(np.array(values, np.uint8))
        found += len(values)
        start += end + 1
    return np.concatenate(numbers)
