"""What `manifest.json` says: the one description of an artifact, shared by the sides that build and serve."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from mimruntime import sealed

FORMAT = "mimexport-artifact"
SCHEMA = 3
"""2 added `conversion` and the precisions bf16 and int8; 3 the source "memory".

From 3 on readers pass over fields they do not know: those of 1 and 2 refused them. All open; see
docs/reference/artifact-format.md.
"""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
TokenNorm = Literal["raw", "final"]
Source = Literal["embedded", "hub", "file", "random", "memory"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]


class _Record(msgspec.Struct, frozen=True):
    """Base of the manifest's parts."""


class Backbone(_Record, frozen=True, kw_only=True):
    """The frozen vision transformer."""

    model: str
    """Name as it was asked for, alias or timm name."""
    timm_name: str
    source: Source
    """Where the weights came from; 'random' weights carry no meaning and are for testing."""
    origin: str
    """Hub id, file name or seed the weights came from."""
    weights_sha256: str
    """Digest of the tensors (names, shapes, float32 values), whatever file they were stored in."""
    license: str
    patch: int
    """Edge of one patch token at the output, px."""
    grid: tuple[int, int]
    """Patch tokens at the output, rows and columns."""
    prefix_tokens: int
    """[cls] and registers in front of the patch tokens."""
    dim: int
    has_cls: bool | None = None
    """Whether [cls] is among them; None, as in older files: where there are any."""
    notes: tuple[str, ...] = ()
    """What a user should know of how the weights were loaded, a sentence each: resampled positions, guessed pixels."""

    @property
    def reads_cls(self) -> bool:
        """Whether the backbone has a [cls] token."""
        return self.prefix_tokens > 0 if self.has_cls is None else self.has_cls


class Aggregator(_Record, frozen=True, kw_only=True):
    """How patch tokens became one vector."""

    name: str
    params: dict[str, str | int | float | bool]
    token_norm: TokenNorm
    """'raw': output of the last block; 'final': after the model's final norm."""
    head_sha256: str | None = None


class KeepStage(_Record, frozen=True, kw_only=True):
    """Before one block of the encoder: how many patches stay."""

    block: int
    """Counted from 0."""
    patches: int


class Keep(_Record, frozen=True, kw_only=True):
    """Which patches stay in the encoder; the others are not computed from there on."""

    stages: tuple[KeepStage, ...]
    """At least one; later blocks keep fewer."""
    by: str
    """The rule: center, checkerboard and center-checkerboard are the same for every image; others look at it."""

    def __str__(self) -> str:
        """Return one line for people."""
        stages = ", ".join(f"{stage.patches} before block {stage.block}" for stage in self.stages)
        return f"{stages}, by {self.by}"


class Embedding(_Record, frozen=True, kw_only=True):
    """The vector that comes out."""

    dim: int
    dtype: Literal["float32"] = "float32"
    normalized: bool = True
    """L2 norm is 1."""
    whitening: str | None = None


class Preprocess(_Record, frozen=True, kw_only=True):
    """From a decoded RGB image to the graph's uint8 input; pixel statistics are in the graph."""

    size: int
    """Edge of the square input, px."""
    resize: int
    """Length the resize aims at before the centre crop, px."""
    mode: Literal["shortest", "squash"]
    """'shortest': the shorter edge becomes `resize`; 'squash': both edges do, the aspect ratio is lost."""
    interpolation: Interpolation
    mean: tuple[float, float, float]
    """Recorded for readers; already inside the graph, in units of [0, 1]."""
    std: tuple[float, float, float]


class Port(_Record, frozen=True, kw_only=True):
    """A named tensor of the graph; a dimension that varies is a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Record, frozen=True, kw_only=True):
    """The ONNX file."""

    file: str
    opset: int
    precision: Precision
    last_block: Literal["reduced", "full"]
    """'reduced': the last block computes only the tokens that are read."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Parity(_Record, frozen=True, kw_only=True):
    """The graph in an engine against torch in fp32, on the images and embeddings kept in `reference.npz`."""

    engine: str
    images: int
    batches: tuple[int, ...]
    worst_cosine: float
    median_cosine: float
    worst_abs_diff: float
    batch_invariance: float
    """Worst absolute difference between an image embedded alone and inside any batch."""
    deterministic: bool
    """Two runs on the same batch gave the same bytes."""


class Conversion(_Record, frozen=True, kw_only=True):
    """What a narrower precision changed, against torch in fp32, on real images that calibration did not see."""

    images: int
    worst_cosine: float
    median_cosine: float
    neighbour_overlap: float
    """Share of the `neighbours` nearest images in fp32 that are still among the nearest, mean over the images."""
    neighbours: int
    calibration_images: int
    """0 where the precision needs none."""


class Statistics(_Record, frozen=True, kw_only=True):
    """How unit vectors of real images are spread, which decides the steps of int8 and the threshold of bits."""

    images: int
    mean: bytes
    """Little-endian float32, one number a dimension; in JSON as base64."""
    std: bytes
    """Likewise, the standard deviation."""


class Manifest(_Record, frozen=True, kw_only=True):
    """`manifest.json`, whole; `sha256`, the last field, covers every byte before it."""

    format: str = FORMAT
    schema: int = SCHEMA
    name: str
    created: str
    """UTC, ISO 8601."""
    embedding_space: str
    """Vectors may be compared only when this is equal: derived from architecture, weights, aggregation, preprocessing."""
    backbone: Backbone
    aggregator: Aggregator
    embedding: Embedding
    preprocess: Preprocess
    graph: Graph
    parity: Parity
    keep: Keep | None = None
    """Patches that are dropped early; None where every patch goes through the encoder, as in older files."""
    conversion: Conversion | None = None
    """None in fp32, and where no real images were given."""
    statistics: Statistics | None = None
    """None where no real images were given; the vectors are then stored in fp32 or fp16 alone."""
    versions: dict[str, str]
    files: dict[str, str]
    """sha256 of every other file, by path relative to the artifact."""
    sha256: str = ""


def encode(manifest: Manifest) -> bytes:
    """Return the canonical bytes of `manifest`, sealed: its `sha256` is computed here."""
    return sealed.encode(manifest)


def decode(raw: bytes) -> Manifest:
    """Parse and check `manifest.json`.

    Raises:
        ValueError: with a text that completes "manifest.json …".

    """
    manifest = sealed.decode(raw, Manifest, format_name=FORMAT, schema=SCHEMA)
    # It becomes a file's and a folder's name.
    if manifest.name in {"", ".", ".."} or any(sign in manifest.name for sign in "/\\\0"):
        raise ValueError(f"has the name {manifest.name!r}, which no folder can have; do not trust it")
    found = manifest.statistics
    if found is not None and {len(found.mean), len(found.std)} != {4 * manifest.embedding.dim}:
        raise ValueError("has statistics of vectors of another length; do not trust it")
    return manifest


def embedding_space(
    backbone: Backbone, aggregator: Aggregator, embedding: Embedding, preprocess: Preprocess, keep: Keep | None = None
) -> str:
    """Return the id of the vector space: 16 hex digits from everything that changes a vector but not its precision.

    The architecture counts beside the weights: an activation or the number of heads is in no tensor.
    """
    architecture = backbone.timm_name.partition(".")[0]
    parts: tuple[object, ...] = (backbone.weights_sha256, architecture, aggregator, embedding, preprocess)
    if keep is not None:  # with every patch the space is what it was before there was a choice
        parts = (*parts, keep)
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]
