"""Bodies of OpenAI's embedding protocol, with this project's additions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mimruntime.serve.datauri import PATTERN

EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4UaEBAAN0AWnL+tDXAAAAAElFTkSuQmCC"
)
_SPACE_ID = "f2688f6e63b1f4ca"

DataUri = Annotated[
    str,
    Field(
        pattern=PATTERN,
        description="`data:image/…;base64,…`: the bytes of an encoded image.",
        examples=[EXAMPLE_IMAGE],
        json_schema_extra={"format": "image-data-uri"},
    ),
]
RemoteUrl = Annotated[
    str,
    Field(
        pattern="^https://",
        description="Fetched only where the operator allows its host.",
        json_schema_extra={"format": "image-url"},
    ),
]
Location = DataUri | RemoteUrl


class _Strict(BaseModel):
    """Fields that are not known are refused: a misspelt one would be ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageUrl(_Strict):
    """Where an image is."""

    url: Location
    detail: Annotated[str, Field(description="Accepted from OpenAI's clients; has no effect.")] = "auto"


class ImageItem(_Strict):
    """An image as OpenAI's messages write it."""

    type: Literal["image_url"]
    image_url: ImageUrl


class EmbeddingRequest(_Strict):
    """`POST /v1/embeddings`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": EXAMPLE_IMAGE, "model": "mae-tiny-topk"}]})

    input: Location | ImageItem | Annotated[list[Location | ImageItem], Field(min_length=1)]
    model: Annotated[str, Field(description="A name of `GET /v1/models`.", json_schema_extra={"format": "model-name"})]
    encoding_format: Annotated[Literal["float", "base64"], Field(description="`base64`: little-endian float32.")] = (
        "float"
    )
    dimensions: Annotated[
        int | None,
        Field(ge=1, description="Accepted where it is the model's own.", json_schema_extra={"format": "dim"}),
    ] = None
    user: Annotated[str | None, Field(description="Accepted from OpenAI's clients; has no effect.")] = None
    embedding_space: Annotated[
        str | None,
        Field(description="Answer 409 unless the model has this one.", json_schema_extra={"format": "embedding-space"}),
    ] = None


class Embedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: Annotated[int, Field(ge=0, description="Position in the request.")]
    embedding: Annotated[
        list[float] | str, Field(description="Unit length; base64 of little-endian float32 on request.")
    ]


class Usage(BaseModel):
    """Patch tokens computed, all images together."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors of one request, in its order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    embedding_space: Annotated[str, Field(description="Compare vectors only where equal.", examples=[_SPACE_ID])]
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
