"""Bodies of KServe's Open Inference Protocol, version 2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Parameters = Annotated[dict[str, bool | int | float | str], Field(description="Of the protocol's extensions.")]


class _Open(BaseModel):
    """Clients of the protocol add fields of extensions; those unknown are ignored."""

    model_config = ConfigDict(frozen=True)


class InputTensor(_Open):
    """An input: `pixels` UINT8 [B, H, W, 3], or `image` BYTES [B] of encoded files."""

    name: Literal["pixels", "image"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=1_000_000)]], Field(min_length=1, max_length=8)]
    datatype: Literal["UINT8", "BYTES"]
    parameters: Parameters = {}
    data: Annotated[list[Any], Field(description="Numbers row by row; base64 strings for BYTES.")] = []


class RequestedOutput(_Open):
    """An output that is asked for."""

    name: Literal["embedding"]
    parameters: Parameters = {}


class InferRequest(_Open):
    """`POST /v2/models/{model}/infer`."""

    id: Annotated[str, Field(max_length=256)] | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=1)]
    outputs: list[RequestedOutput] = []
    parameters: Parameters = {}


class TensorMetadata(BaseModel):
    """Name, type and shape of a tensor; -1 varies."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """`GET /v2/models/{model}`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]


class ServerMetadata(BaseModel):
    """`GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class OutputTensor(BaseModel):
    """An output."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = {}
    data: list[float] = []


class InferResponse(BaseModel):
    """The answer of `infer`."""

    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    parameters: dict[str, str]


class KserveError(BaseModel):
    """An answer other than 200."""

    error: str


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with its `$defs` put where they are referred to, so that it can stand inside OpenAPI."""
    definitions = schema.get("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(element) for element in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolve(value) for key, value in node.items() if key != "$defs"}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
