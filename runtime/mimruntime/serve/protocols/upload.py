"""`/v1/embeddings/image`: the bytes of a file as the body, or a form with files in it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.serve.execution.models import Models
from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols.answers import OPENAI_ERRORS, STORES, Encoding, Errors, OutputType, admit, embeddings
from mimruntime.serve.protocols.explanations import explain_no_file
from mimruntime.serve.protocols.forms import Form, read_form
from mimruntime.serve.protocols.offload import parse
from mimruntime.serve.protocols.openai import ExpectedPrecision, ExpectedSpace
from mimruntime.serve.protocols.schemas import EmbeddingResponse

_FILE = {"type": "string", "format": "binary"}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "array", "items": _FILE, "minItems": 1},
                        "model": {"type": "string", "format": "model-name"},
                    },
                    "required": ["file"],
                }
            },
        },
    }
}

ModelName = Annotated[
    str | None,
    Query(
        description="A name of `GET /v1/models`; optional if there is only one model.",
        json_schema_extra={"format": "model-name"},
    ),
]

Dimensions = Annotated[
    int | None,
    Query(
        ge=1,
        le=65_536,
        description="Keep the first dimensions, normalized again; only whitened vectors can be cut.",
        json_schema_extra={"format": "dim"},
    ),
]


def router(models: Models, max_items: int) -> APIRouter:
    """Return the route; a form has at most `max_items` files."""
    routes = APIRouter(prefix="/v1", tags=["Images"])

    @routes.post("/embeddings/image", response_model=EmbeddingResponse, responses=OPENAI_ERRORS, openapi_extra=_BODY)
    async def embed_files(
        request: Request,
        model: ModelName = None,
        encoding_format: Encoding = "float",
        output_dtype: OutputType = "float",
        dimensions: Dimensions = None,
        selection: bool = False,
        errors: Errors = "request",
        _: ExpectedSpace = None,
        __: ExpectedPrecision = None,
    ) -> Response:
        """Embed the file in the body, or every file of a form in its order."""
        form = await _read(request, max_items)
        if form.model and model and form.model != model:
            raise Problem(400, "malformed", "the URL and the form name different models; name one", param="model")
        chosen = models.find(model or form.model)
        codec = chosen.codec(STORES[output_dtype], dimensions, param="output_dtype")
        if selection:
            chosen.check_selection(param="selection")
        admit(request, chosen, codec, None, len(form.files))
        by_item = errors == "item"
        outcomes = await chosen.embed(form.files, param="file", by_item=by_item)
        return embeddings(chosen, codec, outcomes, encoding_format, selection=selection, by_item=by_item)

    return routes


async def _read(request: Request, max_items: int) -> Form:
    """Return the encoded files; a body that is not a form is one file, whatever its type: curl sends any data as a form."""
    body, kind = await request.body(), request.headers.get("Content-Type", "")
    if kind.startswith("multipart/form-data"):
        return await parse(read_form, body, kind, max_items)
    if explained := explain_no_file(body, kind):
        raise Problem(400, "malformed", explained, param="file")
    return Form([body], None)
