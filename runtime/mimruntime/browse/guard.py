"""Check the host, the key and the origin of each request, and add the browser's security headers to each answer."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimruntime.serve.admission.keys import Keys

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class GuardMiddleware:
    """ASGI middleware: refuse requests from other sites or without the key.

    Args:
        app: the application.
        hosts: allowed names in `Host`, without the port. A foreign page whose name was bound to this address (DNS
            rebinding) sends its own name. Empty allows all, since then there is a key.
        key: the required key, in a cookie that `/?key=KEY` sets; None requires no key.

    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...], key: str | None) -> None:
        self._app = app
        self._hosts = hosts
        self._keys = Keys((key,) if key else (), None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        refused = self._refuse(scope, Headers(scope=scope))
        await (refused or self._app)(scope, receive, send_guarded)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("Host", "")
        if self._hosts and _without_port(host) not in self._hosts:
            return PlainTextResponse(f"Nothing is served here under this name; expected {self._hosts[0]}", 421)
        if self._keys and not self._has_key(scope, headers):
            return self._take_key(scope)
        if scope["method"] != "GET" and not _is_own(headers, host):
            return PlainTextResponse("A page of another site asked for this", 403)
        return None

    def _has_key(self, scope: Scope, headers: Headers) -> bool:
        # Not with `http.cookies`, which stops at a cookie of another server that it finds malformed.
        return self._is_key(cookie_parser(headers.get("Cookie", "")).get(_cookie_name(scope), ""))

    def _take_key(self, scope: Scope) -> Response:
        (given,) = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[:1]
        if scope["path"] != "/" or scope["method"] != "GET" or not self._is_key(given):
            return PlainTextResponse("Open the address that `mimexport browse` printed; it ends in ?key=…", 401)
        answer = RedirectResponse("/", 303)
        # Not "strict", with which a browser that comes from a file or another site does not send it after this redirect.
        answer.set_cookie(_cookie_name(scope), given, httponly=True, samesite="lax")
        return answer

    def _is_key(self, given: str) -> bool:
        return self._keys.is_known(b"Bearer " + given.encode(errors="replace"))


def _cookie_name(scope: Scope) -> str:
    """Return a name of this server's own: cookies of a host go to all its ports."""
    return f"mimexport-key-{scope['server'][1]}"


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()


def _is_own(headers: Headers, host: str) -> bool:
    """Return whether a request comes from this page or from no page."""
    if "Sec-Fetch-Site" in headers:
        return headers["Sec-Fetch-Site"] in {"same-origin", "none"}
    origin = headers.get("Origin")
    return origin is None or origin.partition("://")[2] == host
