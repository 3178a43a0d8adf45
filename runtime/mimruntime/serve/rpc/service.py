"""The gRPC calls of the service; each gives the same answer as over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio

from mimruntime.errors import MimError
from mimruntime.serve.observability import GOOD_ID, PRECISION_HEADER, REQUEST_ID_HEADER, SPACE_HEADER, record_request
from mimruntime.serve.parts import Parts
from mimruntime.serve.problems import Problem, from_error
from mimruntime.serve.protocols.kserve import EXTENSIONS
from mimruntime.serve.protocols.kserve_about import configuration, describe_model
from mimruntime.serve.protocols.kserve_infer import read_request, write_answer
from mimruntime.serve.protocols.offload import parse
from mimruntime.serve.protocols.tensors import read_images
from mimruntime.serve.rpc import convert
from mimruntime.serve.rpc.messages import HEALTH, NOT_SERVING, SERVICE, SERVING

_LOG = logging.getLogger("mimexport")
_SMALL = 4096
"""Largest size in bytes of a message without images."""
_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC statuses by HTTP status; other HTTP statuses are errors of the request: INVALID_ARGUMENT."""


@dataclass(slots=True)
class _Call:
    """One call: its metadata, and the fields of its log line."""

    metadata: Mapping[str, Any]
    about: dict[str, Any] = field(default_factory=dict)


_Work = Callable[[bytes, _Call], Awaitable[bytes]]


