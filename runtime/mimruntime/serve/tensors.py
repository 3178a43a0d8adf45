"""Tensors of the Open Inference Protocol, in JSON and in its binary extension."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimruntime.serve.problems import Problem
from mimruntime.serve.schemas_kserve import InferRequest, InputTensor

HEADER_LENGTH = "Inference-Header-Content-Length"
_LENGTH = struct.Struct("<I")


def split_body(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON part and the binary part.

    Raises:
        Problem: 400 where the length is no number or beyond the body.

    """
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isdecimal() or int(header_length) > len(body):
        raise Problem(400, "malformed", f"{HEADER_LENGTH} is '{header_length}', the body has {len(body)} bytes")
    return body[: int(header_length)], memoryview(body)[int(header_length) :]


def read_images(request: InferRequest, binary: memoryview, edge: int) -> list[bytes | str | np.ndarray]:
    """Return the images of the request's one input.

    Args:
        request: its JSON part.
        binary: what follows it.
        edge: px of the graph's square input.

    Raises:
        Problem: 400, with what the input is and should be.

    """
    tensor = request.inputs[0]
    raw = _raw(tensor, binary)
    images = list(_read_image(tensor, raw) if tensor.name == "image" else _read_pixels(tensor, raw, edge))
    if not images:
        raise Problem(400, "malformed", f"input '{tensor.name}' holds no image")
    return images


def write_embedding(vectors: np.ndarray, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """Return the output tensor 'embedding' and its binary part; vectors are float32 (B, D)."""
    tensor: dict[str, Any] = {"name": "embedding", "datatype": "FP32", "shape": list(vectors.shape)}
    if not binary:
        return tensor | {"data": vectors.ravel().tolist()}, b""
    raw = vectors.astype("<f4").tobytes()
    return tensor | {"parameters": {"binary_data_size": len(raw)}}, raw


def _raw(tensor: InputTensor, binary: memoryview) -> memoryview | None:
    """Return the binary part, or None where the tensor's data are in the JSON."""
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
    found = list(_flat(tensor.data)) if raw is None else list(_elements(raw))
    if len(found) != tensor.shape[0]:
        raise Problem(400, "malformed", f"input 'image' has shape {tensor.shape} and {len(found)} elements")
    if not all(isinstance(element, bytes | str) for element in found):
        raise Problem(400, "malformed", "input 'image' in JSON takes base64 strings")
    yield from found


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
        flat = np.fromiter(map(_pixel, _flat(tensor.data)), np.uint8) if raw is None else np.frombuffer(raw, np.uint8)
        return flat.reshape(tensor.shape)
    except (ValueError, OverflowError, TypeError) as error:
        raise Problem(400, "malformed", f"input 'pixels' of shape {tensor.shape}: {error}") from error


def _flat(data: Any) -> Iterator[Any]:
    """Yield the leaves of lists nested at most as deep as a tensor may be."""
    for element in data if isinstance(data, list) else [data]:
        if isinstance(element, list):
            yield from _flat(element)
        else:
            yield element


def _pixel(element: Any) -> int:
    if type(element) is not int:  # of 0.5, numpy would make the pixel 0
        raise TypeError(f"it holds a {type(element).__name__}, pixels are whole numbers from 0 to 255")
    return element
