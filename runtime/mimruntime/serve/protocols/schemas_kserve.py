"""Bodies of KServe's Open Inference Protocol, version 2."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from pydantic import BaseModel

from mimruntime.serve.protocols.schemas import one_of

Parameters = Annotated[
    dict[str, bool | int | float | str], Meta(description="Parameters of the protocol's extensions.")
]


class _Request(Struct, frozen=True, kw_only=True):
    """Unknown fields are ignored, since clients add fields of extensions."""


class InputTensor(_Request, frozen=True, kw_only=True):
    """An input: `pixels` UINT8 [B, H, W, 3], or `image` BYTES [B] of encoded files."""

    name: Annotated[str, one_of("pixels", "image")]
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1_000_000)]], Meta(min_length=1, max_length=8)]
    datatype: Annotated[str, one_of("UINT8", "BYTES")]
    parameters: Parameters = {}
    data: (
        Annotated[
            Raw,
            Meta(description="Numbers row by row; base64 strings for BYTES.", extra_json_schema={"type": "array"}),
        ]
        | UnsetType
    ) = UNSET


class RequestedOutput(_Request, frozen=True, kw_only=True):
    """A requested output; `parameters` may have `binary_data`, and for `embedding` also `datatype` and `dimensions`."""

    name: Annotated[str, one_of("embedding", "selection")]
    parameters: Parameters = {}


class InferRequest(_Request, frozen=True, kw_only=True):
    """`POST /v2/models/{model}/infer`."""

    id: Annotated[str, Meta(max_length=256)] | None = None
    inputs: tuple[InputTensor]
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
    data: list[float | str] = []


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
