"""Generate requests with wrong bodies: JSON of both protocols, binary tensors, forms, images."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from attack.images import damaged_image, noise

HEADER_LENGTH = "Inference-Header-Content-Length"
_LONG = 200_000
_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**64, 1e308, 0.5, "", "x", "\0", "\ud800", "é" * 300, "x" * _LONG, [], {}, [[]],
    [[[["x"]]]], [0] * 5_000, {"x": {"x": {}}}, {str(n): n for n in range(2_000)}, "../../etc/passwd", "file:///etc/passwd",
    "http://127.0.0.1/", "https://169.254.169.254/", "data:image/png;base64,====", "data:image/png;base64,AAAA",
)  # fmt: skip
_TOKENS = (
    b"NaN", b"-Infinity", b"1" * 5_000, b"1e999", b"\xff\xfe", b'"\\ud800"', b"[" * 20_000, b'{"a":' * 5_000, b"\0", b",",
    b"}", b'"', b"\\", b"[" + b"0," * 200_000 + b"0]", b"\xef\xbb\xbf", b"/**/", b"-", b"{}" * 50,
)  # fmt: skip
_KEYS = (
    "model", "input", "inputs", "outputs", "parameters", "shape", "data", "name", "id", "user", "dimensions", "datatype",
    "output_dtype", "x" * 5_000, "", "é", "errors", "selection",
)  # fmt: skip
_QUERIES = (
    *[""] * 8, "?dimensions=" + "9" * 5_000, "?dimensions=-1", "?dimensions=0", "?output_dtype=%00",
    "?model=%ff%fe", "?" + "a=b&" * 500, "?encoding_format=hex", "?output_dtype=int8&output_dtype=float",
    "?dimensions=1&output_dtype=ubinary", "?dimensions=%D9%A3", "?errors=item&selection=true", "?selection=maybe",
)  # fmt: skip
_LENGTHS = ("0", "-1", "1", "9" * 18, "9" * 5_000, "0x10", "٣", "1.0", "", " 5", "1_0")
_TYPES = (
    "application/json",
    "text/plain",
    "application/xml",
    "multipart/form-data",
    "",
    "application/json; charset=utf-7",
)


@dataclass(frozen=True)
class Message:
    """An HTTP request before serialisation: kind of fault, path, headers and body."""

    kind: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The model that requests are sent to, with test images as files and pixels, and their vectors.

    Attributes:
        model: name of the artifact.
        photos: encoded images.
        pixels: the same images, each as bytes of a row-major uint8 array (edge, edge, 3).
        edge: edge of the square input, px.
        vectors: the expected vector of each image, a list of D numbers.

    """

    model: str
    photos: list[bytes]
    pixels: list[bytes]
    edge: int
    vectors: list[list[float]]

    @property
    def infer_path(self) -> str:
        """Path of inference in the KServe protocol."""
        return f"/v2/models/{self.model}/infer"


def data_uri(photo: bytes) -> str:
    """Return the image as a data URI for the OpenAI protocol; the service detects its type from the bytes."""
    return "data:image/png;base64," + base64.b64encode(photo).decode()


def form(parts: Sequence[bytes], boundary: str = "b") -> bytes:
    """Return a `multipart/form-data` body; parts include their headers."""
    return b"".join(b"--%s\r\n%s\r\n" % (boundary.encode(), part) for part in parts) + b"--%s--\r\n" % boundary.encode()


def file_part(photo: bytes) -> bytes:
    """Return the form part of a file."""
    return b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + photo


def tensor_head(size: int, shape: Sequence[int], name: str = "image") -> dict[str, Any]:
    """Return the JSON header for `size` bytes of a binary tensor."""
    kind = "BYTES" if name == "image" else "UINT8"
    return {
        "inputs": [{"name": name, "datatype": kind, "shape": list(shape), "parameters": {"binary_data_size": size}}],
    }


def hostile_message(draw: random.Random, target: Target) -> Message:
    """Return a request whose body is wrong, or may be."""
    return draw.choice(_MESSAGES)(draw, target)


def _upload(draw: random.Random, target: Target) -> Message:
    kind, image = damaged_image(draw, target.photos)
    return Message(f"{kind}, raw", "/v1/embeddings/image" + draw.choice(_QUERIES), image)


def _openai_image(draw: random.Random, target: Target) -> Message:
    kind, image = damaged_image(draw, target.photos)
    images = [data_uri(image)] + [data_uri(draw.choice(target.photos)) for _ in range(draw.randrange(3))]
    draw.shuffle(images)
    return _json(f"{kind}, OpenAI", "/v1/embeddings", {"model": target.model, "input": images})


