"""Turn vectors into answers of OpenAI's protocol, and set the headers of every embedding answer."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.serve.admission.queue import EmbeddingResult
from mimruntime.serve.execution.model import Model, Outcome
from mimruntime.serve.observability import PRECISION_HEADER, SPACE_HEADER
from mimruntime.serve.problems import Problem, describe
from mimruntime.serve.protocols.schemas import ErrorResponse
from mimruntime.storage import Codec, Store

Encoding = Literal["float", "base64"]
OutputType = Literal["float", "float16", "int8", "ubinary"]
Errors = Literal["request", "item"]
STORES: dict[str, Store] = {"float": "fp32", "float16": "fp16", "int8": "int8", "ubinary": "bits"}
"""Stored forms of vectors, by the names that other embedding services use."""

_REASONS = {
    400: "Malformed, or an image that cannot be decoded: which one and why.",
    401: "Missing or wrong key.",
    404: "No such model.",
    408: "The complete request did not arrive in time.",
    409: "Another embedding space or precision than expected.",
    413: "Body, items or pixels over the limit.",
    415: "A format that is not allowed.",
    422: "Does not fit the schema.",
    429: "Too many images in flight; see Retry-After.",
    500: "A bug.",
    503: "Not ready, draining, or the engine failed.",
    504: "Not done within the deadline.",
}


def documented(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of these statuses, each with a body of type `model`."""
    return {status: {"model": model, "description": _REASONS[status]} for status in statuses}


OPENAI_ERRORS = documented(ErrorResponse, *_REASONS)


def admit(request: Request, model: Model, codec: Codec, expected_space: str | None, images: int) -> None:
    """Check that `model` has the precision and space that `request` expects, and put both into its answer's headers."""
    request.state.space, request.state.precision = codec.space, model.about.precision
    request.state.model, request.state.images = model.about.name, images
    model.check_space(codec, expected_space)
    model.check_space(codec, request.headers.get(SPACE_HEADER))
    model.check_precision(request.headers.get(PRECISION_HEADER))


def embeddings(
    model: Model,
    codec: Codec,
    outcomes: Sequence[Outcome],
    encoding: str,
    *,
    selection: bool = False,
    by_item: bool = False,
) -> Response:
    """Return the answer of OpenAI's protocol; unless vectors are float32, it says how to read them.

    Args:
        model: the model that embedded the images.
        codec: encodes the vectors.
        outcomes: results of the images, in order; problems only with `by_item`.
        encoding: "float" or "base64".
        selection: include the weights of the patches.
        by_item: include the problems.

    """
    results = {index: each for index, each in enumerate(outcomes) if isinstance(each, EmbeddingResult)}
    count = len(results) * model.tokens
    codes = encoded(codec, outcomes)
    content = {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(codes[index], encoding),
                **({"selection": result.selection.tolist()} if selection and result.selection is not None else {}),
            }
            for index, result in results.items()
        ],
        **({"errors": _problems(outcomes)} if by_item else {}),
        "model": model.about.name,
        "embedding_space": codec.space,
        "precision": model.about.precision,
        **({} if codec.store == "fp32" else {"storage": codec.labels()}),
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }
    return Response(msgspec.json.encode(content), media_type="application/json", headers=timing([*results.values()]))


def encoded(codec: Codec, outcomes: Sequence[Outcome]) -> np.ndarray:
    """Return the codes of all outcomes (n, width); the rows of problems are 0."""
    codes = np.zeros((len(outcomes), codec.width), codec.dtype)
    rows = [index for index, each in enumerate(outcomes) if isinstance(each, EmbeddingResult)]
    if rows:
        codes[rows] = codec.encode(np.stack([each.vector for each in outcomes if isinstance(each, EmbeddingResult)]))
    return codes


def _problems(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [{"index": index, **describe(each)} for index, each in enumerate(outcomes) if isinstance(each, Problem)]


def timing(results: Sequence[EmbeddingResult]) -> dict[str, str]:
    """Return the W3C Server-Timing header: milliseconds of the slowest image in each stage; no header without an image."""
    if not results:
        return {}
    stages = {
        "decode": max(result.decode_s for result in results),
        "queue": max(result.queue_s for result in results),
        "inference": max(result.inference_s for result in results),
    }
    return {"Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages.items())}


def _encoded(codes: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        return codes.tolist()  # type: ignore[no-any-return]
    return base64.b64encode(codes.tobytes()).decode()
