"""Check a request before it is parsed: key and limits; read its body within size and time limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimruntime.serve.admission.buffer import Buffer
from mimruntime.serve.admission.connection import TimeoutProtocol
from mimruntime.serve.admission.keys import Keys
from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.problems import Problem, respond
from mimruntime.serve.protocols.docs_page import PATHS
from mimruntime.serve.settings import Settings

OPEN_PATHS = frozenset(
    {"/live", "/ready", "/health", "/metrics", "/openapi.json", *PATHS, "/v2/health/live", "/v2/health/ready"}
)
"""Paths for load balancers, Prometheus and browsers: they need no key and work while the service drains."""

_LINGER_S = 5.0


class HungUpError(Exception):
    """The client disconnected; nobody reads an answer."""


class AdmissionMiddleware:
    """ASGI middleware: admit a request with its complete body, and cancel it when the client disconnects."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        keys: Keys,
        lifecycle: Lifecycle,
        buffer: Buffer,
        check_room: Callable[[], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._check_room = check_room
        self._lifecycle = lifecycle
        self._keys = keys
        self._buffer = buffer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            body = await self._read(receive, self._check(scope))
            await _until_hung_up(self._app, scope, receive, send, body)
        except Problem as problem:
            await _refuse(respond(Request(scope), problem), receive, send)
        except HungUpError:
            return
        finally:
            self._buffer.give(len(body))

    def _check(self, scope: Scope) -> int:
        """Refuse a request that needs no body to be refused; return the largest allowed size of its body in bytes."""
        headers = Headers(scope=scope)
        if "Content-Length" in headers and "Transfer-Encoding" in headers:
            # A proxy might use the other header; then the rest of the body would be read as the next request.
            raise Problem(400, "malformed", "both Content-Length and Transfer-Encoding; send one", close=True)
        if scope["path"] in OPEN_PATHS:
            _check_length(headers, 0)
            return 0
        if self._keys and not self._keys.is_known(headers.get("Authorization", "").encode("latin-1")):
            raise Problem(401, "invalid_api_key", "send a valid key as 'Authorization: Bearer KEY'")
        self._lifecycle.check_open()
        if TimeoutProtocol.open_connections > self._settings.max_connections:
            refusal = f"more than {self._settings.max_connections} connections are open"
            raise Problem(503, "too_many_connections", refusal, retry_after_s=1, close=True)
        if scope["method"] != "POST":
            return self._settings.max_body
        if headers.get("Content-Encoding", "identity") != "identity":
            raise Problem(
                415, "content_encoding", "the body has a Content-Encoding; send it uncompressed, without this header"
            )
        _check_length(headers, self._settings.max_body)
        self._check_room()
        return self._settings.max_body

    async def _read(self, receive: Receive, most: int) -> bytes:
        """Return the whole body of at most `most` bytes, read within the time limit, and count it as buffered."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                async for chunk in _chunks(receive):
                    body += chunk
                    self._buffer.take(len(chunk))
                    if len(body) > most:
                        raise _too_large(most)
            return bytes(body)
        except BaseException as error:
            self._buffer.give(len(body))
            if isinstance(error, TimeoutError):
                raise Problem(408, "too_slow", f"not whole within {self._settings.body_timeout_s:g} s") from error
            raise


def _check_length(headers: Headers, most: int) -> None:
    """Refuse a body whose Content-Length is over `most` bytes; h11 has checked that it is a number."""
    if int(headers.get("Content-Length", "0")) > most:
        raise _too_large(most)


def _too_large(most: int) -> Problem:
    return Problem(413, "body_too_large", f"the body is over {most:,} bytes" if most else "this path takes no body")


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HungUpError
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _refuse(response: Response, receive: Receive, send: Send) -> None:
    """Answer, then let the client finish sending: an early close could reset the connection before the client reads."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


async def _until_hung_up(app: ASGIApp, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
    """Run `app` on a body that is already read, and cancel it if the client disconnects before the answer is sent."""
    waiting: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])
    gone = asyncio.Event()
    answered = False

    async def replay() -> Message:
        for message in waiting:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send_noted(message: Message) -> None:
        nonlocal answered
        answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await send(message)

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    work = asyncio.ensure_future(app(scope, replay, send_noted))
    listener = asyncio.create_task(listen())
    try:
        await asyncio.wait({work, listener}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not answered:
            work.cancel()
            await asyncio.wait({work})
            raise HungUpError
        await work
    finally:
        listener.cancel()
        work.cancel()