def _tensor(draw: random.Random, target: Target) -> Message:
    kind, image = damaged_image(draw, target.photos)
    raw = draw.choice([len(image).to_bytes(4, "little") + image, image, b"\xff" * 8, noise(draw, 200)])
    name, shape = (
        draw.choice(["image", "pixels"]),
        draw.choice([[1], [2], [0], [1, target.edge, target.edge, 3], [10**6] * 8]),
    )
    head = json.dumps(tensor_head(draw.choice([len(raw), 0, -1, 2**63]), shape, name)).encode()
    length = draw.choice([str(len(head)), str(len(head) - 1), *_LENGTHS]).encode().decode("latin-1")
    return Message(f"tensor of {kind}", target.infer_path, head + raw, {HEADER_LENGTH: length.strip()})


def _odd_json(draw: random.Random, target: Target) -> Message:
    """Return a correct request with one to three values replaced, and sometimes random bytes inserted."""
    uri = data_uri(draw.choice(target.photos))
    openai = {"model": target.model, "input": [uri, {"type": "image_url", "image_url": {"url": uri}}], "user": "me"}
    openai |= {
        "output_dtype": draw.choice(["float", "int8", "ubinary"]),
        "encoding_format": "base64",
        "dimensions": None,
    }
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [uri[22:]], "parameters": {}}
    stored = {"binary_data": True, "datatype": draw.choice(["FP32", "FP16", "INT8", "UINT8"])}
    kserve = {"id": "1", "inputs": [tensor], "outputs": [{"name": "embedding", "parameters": stored}], "parameters": {}}
    path, body = draw.choice([("/v1/embeddings", openai), (target.infer_path, kserve)])
    for _ in range(draw.randint(1, 3)):
        _replace(draw, body)
    text = json.dumps(body).encode()
    if draw.random() < 0.5:
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(_TOKENS) + text[at + draw.choice([0, 1, 10]) :]
    kind = draw.choice(_TYPES) if draw.random() < 0.2 else "application/json"
    return Message("json, odd", path, text, {"Content-Type": kind})


def _replace(draw: random.Random, node: Any) -> None:
    """Replace a random value below `node` by an odd one, or add it under a new key."""
    while True:
        places = list(node) if isinstance(node, dict) else range(len(node))
        at = draw.choice(places) if places and draw.random() < 0.9 else None
        if at is not None and isinstance(node[at], dict | list) and draw.random() < 0.7:
            node = node[at]
            continue
        if isinstance(node, dict):
            node[draw.choice(_KEYS) if at is None else at] = copy.deepcopy(draw.choice(_ODD))
        elif at is None:
            node.append(copy.deepcopy(draw.choice(_ODD)))
        else:
            node[at] = copy.deepcopy(draw.choice(_ODD))
        return


def _form(draw: random.Random, target: Target) -> Message:
    _, image = damaged_image(draw, target.photos)
    part = file_part(draw.choice([image, draw.choice(target.photos)]))
    parts = draw.choice(
        [
            [part],
            [part] * draw.choice([1, 65, 500]),
            [b"X: " + b"\xff" * draw.choice([1, 5_000, _LONG]) + b"\r\n\r\n" + image],
            [b"\r\n" * draw.choice([1, 1_000])],
            [part.replace(b'"a"', b'"' + b"\xff" * 500 + b'"')],
            [part.replace(b'filename="a"', b"filename*=utf-9''%ff")],
            [noise(draw, 500)],
        ]
    )
    whole = form(parts)
    body = draw.choice(
        [whole, whole[: len(whole) // 2], whole + noise(draw, 100), b"--b" * 2_000, b"--b" + b" " * _LONG]
    )
    kind = draw.choice(
        [
            "; boundary=b",
            "; boundary=b",
            "",
            "; boundary=",
            "; boundary=b; charset=undefined",
            f"; boundary={'b' * 300}",
        ]
    )
    return Message("form", "/v1/embeddings/image", body, {"Content-Type": "multipart/form-data" + kind})


def _urlencoded(draw: random.Random, target: Target) -> Message:
    body = draw.choice([b"a=%ff&" * 1_000, b"&" * 5_000, b"model=toy&input=x", b"%" * 500, noise(draw, 300)])
    path = draw.choice(["/v1/embeddings", "/v1/embeddings/image", target.infer_path])
    return Message("urlencoded", path, body, {"Content-Type": "application/x-www-form-urlencoded"})


def _json(kind: str, path: str, body: Any) -> Message:
    return Message(kind, path, json.dumps(body).encode(), {"Content-Type": "application/json"})


_MESSAGES: tuple[Callable[[random.Random, Target], Message], ...] = (
    _upload,
    _openai_image,
    _tensor,
    _odd_json,
    _odd_json,
    _form,
    _urlencoded,
)
