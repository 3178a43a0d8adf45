"""Strategies for the named formats of the OpenAPI schema in schemathesis: decodable images, the toy model's name."""

from __future__ import annotations

import base64
import io
import os

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.transport.serialization import Binary


def small_jpeg(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "JPEG")
    return stream.getvalue()


EDGE = st.integers(1, 90)
JPEGS = st.builds(small_jpeg, st.tuples(*[st.integers(20, 255)] * 3), st.tuples(EDGE, EDGE))
TEXT = base64.b64encode(small_jpeg((200, 120, 40), (9, 9))).decode()
URIS = JPEGS.map(lambda image: "data:image/jpeg;base64," + base64.b64encode(image).decode())

schemathesis.openapi.format("image-location", URIS)
schemathesis.openapi.format("binary", JPEGS.map(Binary))
schemathesis.openapi.format("model-name", st.just("toy"))
schemathesis.openapi.format("embedding-space", st.just(os.environ["TOY_SPACE"]))
schemathesis.openapi.media_type("application/octet-stream", JPEGS)


@schemathesis.hook
def map_case(context, case):
    """Adjust valid calls to the model, because JSON Schema cannot express the shapes of `infer` and `dimensions`."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return case
    if case.path.endswith("/infer"):
        case.body = {**case.body, "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]}
        case.body["outputs"] = [*{each["name"]: each for each in case.body.get("outputs", [])}.values()]
    if case.path.endswith("/embeddings") and case.body.get("dimensions") is not None:
        case.body = {**case.body, "dimensions": 16}
    if (case.headers or {}).get("X-Embedding-Precision") is not None:
        case.headers["X-Embedding-Precision"] = "fp32"
    if (case.query or {}).get("dimensions") is not None:
        case.query = {**case.query, "dimensions": 16}
    return case
