"""KServe's Open Inference Protocol v2 for Triton's clients: `/v2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.admission.queue import EmbeddingResult
from mimruntime.serve.execution.model import Model, Outcome
from mimruntime.serve.execution.models import Models
from mimruntime.serve.protocols.answers import admit, documented, timing
from mimruntime.serve.protocols.jsonbody import check_marks, decode, measure
from mimruntime.serve.protocols.kserve_about import configuration, describe_model
from mimruntime.serve.protocols.kserve_infer import read_request, write_answer
from mimruntime.serve.protocols.offload import parse
from mimruntime.serve.protocols.openai import ExpectedPrecision, ExpectedSpace
from mimruntime.serve.protocols.schemas import json_body
from mimruntime.serve.protocols.schemas_kserve import (
    InferRequest,
    InferResponse,
    InputTensor,
    KserveError,
    ModelMetadata,
    ServerMetadata,
)
from mimruntime.serve.protocols.tensors import HEADER_LENGTH, read_images, split_body
from mimruntime.serve.settings import Settings

_INFER_ERRORS = documented(KserveError, 400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504)
_READ_ERRORS = documented(KserveError, 401, 404, 503)
_BODY = json_body(InferRequest)
EXTENSIONS = ("binary_tensor_data", "model_configuration", "statistics")
_COMMAS = 4096
_MOST_NUMBERS = 8_000_000
"""Limit of pixels in JSON, which take four bytes each; the binary extension has no such limit."""

ModelName = Annotated[str, Path(json_schema_extra={"format": "model-name"})]


def router(models: Models, lifecycle: Lifecycle, version: str, settings: Settings) -> APIRouter:
    """Return the protocol's routes."""
    max_items = settings.max_items
    routes = APIRouter(prefix="/v2", tags=["KServe v2"])

    @routes.get("", responses=documented(KserveError, 401, 503))
    async def server() -> ServerMetadata:
        """Describe this server."""
        return ServerMetadata(name="mimexport", version=version, extensions=[*EXTENSIONS])

    @routes.get("/health/live", responses=documented(KserveError, 503))
    async def live() -> dict[str, bool]:
        """Answer 503 if only a restart helps."""
        models.check_live()
        return {"live": True}

    @routes.get("/health/ready", responses=documented(KserveError, 503))
    async def ready() -> dict[str, bool]:
        """Answer 200 once every model has embedded, 503 while one cannot or the service drains."""
        lifecycle.check_open()
        models.check_ready()
        return {"ready": True}

    @routes.get("/models/{model}", responses=_READ_ERRORS)
    async def metadata(model: ModelName) -> ModelMetadata:
        """Describe a model's tensors."""
        return describe_model(models.find(model))

    @routes.get("/models/{model}/config", responses=_READ_ERRORS)
    async def config(model: ModelName) -> dict[str, Any]:
        """Return the configuration in Triton's form."""
        return configuration(models.find(model), max_items, settings.max_delay_ms)

    @routes.get("/models/{model}/stats", responses=_READ_ERRORS)
    async def stats(model: ModelName) -> dict[str, Any]:
        """Return counts and times in Triton's form, of this process since it started."""
        return {"model_stats": [models.find(model).statistics.describe(model)]}

    @routes.get("/models/{model}/ready", responses=_READ_ERRORS)
    async def model_ready(model: ModelName) -> dict[str, Any]:
        """Answer 200 once this model has embedded."""
        models.find(model).check_ready()
        return {"name": model, "ready": True}

    @routes.post("/models/{model}/infer", response_model=InferResponse, responses=_INFER_ERRORS, openapi_extra=_BODY)
    async def infer(
        request: Request, model: ModelName, _: ExpectedSpace = None, __: ExpectedPrecision = None
    ) -> Response:
        """Embed `pixels` or encoded images, in JSON or in the binary-tensor extension."""
        return await _infer(request, models.find(model), max_items)

    return routes


async def _infer(request: Request, model: Model, max_items: int) -> Response:
    edge = model.manifest.preprocess.size
    text, binary = split_body(await request.body(), request.headers.get(HEADER_LENGTH))
    asked = await parse(_decode, text, min(max_items * edge * edge * 3, _MOST_NUMBERS))
    inference = read_request(model, asked)
    count = asked.inputs[0].shape[0]
    admit(request, model, inference.codec, inference.expected_space, count)
    model.check_request(count)
    images = await parse(lambda _: read_images(asked, binary, edge), text)
    outcomes = await model.embed(images, param="inputs[0]", by_item=inference.by_item)
    header, raws = write_answer(inference, outcomes)
    return _respond(header, raws, outcomes)


def _decode(text: bytes, most_numbers: int) -> InferRequest:
    check_marks(text, _COMMAS + most_numbers)
    inputs = measure(text, InferRequest, large="inputs")
    if memoryview(inputs):
        (tensor,) = decode(inputs, tuple[Raw], at="inputs")
        measure(tensor, InputTensor, large="data", at="inputs[0]")
    return decode(text, InferRequest)


def _respond(header: dict[str, Any], raws: list[bytes], outcomes: Sequence[Outcome]) -> Response:
    text, raw = msgspec.json.encode(header), b"".join(raws)
    headers = timing([each for each in outcomes if isinstance(each, EmbeddingResult)])
    if raw:
        headers[HEADER_LENGTH] = str(len(text))
    return Response(text + raw, media_type="application/octet-stream" if raw else "application/json", headers=headers)