class Service:
    """Handlers of all calls; a message is read only after the call is admitted."""

    def __init__(self, parts: Parts) -> None:
        self._models = parts.models
        self._settings = settings = parts.settings
        self._keys = parts.keys
        self._lifecycle = parts.lifecycle
        self._metrics = parts.metrics
        self._buffer = parts.buffer
        self._version = parts.version
        # The size of a message is known only when it has arrived, and gRPC then holds it twice. So limit how many arrive.
        self._arriving = asyncio.Semaphore(max(1, settings.max_buffered // (2 * settings.max_body)))

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Return the handlers by gRPC service."""
        of_protocol = {
            "ServerLive": self._handler(f"/{SERVICE}/ServerLive", self._live, is_open=True),
            "ServerReady": self._handler(f"/{SERVICE}/ServerReady", self._ready, is_open=True),
            "ModelReady": self._handler(f"/{SERVICE}/ModelReady", self._model_ready),
            "ServerMetadata": self._handler(f"/{SERVICE}/ServerMetadata", self._server_metadata),
            "ModelMetadata": self._handler(f"/{SERVICE}/ModelMetadata", self._model_metadata),
            "ModelConfig": self._handler(f"/{SERVICE}/ModelConfig", self._model_config),
            "ModelStatistics": self._handler(f"/{SERVICE}/ModelStatistics", self._model_statistics),
            "ModelInfer": self._handler(f"/{SERVICE}/ModelInfer", self._infer, has_images=True),
        }
        of_health = {"Check": self._handler(f"/{HEALTH}/Check", self._health, is_open=True)}
        return [
            grpc.method_handlers_generic_handler(SERVICE, of_protocol),
            grpc.method_handlers_generic_handler(HEALTH, of_health),
            _Rest(lambda path: self._handler(path, _refuse, endpoint="none", is_open=True)),
        ]

    def _handler(
        self, path: str, work: _Work, *, endpoint: str | None = None, is_open: bool = False, has_images: bool = False
    ) -> Any:
        """Return the handler of one call; on the wire it is unary, although the handler reads a stream.

        Args:
            path: the call's path, for the log.
            work: answers a message.
            endpoint: the path in metrics, if it is another.
            is_open: answer without a key and without reading the message.
            has_images: the message may be as large as `max_body`, and needs room in a queue.

        """

        async def answer(_: object, context: Any) -> bytes:
            call = _Call(dict(context.invocation_metadata() or ()))
            given = str(call.metadata.get(REQUEST_ID_HEADER.lower(), ""))
            request_id = given if GOOD_ID.fullmatch(given) else uuid.uuid4().hex
            status, started = grpc.StatusCode.CANCELLED, time.monotonic()
            context.set_trailing_metadata(((REQUEST_ID_HEADER.lower(), request_id),))
            problem = None
            with self._lifecycle.request():
                try:
                    reply = await self._serve(work, context, call, is_open=is_open, has_images=has_images)
                    status = grpc.StatusCode.OK
                    return reply
                except Exception as error:
                    problem = _problem(error)
                    status = _STATUS.get(problem.status_code, grpc.StatusCode.INVALID_ARGUMENT)
                finally:
                    seen = {
                        "request_id": request_id,
                        "method": "POST",
                        "path": path,
                        "status": status.name,
                        **call.about,
                        "reason": problem.code if problem else ("cancelled" if status.name == "CANCELLED" else None),
                        "client": context.peer(),
                        "scheme": "grpc",
                    }
                    failed, seconds = status is not grpc.StatusCode.OK, time.monotonic() - started
                    record_request(self._metrics, endpoint or path, "POST", status.name, seconds, seen, failed=failed)
            await context.abort(status, problem.detail, _trailing(problem, request_id))
            raise problem  # abort has raised

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _serve(self, work: _Work, context: Any, call: _Call, *, is_open: bool, has_images: bool) -> bytes:
        if is_open:  # its message is not read, so it cannot occupy memory or a slot
            return await work(b"", call)
        if self._keys and not self._keys.is_known(str(call.metadata.get("authorization", "")).encode()):
            raise Problem(401, "invalid_api_key", "send a valid key as metadata 'authorization: Bearer KEY'")
        self._lifecycle.check_open()
        if has_images:
            self._models.check_room()
        message = await self._read(context)
        if not has_images and len(message) > _SMALL:
            raise Problem(413, "body_too_large", f"the message is over {_SMALL:,} bytes")
        with self._buffer.holding(len(message)):
            return await work(message, call)

    async def _read(self, context: Any) -> bytes:
        try:
            async with asyncio.timeout(self._settings.body_timeout_s), self._arriving:
                message = await context.read()  # an iterator would keep the message until garbage collection
        except TimeoutError as error:
            raise Problem(408, "too_slow", f"not whole within {self._settings.body_timeout_s:g} s") from error
        if message is aio.EOF:
            # So it also looks where gRPC's library has refused the message for its size; the client is told that.
            raise Problem(400, "no_message", "the call has no message")
        return bytes(message)

    async def _live(self, _: bytes, __: _Call) -> bytes:
        try:
            self._models.check_live()
        except Problem:
            return convert.write("ServerLiveResponse", live=False)
        return convert.write("ServerLiveResponse", live=True)

    async def _ready(self, _: bytes, __: _Call) -> bytes:
        return convert.write("ServerReadyResponse", ready=self._is_ready())

    async def _health(self, _: bytes, __: _Call) -> bytes:
        return convert.write("HealthCheckResponse", status=SERVING if self._is_ready() else NOT_SERVING)

    def _is_ready(self) -> bool:
        try:
            self._lifecycle.check_open()
            self._models.check_ready()
        except Problem:
            return False
        return True

    async def _model_ready(self, message: bytes, _: _Call) -> bytes:
        model = self._models.find(convert.read_name(message))
        try:
            model.check_ready()
        except Problem:
            return convert.write("ModelReadyResponse", ready=False)
        return convert.write("ModelReadyResponse", ready=True)

    async def _server_metadata(self, _: bytes, __: _Call) -> bytes:
        return convert.write(
            "ServerMetadataResponse", name="mimexport", version=self._version, extensions=[*EXTENSIONS]
        )

    async def _model_metadata(self, message: bytes, _: _Call) -> bytes:
        return convert.write_metadata(describe_model(self._models.find(convert.read_name(message))))

    async def _model_config(self, message: bytes, _: _Call) -> bytes:
        model = self._models.find(convert.read_name(message))
        return convert.write_config(configuration(model, self._settings.max_items, self._settings.max_delay_ms))

    async def _model_statistics(self, message: bytes, _: _Call) -> bytes:
        """Return the statistics of one model, or of all if none is named."""
        name = convert.read_name(message)
        models = [self._models.find(name)] if name else [*self._models]
        stats = [model.statistics.describe(model.about.name) for model in models]
        return convert.write("ModelStatisticsResponse", model_stats=stats)

    async def _infer(self, message: bytes, call: _Call) -> bytes:
        name, asked, raw = await parse(convert.read_infer, message, self._settings.max_items)
        model = self._models.find(name)
        inference = read_request(model, asked)
        count = asked.inputs[0].shape[0]
        call.about |= {"model": model.about.name, "images": count}
        for expected in (inference.expected_space, call.metadata.get(SPACE_HEADER.lower())):
            model.check_space(inference.codec, None if expected is None else str(expected))
        precision = call.metadata.get(PRECISION_HEADER.lower())
        model.check_precision(None if precision is None else str(precision))
        model.check_request(count)
        images = await parse(lambda _: read_images(asked, memoryview(raw), model.manifest.preprocess.size), raw)
        outcomes = await model.embed(images, param="inputs[0]", by_item=inference.by_item)
        return convert.write_infer(*write_answer(inference, outcomes))


class _Rest(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Takes the calls that no handler before it takes, so that they are counted and logged too."""

    def __init__(self, handler: Callable[[str], Any]) -> None:
        self._handler = handler

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a call."""
        return self._handler(handler_call_details.method)


async def _refuse(_: bytes, __: _Call) -> bytes:
    raise Problem(501, "method_not_found", f"no such method; {SERVICE} and {HEALTH} are served")


def _problem(error: Exception) -> Problem:
    """Return the problem without its traceback, whose frames would keep the message until the next garbage collection."""
    if isinstance(error, Problem):
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    if isinstance(error, MimError):
        return from_error(error)
    _LOG.error("a call failed", exc_info=error)
    return Problem(500, "internal_error", "the service failed on this request; its log says why")


def _trailing(problem: Problem, request_id: str) -> tuple[tuple[str, str], ...]:
    """Return the trailing metadata; where a retry may help, with the pause that gRPC clients wait before it."""
    pause_s = (problem.headers or {}).get("Retry-After")
    retry = () if pause_s is None else (("grpc-retry-pushback-ms", str(1000 * int(pause_s))),)
    return ((REQUEST_ID_HEADER.lower(), request_id), *retry)
