"""Generate correct requests of all protocols, and check that the answers have the right vectors."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from attack.bodies import HEADER_LENGTH, Message, Target, data_uri, file_part, form, tensor_head

TOLERANCE = 1e-4
"""Tolerance per vector entry for rounding between batch sizes; `read_target` checks that images differ by more."""


def correct_message(draw: random.Random, target: Target) -> tuple[Message, list[int]]:
    """Return a correct request and the indices of its photographs, in order."""
    chosen = [draw.randrange(len(target.photos)) for _ in range(draw.choice([1, 1, 1, 2, 5]))]
    kind = draw.choice(_KINDS)
    return kind(draw, target, chosen)


def wrong_vectors(answer: bytes, header_length: str | None, expected: Sequence[Sequence[float]]) -> str | None:
    """Return what is wrong with the vectors of an answer with status 200, or None."""
    try:
        found = _vectors(answer, header_length, len(expected[0]))
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        return f"an answer that cannot be read: {error!r}"
    if len(found) != len(expected):
        return f"{len(found)} vectors for {len(expected)} images"
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if len(one) != len(other) or not all(abs(a - b) < TOLERANCE for a, b in zip(one, other, strict=True)):
            return f"vector {place} of {len(found)} is not its image's"
    return None


def _vectors(answer: bytes, header_length: str | None, dim: int) -> list[list[float]]:
    text = answer[: int(header_length)] if header_length else answer
    said: dict[str, Any] = json.loads(text)
    if "outputs" in said:
        raw = answer[len(text) :]
        numbers = list(struct.unpack(f"<{len(raw) // 4}f", raw)) if raw else said["outputs"][0]["data"]
        return [numbers[start : start + dim] for start in range(0, len(numbers), dim)]
    data = [entry["embedding"] for entry in sorted(said["data"], key=lambda entry: entry["index"])]
    if not isinstance(data[0], str):
        return data
    return [list(struct.unpack(f"<{dim}f", base64.b64decode(one))) for one in data]


def _raw(draw: random.Random, target: Target, chosen: list[int]) -> tuple[Message, list[int]]:
    query = draw.choice(["", "?encoding_format=base64", f"?model={target.model}"])
    return Message("raw", "/v1/embeddings/image" + query, target.photos[chosen[0]]), chosen[:1]


def _form(_: random.Random, target: Target, chosen: list[int]) -> tuple[Message, list[int]]:
    body = form([file_part(target.photos[index]) for index in chosen], "a-boundary")
    kind = {"Content-Type": "multipart/form-data; boundary=a-boundary"}
    return Message("form", "/v1/embeddings/image", body, kind), chosen


def _openai(draw: random.Random, target: Target, chosen: list[int]) -> tuple[Message, list[int]]:
    uris = [data_uri(target.photos[index]) for index in chosen]
    body = {"model": target.model, "input": uris, "encoding_format": draw.choice(["float", "base64"])}
    return _json("/v1/embeddings", body), chosen


def _kserve(_: random.Random, target: Target, chosen: list[int]) -> tuple[Message, list[int]]:
    data = [base64.b64encode(target.photos[index]).decode() for index in chosen]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(chosen)], "data": data}
    return _json(target.infer_path, {"inputs": [tensor]}), chosen


def _kserve_binary(draw: random.Random, target: Target, chosen: list[int]) -> tuple[Message, list[int]]:
    if draw.random() < 0.5:
        name, shape, raw = (
            "pixels",
            [len(chosen), target.edge, target.edge, 3],
            b"".join(target.pixels[i] for i in chosen),
        )
    else:
        name, shape = "image", [len(chosen)]
        raw = b"".join(struct.pack("<I", len(target.photos[index])) + target.photos[index] for index in chosen)
    outputs = [{"name": "embedding", "parameters": {"binary_data": draw.random() < 0.5}}]
    head = json.dumps(tensor_head(len(raw), shape, name) | {"outputs": outputs}).encode()
    return Message("binary tensor", target.infer_path, head + raw, {HEADER_LENGTH: str(len(head))}), chosen


def _json(path: str, body: dict[str, Any]) -> Message:
    return Message("json", path, json.dumps(body).encode(), {"Content-Type": "application/json"})


_KINDS: tuple[Callable[[random.Random, Target, list[int]], tuple[Message, list[int]]], ...] = (
    _raw,
    _raw,
    _form,
    _openai,
    _kserve,
    _kserve_binary,
)
