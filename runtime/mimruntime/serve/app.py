"""Assemble the service as one ASGI application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fastapi import FastAPI

from mimruntime.errors import needs
from mimruntime.serve import problems
from mimruntime.serve.admission.middleware import AdmissionMiddleware
from mimruntime.serve.observability import ObservabilityMiddleware
from mimruntime.serve.parts import Parts, open_parts
from mimruntime.serve.protocols import docs_page, health, kserve, openai, upload
from mimruntime.serve.protocols.remote import Fetcher
from mimruntime.serve.settings import Settings

_StartServer = Callable[[contextlib.AsyncExitStack, Parts], Awaitable[None]]


def create_app(settings: Settings, spaces: Sequence[str] | None = None) -> FastAPI:
    """Open every artifact and return the application; engines warm up when it starts.

    Args:
        settings: the service's settings.
        spaces: the expected embedding space of each artifact, in order; others are refused. None accepts all.

    Raises:
        MimError: an artifact or engine cannot be opened, the key file holds no key, or an extra is missing.

    """
    start_grpc = None if settings.grpc_port is None else _load_grpc()
    parts = open_parts(settings, spaces)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(parts.stop)
            parts.start()
            if start_grpc is not None:
                await start_grpc(stack, parts)
            yield

    app = FastAPI(
        title="mimexport",
        version=parts.version,
        description="Images in, vectors out.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page fetches scripts from other hosts; see docs_page
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go to the host named in the request
    )
    _add_routes(app, parts)
    _add_layers(app, parts)
    return app


def _add_routes(app: FastAPI, parts: Parts) -> None:
    models, lifecycle, settings = parts.models, parts.lifecycle, parts.settings
    fetcher = Fetcher(settings.remote_hosts, settings.max_body, parts.buffer)
    for router in (
        openai.router(models, fetcher, settings.max_items),
        upload.router(models, settings.max_items),
        kserve.router(models, lifecycle, parts.version, settings),
        health.router(models, parts.metrics, lifecycle, parts.version),
        docs_page.router(),
    ):
        app.include_router(router)
    if parts.keys:  # put the key into the schema, so that the page at /docs can send one
        schema = app.openapi()
        schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]


def _add_layers(app: FastAPI, parts: Parts) -> None:
    """Add the error answers and the middleware, the outermost last."""
    problems.install(app)
    app.add_middleware(
        AdmissionMiddleware,
        settings=parts.settings,
        keys=parts.keys,
        lifecycle=parts.lifecycle,
        buffer=parts.buffer,
        check_room=parts.models.check_room,
    )
    app.add_middleware(
        ObservabilityMiddleware,
        metrics=parts.metrics,
        lifecycle=parts.lifecycle,
        spaces=parts.models.spaces,
        precisions=parts.models.precisions,
    )


def _load_grpc() -> _StartServer:
    with needs("grpc", "--grpc-port"):
        from mimruntime.serve.rpc.server import start_server  # noqa: PLC0415 - an extra
    return start_server
