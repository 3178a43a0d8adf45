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
    """Return the constraint of a string to `names`; other than of a `Literal`, its error says what is expected."""
    return Meta(pattern=f"^({'|'.join(names)})$", description=description, extra_json_schema={"enum": list(names)})


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields that are not known are refused: a misspelt one would be ignored in silence."""


class ImageUrl(_Request, frozen=True, kw_only=True):
    """Where an image is."""

    url: Location
    detail: Annotated[
        str, Meta(pattern="^[ -~]{0,64}$", description="Accepted from OpenAI's clients; has no effect.")
    ] = "auto"


class ImageItem(_Request, frozen=True, kw_only=True):
    """An image as OpenAI's messages write it."""

    type: Annotated[str, one_of("image_url")]
    image_url: ImageUrl


class EmbeddingRequest(_Request, frozen=True, kw_only=True):
    """`POST /v1/embeddings`."""

    input: Location | ImageItem | Annotated[list[Location | ImageItem], Meta(min_length=1)]
    model: Annotated[
        str, Meta(max_length=256, description="A name of `GET /v1/models`.", extra_json_schema={"format": "model-name"})
    ]
    encoding_format: Annotated[
        str, one_of("float", "base64", description="`base64`: of the numbers, little-endian.")
    ] = "float"
    output_dtype: Annotated[
        str,
        one_of(
            "float", "float16", "int8", "ubinary",
            description="`ubinary`: a bit a dimension, in bytes. How to read back is in `storage` of the answer.",
        ),
    ] = "float"  # fmt: skip
    dimensions: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=65_536,
                description="The first ones, unit length again; only whitened vectors are cut.",
                extra_json_schema={"format": "dim"},
            ),
        ]
        | None
    ) = None
    selection: Annotated[bool, Meta(description="Also give the weight of every patch, where the artifact has it.")] = (
        False
    )
    errors: Annotated[
        str,
        one_of(
            "request", "item",
            description="`item`: an image at fault has its error in `errors`, the others their vectors in `data`.",
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
                description="Answer 409 unless the model has this one.",
                extra_json_schema={"format": "embedding-space"},
            ),
        ]
        | None
    ) = None


def json_body(kind: type[msgspec.Struct], **about: Any) -> dict[str, Any]:
    """Return what OpenAPI says of a body that is decoded to `kind`; `about` goes into its schema, as `examples`."""
    schema = msgspec.json.schema(kind)
    content = {"application/json": {"schema": _inlined(schema, schema["$defs"]) | about}}
    return {"requestBody": {"required": True, "content": content}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """Return `node` with every definition where it is referred to, so that it can stand inside OpenAPI."""
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
        list[float] | str, Field(description="Unit length as float; base64 of the numbers on request.")
    ]
    selection: Annotated[
        list[list[float]] | None,
        Field(description="On request: weights of the patches, rows from top, columns from left, after the crop."),
    ] = None


class Usage(BaseModel):
    """Patch tokens computed, all images together."""

    prompt_tokens: int
    total_tokens: int


class ItemError(BaseModel):
    """What went wrong with one image."""

    index: Annotated[int, Field(ge=0, description="Position in the request.")]
    message: str
    type: str
    param: str | None
    code: str


class EmbeddingResponse(BaseModel):
    """The vectors of one request, in its order."""

    object: Literal["list"]
    data: list[Embedding]
    errors: Annotated[list[ItemError] | None, Field(description="Only where `errors` of the request is `item`.")] = None
    model: str
    embedding_space: Annotated[str, Field(description="Compare vectors only where equal.", examples=[_SPACE_ID])]
    precision: Annotated[str, Field(description="Of the matrix products, as they ran.", examples=["fp32"])]
    storage: Annotated[
        dict[str, str] | None,
        Field(
            description="How to read back what is no float32: `mean + scale * number`; see docs/results/stored-precision.md."
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
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """An answer other than 200."""

    error: ErrorBody
