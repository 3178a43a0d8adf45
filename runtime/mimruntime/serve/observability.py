"""Give every request an id, response headers, metrics and a log line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.logs import ACCESS, FIELDS
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.problems import CLIENT_CLOSED

SPACE_HEADER = "X-Embedding-Space"
PRECISION_HEADER = "X-Embedding-Precision"
REQUEST_ID_HEADER = "X-Request-Id"

_ACCESS = logging.getLogger(ACCESS)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MOST_PATH, _MOST_CLIENT = 256, 64
"""Characters of a client's text that a log line may repeat."""
GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""A valid request id from a client."""


class ObservabilityMiddleware:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, lifecycle: Lifecycle, spaces: str, precisions: str) -> None:
        self._app = app
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._spaces = spaces
        self._precisions = precisions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and record its result."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
        status = CLIENT_CLOSED
        state = scope.setdefault("state", {})

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                headers.setdefault(SPACE_HEADER, state.get("space", self._spaces))
                headers.setdefault(PRECISION_HEADER, state.get("precision", self._precisions))
                if self._lifecycle.draining:
                    headers["Connection"] = "close"
            await send(message)

        # HEAD is GET without a body; the server leaves the body out.
        served = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        started = time.monotonic()
        with self._lifecycle.request():
            try:
                await self._app(served, receive, send_observed)
            finally:
                self._record(scope, served.get("route"), status, time.monotonic() - started, request_id)

    def _record(self, scope: Scope, route: Any, status: int, seconds: float, request_id: str) -> None:
        # Use the declared path and a known method, never the client's text: metrics must not grow with what clients send.
        endpoint = route.path if route else "none"
        method = scope["method"] if route and scope["method"] in _METHODS else "other"
        state = scope["state"]
        seen = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "model": state.get("model"),
            "images": state.get("images"),
            "reason": state.get("reason", "client_closed" if status == CLIENT_CLOSED else None),
            "client": (scope.get("client") or ("",))[0],
            "scheme": scope["scheme"],
        }
        record_request(self._metrics, endpoint, method, status, seconds, seen, failed=status >= 400)


def record_request(
    metrics: Metrics,
    endpoint: str,
    method: str,
    status: int | str,
    seconds: float,
    seen: dict[str, Any],
    *,
    failed: bool,
) -> None:
    """Count one request, and write its log line.

    Args:
        metrics: the service's metrics.
        endpoint: the declared path; paths as sent would let the metrics grow.
        method: one of a few known names.
        status: the number of an HTTP status, the name of a gRPC status.
        seconds: duration of the request.
        seen: fields of the log line.
        failed: whether it counts as a failure, with `seen["reason"]`.

    """
    metrics.requests.labels(endpoint, method, status).inc()
    metrics.request_seconds.labels(endpoint, method).observe(seconds)
    if failed:
        metrics.failures.labels(seen.get("reason") or "other").inc()
    if _ACCESS.isEnabledFor(logging.INFO):
        bounded = {"path": seen["path"][:_MOST_PATH], "client": seen["client"][:_MOST_CLIENT]}
        _ACCESS.info("request", extra={FIELDS: {**seen, **bounded, "ms": round(seconds * 1000, 3)}})
