"""Bodies of OpenAI's embedding protocol, with this project's additions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel, Field

from mimruntime.serve.execution.datauri import PATTERN

EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4UaEBAAN0AWnL+tDXAAAAAElFTkSuQmCC"
)
_SPACE_ID = "f2688f6e63b1f4ca"

Location = Annotated[
    str,
    Meta(
        pattern=f"{PATTERN}|^https://",
        description=(
            "`data:image/…;base64,…`, the bytes of an encoded image; or an `https` URL, fetched only where the operator"
            " allows its host."
        ),
        examples=[EXAMPLE_IMAGE],
        extra_json_schema={"format": "image-location"},
    ),
]


def one_of(*names: str, description: str | None = None) -> Meta:
    """Return a constraint of a string to `names`; unlike for a `Literal`, its error says what is expected."""
    return Meta(pattern=f"^({'|'.join(names)})$", description=description, extra_json_schema={"enum": list(names)})


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are refused, since a misspelt field would be ignored silently."""


class ImageUrl(_Request, frozen=True, kw_only=True):
    """The location of an image."""

    url: Location
    detail: Annotated[
        str, Meta(pattern="^[ -~]{0,64}$", description="Accepted from OpenAI's clients; has no effect.")
    ] = "auto"


class ImageItem(_Request, frozen=True, kw_only=True):
    """An image in the form of OpenAI's messages."""

    type: Annotated[str, one_of("image_url")]
    image_url: ImageUrl


class EmbeddingRequest(_Request, frozen=True, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Location | ImageItem | Annotated[list[Location | ImageItem], Meta(min_length=1)]
    model: Annotated[
        str, Meta(max_length=256, description="A name of `GET /v1/models`.", extra_json_schema={"format": "model-name"})
    ]
    encoding_format: Annotated[
        str, one_of("float", "base64", description="`base64` encodes the numbers in little-endian order.")
    ] = "float"
    output_dtype: Annotated[
        str,
        one_of(
            "float", "float16", "int8", "ubinary",
            description="`ubinary`: one bit per dimension, packed in bytes. `storage` in the answer says how to decode.",
        ),
    ] = "float"  # fmt: skip
    dimensions: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=65_536,
                description="Keep the first dimensions, normalized again; only whitened vectors can be cut.",
                extra_json_schema={"format": "dim"},
            ),
        ]
        | None
    ) = None
    selection: Annotated[bool, Meta(description="Also return the weight of every patch, if the artifact has it.")] = (
        False
    )
    errors: Annotated[
        str,
        one_of(
            "request", "item",
            description="`item`: an image at fault gets an error in `errors`; the others get vectors in `data`.",
        ),
    ] = "request"  # fmt: skip
    user: Annotated[str, Meta(max_length=1024, description="Accepted from OpenAI's clients; has no effect.")] | None = (
        None
    )
    embedding_space: (
        Annotated[
            str,
            Meta(
                max_length=64,
                description="Answer 409 unless the model has this space.",
                extra_json_schema={"format": "embedding-space"},
            ),
        ]
        | None
    ) = None


def json_body(kind: type[msgspec.Struct], **about: Any) -> dict[str, Any]:
    """Return the OpenAPI description of a body of type `kind`; `about` adds to its schema, such as `examples`."""
    schema = msgspec.json.schema(kind)
    content = {"application/json": {"schema": _inlined(schema, schema["$defs"]) | about}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """Return `node` with every reference replaced by its definition, so that OpenAPI can embed it."""
    if isinstance(node, list | tuple):
        return [_inlined(element, definitions) for element in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in node.items() if key != "$defs"}


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: Annotated[int, Field(ge=0, description="Position in the request.")]
    embedding: Annotated[
        list[float] | str, Field(description="The vector, of unit length in float; base64 of its numbers on request.")
    ]
    selection: Annotated[
        list[list[float]] | None,
        Field(description="On request: weights of the patches, rows from top, columns from left, after the crop."),
    ] = None


class Usage(BaseModel):
    """The number of patch tokens of all images."""

    prompt_tokens: int
    total_tokens: int


class ItemError(BaseModel):
    """The error of one image."""

    index: Annotated[int, Field(ge=0, description="Position in the request.")]
    message: str
    type: str
    param: str | None
    code: str


class EmbeddingResponse(BaseModel):
    """The vectors of one request, in its order."""

    object: Literal["list"]
    data: list[Embedding]
    errors: Annotated[list[ItemError] | None, Field(description="Only if the request has `errors: item`.")] = None
    model: str
    embedding_space: Annotated[str, Field(description="Compare only vectors of the same space.", examples=[_SPACE_ID])]
    precision: Annotated[str, Field(description="Precision of the matrix products.", examples=["fp32"])]
    storage: Annotated[
        dict[str, str] | None,
        Field(
            description="How to decode numbers other than float32: `mean + scale * number`; see docs/results/stored-precision.md."
        ),
    ] = None
    usage: Usage


class ModelCard(BaseModel):
    """One artifact that is served."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="Seconds since 1970, UTC.")]
    owned_by: str
    dim: int
    embedding_space: str
    engine: str
    provider: str
    precision: str


class ModelList(BaseModel):
    """Every artifact that is served."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """An answer other than 200."""

    error: ErrorBody
