"""The records of `manifest.json`, which describe an artifact."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from mimruntime import sealed

FORMAT = "mimexport-artifact"
SCHEMA = 3
"""Schema 2 added `conversion` and the precisions bf16 and int8. Schema 3 added the source "memory".

Readers of schema 3 and later ignore unknown fields. Artifacts of all schemas can be opened; see
docs/reference/artifact-format.md.
"""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
TokenNorm = Literal["raw", "final"]
Source = Literal["embedded", "hub", "file", "random", "memory"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]


class _Record(msgspec.Struct, frozen=True):
    """Base class of the manifest's records."""


class Backbone(_Record, frozen=True, kw_only=True):
    """The frozen vision transformer."""

    model: str
    """Name given by the user: alias or timm name."""
    timm_name: str
    source: Source
    """Kind of source of the weights; 'random' weights are for tests only."""
    origin: str
    """Hub id, file name or seed of the weights."""
    weights_sha256: str
    """Digest of the tensors (names, shapes, float32 values), independent of the file format."""
    license: str
    patch: int
    """Edge of one patch token at the output, px."""
    grid: tuple[int, int]
    """Patch tokens at the output, rows and columns."""
    prefix_tokens: int
    """Number of [cls] and register tokens before the patch tokens."""
    dim: int
    has_cls: bool | None = None
    """Whether the prefix tokens include [cls]. Older files have None: then [cls] exists if there is any prefix token."""
    notes: tuple[str, ...] = ()
    """Notes about the loading of the weights, such as resampled positions, one sentence each."""

    @property
    def reads_cls(self) -> bool:
        """Whether the backbone has a [cls] token."""
        return self.prefix_tokens > 0 if self.has_cls is None else self.has_cls


class Aggregator(_Record, frozen=True, kw_only=True):
    """How patch tokens are aggregated to one vector."""

    name: str
    params: dict[str, str | int | float | bool]
    token_norm: TokenNorm
    """Tokens that are read: 'raw' are the last block's output, 'final' are those after the model's final norm."""
    head_sha256: str | None = None


class KeepStage(_Record, frozen=True, kw_only=True):
    """Number of patches that stay before one block of the encoder."""

    block: int
    """Index of the block, from 0."""
    patches: int


class Keep(_Record, frozen=True, kw_only=True):
    """Which patches stay in the encoder; dropped patches are not computed any further."""

    stages: tuple[KeepStage, ...]
    """At least one; later blocks keep fewer."""
    by: str
    """Rule: center, checkerboard and center-checkerboard choose the same patches in every image; others depend on it."""

    def __str__(self) -> str:
        """Return one line for display."""
        stages = ", ".join(f"{stage.patches} before block {stage.block}" for stage in self.stages)
        return f"{stages}, by {self.by}"


class Embedding(_Record, frozen=True, kw_only=True):
    """The output vector."""

    dim: int
    dtype: Literal["float32"] = "float32"
    normalized: bool = True
    """Whether the L2 norm is 1."""
    whitening: str | None = None


class Preprocess(_Record, frozen=True, kw_only=True):
    """Preprocessing from a decoded RGB image to the graph's uint8 input; the graph normalises the pixels."""

    size: int
    """Edge of the square input, px."""
    resize: int
    """Edge length after the resize and before the centre crop, px."""
    mode: Literal["shortest", "squash"]
    """'shortest': the shorter edge becomes `resize`; 'squash': both edges do, without keeping the aspect ratio."""
    interpolation: Interpolation
    mean: tuple[float, float, float]
    """Mean of the training pixels in [0, 1]; for information, because the graph applies it."""
    std: tuple[float, float, float]

    @property
    def normalisation(self) -> str:
        """Mean and standard deviation for people."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}, std {std}"


class Port(_Record, frozen=True, kw_only=True):
    """An input or output of the graph; a dynamic dimension is given by name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(_Record, frozen=True, kw_only=True):
    """The ONNX file."""

    file: str
    opset: int
    precision: Precision
    last_block: Literal["reduced", "full"]
    """'reduced': the last block computes only the tokens that the aggregator reads."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Parity(_Record, frozen=True, kw_only=True):
    """Comparison of the graph in an engine with torch in fp32, on the images of `reference.npz`."""

    engine: str
    images: int
    batches: tuple[int, ...]
    worst_cosine: float
    median_cosine: float
    worst_abs_diff: float
    batch_invariance: float
    """Largest absolute difference between an image embedded alone and in a batch."""
    deterministic: bool
    """Whether two runs on the same batch gave the same bytes."""


class Conversion(_Record, frozen=True, kw_only=True):
    """Loss of a precision below fp32, compared with torch in fp32 on real images not used for calibration."""

    images: int
    worst_cosine: float
    median_cosine: float
    neighbour_overlap: float
    """Share of the `neighbours` nearest images in fp32 that are still among the nearest, averaged over images."""
    neighbours: int
    calibration_images: int
    """0 if the precision needs no calibration."""


class Statistics(_Record, frozen=True, kw_only=True):
    """Mean and standard deviation of unit vectors of real images; they set the int8 scale and the binary threshold."""

    images: int
    mean: bytes
    """Mean per dimension, little-endian float32; base64 in JSON."""
    std: bytes
    """Standard deviation per dimension, in the same form."""


class Manifest(_Record, frozen=True, kw_only=True):
    """The complete `manifest.json`; the last field `sha256` covers every byte before it."""

    format: str = FORMAT
    schema: int = SCHEMA
    name: str
    created: str
    """UTC, ISO 8601."""
    embedding_space: str
    """Id of the vector space; only vectors with equal ids may be compared. See `embedding_space`."""
    backbone: Backbone
    aggregator: Aggregator
    embedding: Embedding
    preprocess: Preprocess
    graph: Graph
    parity: Parity
    keep: Keep | None = None
    """Which patches stay in the encoder; None if all do, as in older files."""
    conversion: Conversion | None = None
    """None in fp32, and if no real images were given."""
    statistics: Statistics | None = None
    """None if no real images were given; then vectors can be stored only in fp32 or fp16."""
    versions: dict[str, str]
    files: dict[str, str]
    """sha256 of all other files, by path relative to the artifact."""
    sha256: str = ""


def encode(manifest: Manifest) -> bytes:
    """Return the canonical bytes of `manifest`, with its `sha256` computed."""
    return sealed.encode(manifest)


def decode(raw: bytes) -> Manifest:
    """Parse and check `manifest.json`.

    Raises:
        ValueError: with a text that completes "manifest.json …".

    """
    manifest = sealed.decode(raw, Manifest, format_name=FORMAT, schema=SCHEMA)
    # The name is used as a file and folder name.
    if manifest.name in {"", ".", ".."} or any(sign in manifest.name for sign in "/\\\0"):
        raise ValueError(f"has the name {manifest.name!r}, which no folder can have; do not trust it")
    found = manifest.statistics
    if found is not None and {len(found.mean), len(found.std)} != {4 * manifest.embedding.dim}:
        raise ValueError("has statistics for vectors of another length; do not trust it")
    return manifest


def embedding_space(
    backbone: Backbone, aggregator: Aggregator, embedding: Embedding, preprocess: Preprocess, keep: Keep | None = None
) -> str:
    """Return the id of the vector space: 16 hex digits of everything that changes vectors, except the precision.

    The architecture is included because activations and the number of heads are not in the weights.
    """
    architecture = backbone.timm_name.partition(".")[0]
    parts: tuple[object, ...] = (backbone.weights_sha256, architecture, aggregator, embedding, preprocess)
    if keep is not None:  # without `keep` the id must stay as in older artifacts
        parts = (*parts, keep)
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]
