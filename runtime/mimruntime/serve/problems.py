"""Every answer that is no success: one table of causes, written in the shape the protocol's clients read."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from mimruntime.errors import (
    EngineError,
    ImageError,
    ImageFormatError,
    ImageSizeError,
    MimError,
    PrecisionError,
    SpaceError,
    UnknownNameError,
)

CLIENT_CLOSED = 499
"""Never sent; what logs and metrics say of a client that hung up."""

_CAUSES: dict[type[MimError], tuple[int, str]] = {
    ImageFormatError: (415, "image_format"),
    ImageSizeError: (413, "image_too_large"),
    ImageError: (400, "image_undecodable"),
    PrecisionError: (409, "precision_differs"),
    SpaceError: (409, "embedding_space_differs"),
    UnknownNameError: (404, "model_not_found"),
    EngineError: (503, "engine_failed"),
}
"""Nearest class first."""

_MOST_SHOWN = 1000
"""Characters of a message."""
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class Problem(HTTPException):
    """An answer other than 200.

    Args:
        status: of HTTP.
        code: a word a program can rely on.
        message: a line a person can act on.
        param: the part of the request it is about, as "input[3]".
        retry_after_s: whole seconds after which the same request may succeed.
        close: end the connection with it.

    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        close: bool = False,
    ) -> None:
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if close:
            headers["Connection"] = "close"
        super().__init__(status, _shown(message), headers)
        self.code = code
        self.param = param and _shown(param)


def _shown(text: str) -> str:
    """Return a text that may repeat what came, of bounded length and without halves of characters."""
    return (text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…").encode(errors="replace").decode()


def from_error(error: MimError, *, param: str | None = None) -> Problem:
    """Return the answer an error of the runtime stands for."""
    status, code = next((cause for kind, cause in _CAUSES.items() if isinstance(error, kind)), (500, "internal_error"))
    return Problem(status, code, str(error), param=param, retry_after_s=1 if status == 503 else None)


def respond(request: Request, problem: Problem) -> JSONResponse:
    """Write `problem` as KServe's clients read it under /v2, as OpenAI's do elsewhere."""
    request.state.reason = problem.code
    of_kserve = request.url.path.startswith("/v2")
    content: dict[str, Any] = {"error": problem.detail if of_kserve else describe(problem)}
    return JSONResponse(content, problem.status_code, problem.headers)


def describe(problem: Problem) -> dict[str, str | None]:
    """Return `problem` as OpenAI's clients read it."""
    kind = _TYPES.get(problem.status_code, "server_error" if problem.status_code >= 500 else "invalid_request_error")
    return {"message": problem.detail, "type": kind, "param": problem.param, "code": problem.code}


async def on_http(request: Request, error: Exception) -> JSONResponse:
    """Answer a `Problem`, or what the router itself refuses."""
    if isinstance(error, Problem):
        return respond(request, error)
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for this class
    problem = Problem(error.status_code, _CODES.get(error.status_code, "malformed"), error.detail)
    problem.headers = error.headers
    return respond(request, problem)


async def on_runtime_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the runtime."""
    assert isinstance(error, MimError)  # noqa: S101 - the handler is registered for this class
    return respond(request, from_error(error))


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a parameter in the query or a header that does not fit the schema with 422."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for this class
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:]))
    return respond(request, Problem(422, "schema", f"{where}: {first['msg']}", param=where))


async def on_bug(request: Request, _: Exception) -> JSONResponse:
    """Answer what nobody foresaw, without its details; the log has them."""
    return respond(request, Problem(500, "internal_error", "the service failed on this request; its log says why"))
