"""The service as one ASGI application, its parts put together."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mimruntime.cpus import decoding_threads
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import MimError, needs
from mimruntime.serve import problems
from mimruntime.serve.admission.buffer import Buffer
from mimruntime.serve.admission.keys import Keys
from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.admission.middleware import AdmissionMiddleware
from mimruntime.serve.execution.decoders import Decoders
from mimruntime.serve.execution.model import Model, Models
from mimruntime.serve.execution.opening import open_embedders
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.observability import ObservabilityMiddleware
from mimruntime.serve.protocols import docs_page, health, kserve, openai, upload
from mimruntime.serve.protocols.remote import Fetcher
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")


def create_app(settings: Settings, spaces: Sequence[str] | None = None) -> FastAPI:
    """Open every artifact and return the application; engines warm up once it is started.

    Args:
        settings: of the service.
        spaces: refuse artifacts of other embedding spaces, in order; None: take them as they are.

    Raises:
        MimError: an artifact or engine that cannot be opened, or no keys in their file.

    """
    version = importlib.metadata.version("mimexport")
    metrics = Metrics(version)
    lifecycle = Lifecycle(settings.grace_s)
    keys = Keys(settings.api_keys, settings.api_key_file)
    decoders = Decoders(settings.decode_threads or decoding_threads())
    buffer = Buffer(settings.max_buffered)
    start_grpc = None if settings.grpc_port is None else _load_grpc()
    models = _open_models(settings, spaces, metrics, decoders)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lifecycle.install()
        keys.install()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(stop)
            for model in models:
                model.executor.start()
            if start_grpc is not None:
                await start_grpc(stack, models, settings, keys, lifecycle, metrics, buffer, version)
            yield

    def stop() -> None:  # the process ends once these threads have
        decoders.close()
        for model in models:
            model.executor.stop()
        _LOG.info("stopped")

    app = FastAPI(
        title="mimexport",
        version=version,
        description="Images in, vectors out.",
        lifespan=lifespan,
        docs_url=None,  # its page would fetch scripts from elsewhere; see docs_page
        redoc_url=None,
        redirect_slashes=False,  # to a host that the request names
    )
    for router in (
        openai.router(models, Fetcher(settings.remote_hosts, settings.max_body), settings.max_items),
        upload.router(models, settings.max_items),
        kserve.router(models, lifecycle, version, settings),
        health.router(models, metrics, lifecycle, version),
        docs_page.router(),
    ):
        app.include_router(router)
    if keys:
        _ask_for_key(app)
    app.add_exception_handler(HTTPException, problems.on_http)
    app.add_exception_handler(MimError, problems.on_runtime_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(Exception, problems.on_bug)
    app.add_middleware(
        AdmissionMiddleware,
        settings=settings,
        keys=keys,
        lifecycle=lifecycle,
        buffer=buffer,
        check_room=models.check_room,
    )
    app.add_middleware(
        ObservabilityMiddleware,
        metrics=metrics,
        lifecycle=lifecycle,
        spaces=models.spaces,
        precisions=models.precisions,
    )
    return app


def _load_grpc() -> Callable[..., Awaitable[None]]:
    with needs("grpc", "--grpc-port"):
        from mimruntime.serve.rpc.server import start_server  # noqa: PLC0415 - an extra
    return start_server


def _ask_for_key(app: FastAPI) -> None:
    """Say in the schema that a key is asked for, so that the page at /docs can send one."""
    schema = app.openapi()
    schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]


def _open_models(settings: Settings, spaces: Sequence[str] | None, metrics: Metrics, decoders: Decoders) -> Models:
    """Open every artifact, or none."""
    with contextlib.ExitStack() as on_error:
        embedders = open_embedders(settings, on_error, spaces)
        budget = MemoryBudget(settings.max_decode_mb)
        models = Models(Model(name, embedder, settings, metrics, decoders, budget) for name, embedder in embedders)
        on_error.pop_all()
    return models
