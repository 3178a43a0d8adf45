"""Error answers: one table of causes, and the body in the form that each protocol's clients expect."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
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
"""Never sent; logs and metrics use it for a client that disconnected."""

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
"""Largest number of characters in a message."""
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class Problem(HTTPException):
    """An answer other than 200.

    Args:
        status: the HTTP status.
        code: a stable word for programs.
        message: a line for people that says what to do.
        param: the part of the request that is at fault, such as "input[3]".
        retry_after_s: whole seconds after which the same request may succeed.
        close: also close the connection.

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
    """Return the text cut to a bounded length, without lone surrogates; it may repeat what a client sent."""
    return (text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…").encode(errors="replace").decode()


def from_error(error: MimError, *, param: str | None = None) -> Problem:
    """Return the answer for an error of the runtime."""
    status, code = next((cause for kind, cause in _CAUSES.items() if isinstance(error, kind)), (500, "internal_error"))
    return Problem(status, code, str(error), param=param, retry_after_s=1 if status == 503 else None)


def respond(request: Request, problem: Problem) -> JSONResponse:
    """Write `problem` in KServe's form under /v2, in OpenAI's form elsewhere."""
    request.state.reason = problem.code
    of_kserve = request.url.path.startswith("/v2")
    content: dict[str, Any] = {"error": problem.detail if of_kserve else describe(problem)}
    return JSONResponse(content, problem.status_code, problem.headers)


def describe(problem: Problem) -> dict[str, str | None]:
    """Return `problem` in OpenAI's form."""
    kind = _TYPES.get(problem.status_code, "server_error" if problem.status_code >= 500 else "invalid_request_error")
    return {"message": problem.detail, "type": kind, "param": problem.param, "code": problem.code}


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a `Problem`."""
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(MimError, _on_runtime_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    """Answer a `Problem`, or an error of the router."""
    if isinstance(error, Problem):
        return respond(request, error)
    assert isinstance(error, HTTPException)  # noqa: S101 - the handler is registered for this class
    problem = Problem(error.status_code, _CODES.get(error.status_code, "malformed"), error.detail)
    problem.headers = error.headers
    return respond(request, problem)


async def _on_runtime_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the runtime."""
    assert isinstance(error, MimError)  # noqa: S101 - the handler is registered for this class
    return respond(request, from_error(error))


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 to a query parameter or header that does not match the schema."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - the handler is registered for this class
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"][1:]))
    return respond(request, Problem(422, "schema", f"{where}: {first['msg']}", param=where))


async def _on_bug(request: Request, _: Exception) -> JSONResponse:
    """Answer an unexpected exception without its details, which are in the log."""
    return respond(request, Problem(500, "internal_error", "the service failed on this request; its log says why"))
