"""OpenAI's protocol: `/v1/embeddings` and `/v1/models`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.manifest import Precision
from mimruntime.serve.execution.model import Model
from mimruntime.serve.execution.models import Models
from mimruntime.serve.observability import PRECISION_HEADER, SPACE_HEADER
from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols.answers import OPENAI_ERRORS, STORES, admit, documented, embeddings
from mimruntime.serve.protocols.explanations import explain_input, explain_no_json
from mimruntime.serve.protocols.jsonbody import check_ascii, check_marks, decode, measure
from mimruntime.serve.protocols.offload import parse
from mimruntime.serve.protocols.remote import Fetcher
from mimruntime.serve.protocols.schemas import (
    EXAMPLE_IMAGE,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    ImageItem,
    ModelCard,
    ModelList,
    json_body,
)

ExpectedSpace = Annotated[
    str | None,
    Header(
        alias=SPACE_HEADER,
        description="Answer 409 unless the model has this space.",
        json_schema_extra={"format": "embedding-space"},
    ),
]
ExpectedPrecision = Annotated[
    Precision | None,
    Header(alias=PRECISION_HEADER, description="Answer 409 unless the model computes in it."),
]

_BODY = json_body(EmbeddingRequest, examples=[{"input": EXAMPLE_IMAGE, "model": "mae-tiny-topk"}])
_COMMAS = 1024
_COMMAS_PER_ITEM = 16
"""Commas per image: an item has three, and its URL may have some."""


def router(models: Models, fetcher: Fetcher, max_items: int) -> APIRouter:
    """Return the protocol's routes; a request has at most `max_items` images."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    @routes.post("/embeddings", response_model=EmbeddingResponse, responses=OPENAI_ERRORS, openapi_extra=_BODY)
    async def embed(request: Request, _: ExpectedSpace = None, __: ExpectedPrecision = None) -> Response:
        """Embed images given as data URIs; the order is kept."""
        body = await parse(_decode, await request.body(), max_items)
        model = models.find(body.model)
        codec = model.codec(STORES[body.output_dtype], body.dimensions, param="output_dtype")
        if body.selection:
            model.check_selection(param="selection")
        locations = _locations(body)
        admit(request, model, codec, body.embedding_space, len(locations))
        model.check_request(len(locations))
        by_item = body.errors == "item"
        async with fetcher.resolve(locations, by_item=by_item) as sources:
            outcomes = await model.embed(sources, by_item=by_item)
        return embeddings(model, codec, outcomes, body.encoding_format, selection=body.selection, by_item=by_item)

    @routes.get("/models", responses=documented(ErrorResponse, 401, 503))
    async def list_models() -> ModelList:
        """List the served models, and the engines that run them."""
        return ModelList(object="list", data=[_card(model) for model in models])

    return routes


def _decode(text: bytes, max_items: int) -> EmbeddingRequest:
    check_marks(text, _COMMAS + _COMMAS_PER_ITEM * max_items)
    try:
        images = measure(text, EmbeddingRequest, large="input")
    except Problem as problem:
        explained = explain_no_json(text) if problem.status_code == 400 else None
        raise Problem(400, problem.code, explained) if explained else problem from None
    check_ascii(images, "input")
    try:
        return decode(text, EmbeddingRequest)
    except Problem as problem:
        raise explain_input(problem, images) from None


def _locations(body: EmbeddingRequest) -> list[str]:
    items = body.input if isinstance(body.input, list) else [body.input]
    return [item.image_url.url if isinstance(item, ImageItem) else item for item in items]


def _card(model: Model) -> ModelCard:
    about = model.about
    return ModelCard(
        id=about.name,
        object="model",
        created=int(datetime.fromisoformat(model.manifest.created).timestamp()),
        owned_by="mimexport",
        dim=about.dim,
        embedding_space=about.space,
        engine=about.engine,
        provider=about.provider,
        precision=about.precision,
    )
