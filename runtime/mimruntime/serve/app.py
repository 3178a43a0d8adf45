"""The service as one ASGI application, its parts put together."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from mimruntime.cpus import available_cpus
from mimruntime.errors import MimError
from mimruntime.serve import health, kserve, openai, problems, upload
from mimruntime.serve.door import Door
from mimruntime.serve.lifecycle import Lifecycle
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.model import Model, Models, open_embedder
from mimruntime.serve.observe import Observe
from mimruntime.serve.remote import Fetcher
from mimruntime.serve.settings import Settings

_MOST_DECODERS = 8
_JOIN_S = 5.0


def create_app(settings: Settings) -> FastAPI:
    """Open every artifact and return the application; engines warm up once it is started.

    Raises:
        MimError: an artifact or engine that cannot be opened.

    """
    version = importlib.metadata.version("mimexport")
    metrics = Metrics(version)
    lifecycle = Lifecycle(settings.grace_s)
    pool = ThreadPoolExecutor(settings.decode_threads or min(available_cpus(), _MOST_DECODERS), "mimexport-decode")
    models = Models(Model(open_embedder(path, settings), settings, metrics, pool) for path in settings.artifacts)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        lifecycle.install()
        for model in models:
            model.executor.start()
        yield
        pool.shutdown(wait=False, cancel_futures=True)
        for model in models:
            model.executor.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_JOIN_S):
                await asyncio.gather(*(asyncio.to_thread(model.executor.join, _JOIN_S) for model in models))

    app = FastAPI(
        title="mimexport",
        version=version,
        description="Images in, vectors out.",
        lifespan=lifespan,
        docs_url=None,  # its page would fetch scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to a host that the request names
    )
    for router in (
        openai.router(models, Fetcher(settings.remote_hosts, settings.max_body), settings.max_items),
        upload.router(models, settings.max_items),
        kserve.router(models, lifecycle, version, settings.max_items),
        health.router(models, metrics, lifecycle, version),
    ):
        app.include_router(router)
    app.add_exception_handler(HTTPException, problems.on_http)
    app.add_exception_handler(MimError, problems.on_runtime_error)
    app.add_exception_handler(RequestValidationError, problems.on_invalid)
    app.add_exception_handler(Exception, problems.on_bug)
    app.add_middleware(Door, settings=settings, models=models, lifecycle=lifecycle)
    app.add_middleware(Observe, metrics=metrics, lifecycle=lifecycle, spaces=models.spaces)
    return app
