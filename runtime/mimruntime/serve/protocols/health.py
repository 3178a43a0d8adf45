"""Routes about the service itself: liveness, readiness, information and metrics."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.execution.models import Models
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.protocols.answers import documented
from mimruntime.serve.protocols.schemas import ErrorResponse

_UNAVAILABLE = documented(ErrorResponse, 503)


def router(models: Models, metrics: Metrics, lifecycle: Lifecycle, version: str) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["Operation"])

    @routes.get("/live", responses=_UNAVAILABLE)
    async def live() -> dict[str, str]:
        """Answer 503 if only a restart helps."""
        models.check_live()
        return {"status": "live"}

    @routes.get("/ready", responses=_UNAVAILABLE)
    @routes.get("/health", responses=_UNAVAILABLE)
    async def ready() -> dict[str, str]:
        """Answer 200 once every model has embedded, 503 while one cannot or the service drains."""
        lifecycle.check_open()
        models.check_ready()
        return {"status": "ready"}

    @routes.get("/info", responses=documented(ErrorResponse, 401, 503))
    async def info() -> dict[str, Any]:
        """Return the manifest of every model, and the engine that runs it."""
        return {
            "version": version,
            "models": [
                {
                    **msgspec.to_builtins(model.about),
                    "ready": model.executor.ready,
                    "manifest": msgspec.to_builtins(model.manifest),
                }
                for model in models
            ],
        }

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def figures() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return routes
