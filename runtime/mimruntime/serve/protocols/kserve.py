"""KServe's Open Inference Protocol v2, as Triton's clients speak it: `/v2`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path
from msgspec import Raw
from starlette.requests import Request
from starlette.responses import Response

from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.admission.queue import EmbeddingResult
from mimruntime.serve.execution.model import Model, Models, Outcome
from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols.answers import admit, documented, encoded, timing
from mimruntime.serve.protocols.jsonbody import check_marks, decode, measure
from mimruntime.serve.protocols.offload import parse
from mimruntime.serve.protocols.openai import ExpectedSpace
from mimruntime.serve.protocols.schemas import json_body
from mimruntime.serve.protocols.schemas_kserve import (
    InferRequest,
    InferResponse,
    InputTensor,
    KserveError,
    ModelMetadata,
    ServerMetadata,
    TensorMetadata,
)
from mimruntime.serve.protocols.tensors import HEADER_LENGTH, read_images, split_body, write_numbers, write_texts
from mimruntime.storage import Codec, Store

_INFER_ERRORS = documented(KserveError, 400, 401, 404, 408, 409, 413, 415, 422, 429, 500, 503, 504)
_READ_ERRORS = documented(KserveError, 401, 404, 503)
_BODY = json_body(InferRequest)
STORES: dict[str, Store] = {"FP32": "fp32", "FP16": "fp16", "INT8": "int8", "UINT8": "bits"}
"""How vectors are stored, by the protocol's names; UINT8 are bits, eight to a number."""
_COMMAS = 4096
_MOST_NUMBERS = 8_000_000
"""Of pixels in JSON, which take four bytes each; the binary extension has no such limit."""

ModelName = Annotated[str, Path(json_schema_extra={"format": "model-name"})]


def router(models: Models, lifecycle: Lifecycle, version: str, max_items: int) -> APIRouter:
    """Return the protocol's routes; a request has at most `max_items` images."""
    routes = APIRouter(prefix="/v2", tags=["KServe v2"])

    @routes.get("", responses=documented(KserveError, 401, 503))
    async def server() -> ServerMetadata:
        """Say what this server is."""
        return ServerMetadata(name="mimexport", version=version, extensions=["binary_tensor_data"])

    @routes.get("/health/live", responses=documented(KserveError, 503))
    async def live() -> dict[str, bool]:
        """Answer 503 where only a restart helps."""
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
        return _metadata(models.find(model))

    @routes.get("/models/{model}/ready", responses=_READ_ERRORS)
    async def model_ready(model: ModelName) -> dict[str, Any]:
        """Answer 200 once this model has embedded."""
        models.find(model).check_ready()
        return {"name": model, "ready": True}

    @routes.post("/models/{model}/infer", response_model=InferResponse, responses=_INFER_ERRORS, openapi_extra=_BODY)
    async def infer(request: Request, model: ModelName, _: ExpectedSpace = None) -> Response:
        """Embed `pixels` or encoded images, in JSON or in the binary-tensor extension."""
        chosen = models.find(model)
        edge = chosen.manifest.preprocess.size
        text, binary = split_body(await request.body(), request.headers.get(HEADER_LENGTH))
        asked = await parse(_decode, text, min(max_items * edge * edge * 3, _MOST_NUMBERS))
        expected = asked.parameters.get("embedding_space")
        codec = _codec(chosen, asked)
        count = asked.inputs[0].shape[0]
        admit(request, chosen, codec, None if expected is None else str(expected), count)
        chosen.check_request(count)
        images = await parse(lambda _: read_images(asked, binary, edge), text)
        by_item = _by_item(asked)
        return _answer(chosen, codec, asked, await chosen.embed(images, param="inputs[0]", by_item=by_item))

    return routes


def _decode(text: bytes, most_numbers: int) -> InferRequest:
    check_marks(text, _COMMAS + most_numbers)
    inputs = measure(text, InferRequest, large="inputs")
    if memoryview(inputs):
        (tensor,) = decode(inputs, tuple[Raw], at="inputs")
        measure(tensor, InputTensor, large="data", at="inputs[0]")
    return decode(text, InferRequest)


def _codec(model: Model, asked: InferRequest) -> Codec:
    """Return how the output is wanted: its parameters may have `datatype` and `dimensions`.

    Raises:
        Problem: 400, what is not known or not to be had, or FP16 in JSON, where the protocol has none.

    """
    wanted = asked.outputs[0].parameters if asked.outputs else {}
    datatype, dimensions = wanted.get("datatype", "FP32"), wanted.get("dimensions")
    if datatype not in STORES:
        raise Problem(400, "malformed", f"outputs[0] has the datatype '{datatype}'; expected {', '.join(STORES)}")
    if dimensions is not None and type(dimensions) is not int:
        raise Problem(400, "malformed", f"outputs[0] has '{dimensions}' dimensions; expected a whole number")
    if datatype == "FP16" and not _is_binary(asked):
        raise Problem(400, "malformed", "FP16 has no form in JSON; ask for it with binary_data")
    return model.codec(STORES[str(datatype)], dimensions, param="outputs[0]")


def _by_item(asked: InferRequest) -> bool:
    """Return whether an image at fault has its error in an output `error`, as the parameter `errors` asks."""
    wanted = asked.parameters.get("errors", "request")
    if wanted not in {"request", "item"}:
        raise Problem(400, "malformed", f"the parameter 'errors' is '{wanted}'; expected 'request' or 'item'")
    return wanted == "item"


def _is_binary(asked: InferRequest) -> bool:
    wanted = asked.outputs[0].parameters.get("binary_data") if asked.outputs else None
    return bool(asked.parameters.get("binary_data_output", False) if wanted is None else wanted)


def _answer(model: Model, codec: Codec, asked: InferRequest, outcomes: list[Outcome]) -> Response:
    binary = _is_binary(asked)
    datatype = next(name for name, store in STORES.items() if store == codec.store)
    outputs = [write_numbers("embedding", encoded(codec, outcomes), datatype, binary=binary)]
    if _by_item(asked):
        texts = [each.detail if isinstance(each, Problem) else "" for each in outcomes]
        outputs.append(write_texts("error", texts, binary=binary))
    header = msgspec.json.encode(
        {
            **({"id": asked.id} if asked.id is not None else {}),
            "model_name": model.about.name,
            "model_version": "1",
            "outputs": [tensor for tensor, _ in outputs],
            "parameters": {
                "embedding_space": codec.space,
                "precision": model.about.precision,
                **({} if codec.store == "fp32" else codec.labels()),
            },
        }
    )
    headers = timing([each for each in outcomes if isinstance(each, EmbeddingResult)])
    if binary:
        headers[HEADER_LENGTH] = str(len(header))
    kind = "application/octet-stream" if binary else "application/json"
    return Response(b"".join([header, *(raw for _, raw in outputs)]), media_type=kind, headers=headers)


def _metadata(model: Model) -> ModelMetadata:
    edge = model.manifest.preprocess.size
    return ModelMetadata(
        name=model.about.name,
        versions=["1"],
        platform=model.about.engine.partition(" ")[0],
        inputs=[
            TensorMetadata(name="pixels", datatype="UINT8", shape=[-1, edge, edge, 3]),
            TensorMetadata(name="image", datatype="BYTES", shape=[-1]),
        ],
        outputs=[TensorMetadata(name="embedding", datatype="FP32", shape=[-1, model.about.dim])],
        parameters={"embedding_space": model.about.space, "precision": model.about.precision},
    )
