"""From vectors to the answers of OpenAI's protocol, and the headers every embedding answer carries."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.serve.admission.queue import Embedded
from mimruntime.serve.execution.model import Model
from mimruntime.serve.observe import SPACE_HEADER
from mimruntime.serve.protocols.schemas import ErrorResponse

Encoding = Literal["float", "base64"]

_REASONS = {
    400: "Malformed, or an image that cannot be decoded: which one and why.",
    401: "Missing or wrong key.",
    404: "No such model.",
    408: "The request did not arrive whole in time.",
    409: "Another embedding space than expected.",
    413: "Body, items or pixels over the limit.",
    415: "A format that is not let in.",
    422: "Does not fit the schema.",
    429: "Too many images in flight; see Retry-After.",
    500: "A bug.",
    503: "Not ready, draining, or the engine failed.",
    504: "Not done within the deadline.",
}


def documented(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses, each with a body of `model`."""
    return {status: {"model": model, "description": _REASONS[status]} for status in statuses}


OPENAI_ERRORS = documented(ErrorResponse, *_REASONS)


def admit(request: Request, model: Model, expected_space: str | None) -> None:
    """Bind `request` to `model`: its answer carries the model's space and precision, and must be in the space it expects."""
    request.state.space, request.state.precision = model.about.space, model.about.precision
    model.check_space(expected_space)
    model.check_space(request.headers.get(SPACE_HEADER))


def embeddings(model: Model, results: Sequence[Embedded], encoding: str) -> Response:
    """Return the answer of OpenAI's protocol."""
    count = len(results) * model.tokens
    content = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(result.vector, encoding)}
            for index, result in enumerate(results)
        ],
        "model": model.about.name,
        "embedding_space": model.about.space,
        "precision": model.about.precision,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return Response(msgspec.json.encode(content), media_type="application/json", headers=timing(results))


def timing(results: Sequence[Embedded]) -> dict[str, str]:
    """Return the header of W3C Server Timing: milliseconds of the slowest image in each stage."""
    stages = {
        "decode": max(result.decode_s for result in results),
        "queue": max(result.queue_s for result in results),
        "inference": max(result.inference_s for result in results),
    }
    return {"Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages.items())}


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector.tolist()  # type: ignore[no-any-return]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
