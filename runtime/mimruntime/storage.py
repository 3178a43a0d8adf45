"""Encode vectors for storage as float32, float16, int8 or bits, optionally cut to their first dimensions, and decode them.

Bits are the signs of the centred vector after a fixed rotation. The rotation spreads the information evenly over the
dimensions: whitened vectors have most of it in the first ones, but each sign counts the same.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from mimruntime.errors import OptionError
from mimruntime.manifest import Manifest, Statistics

Store = Literal["fp32", "fp16", "int8", "bits"]
STORES: tuple[Store, ...] = get_args(Store)
_TYPES: dict[Store, str] = {"fp32": "<f4", "fp16": "<f2", "int8": "i1", "bits": "u1"}
_REACH = 6
"""Range of int8 in standard deviations; values beyond are clipped."""
_LEAST = 1e-6
"""Smallest standard deviation, for dimensions that are constant."""
_STORE, _DIM, _MEAN, _SCALE = "stored_as", "stored_dim", "stored_mean", "stored_scale"


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """Converts between unit vectors and stored codes.

    Decoding computes `mean + scale * code` for int8 and `mean + rotation(dim).T @ (scale * code)` for bits (1 is +1, 0 is
    -1), then scales to unit length.

    Attributes:
        store: one of `STORES`.
        dim: number of first dimensions that are kept.
        space: embedding space of the decoded vectors; "SPACE/DIM" if dimensions were cut.
        mean: float32 (dim,), subtracted before encoding; None for fp32 and fp16.
        scale: float32 (dim,), one step of int8, or the distance of a bit from the mean; None for fp32 and fp16.

    """

    store: Store
    dim: int
    space: str
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Dtype of a code."""
        return np.dtype(_TYPES[self.store])

    @property
    def width(self) -> int:
        """Number of codes per vector: `dim`, or for bits one byte per eight dimensions."""
        return -(-self.dim // 8) if self.store == "bits" else self.dim

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Return the codes (n, width) of unit vectors, float32 (n, D) with D ≥ `dim`."""
        cut = vectors
        if vectors.shape[1] > self.dim:
            cut = _unit(vectors[:, : self.dim])
        if self.mean is None or self.scale is None:
            return cut.astype(self.dtype)
        if self.store == "bits":
            return np.packbits((cut - self.mean) @ rotation(self.dim).T >= 0, axis=1)
        steps: np.ndarray = np.clip(np.rint((cut - self.mean) / self.scale), -127, 127)
        return steps.astype(self.dtype)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the unit vectors, float32 (n, dim), of codes (n, width)."""
        if self.store == "fp32":
            return np.asarray(codes, np.float32)
        if self.mean is None or self.scale is None:
            return _unit(codes.astype(np.float32))
        if self.store == "bits":
            signs = np.unpackbits(codes, axis=1, count=self.dim).astype(np.float32) * 2 - 1
            return _unit(self.mean + (signs * self.scale) @ rotation(self.dim))
        return _unit(self.mean + codes.astype(np.float32) * self.scale)

    def labels(self) -> dict[str, str]:
        """Return the metadata that `read_codec` reads from a file; mean and scale are base64 of little-endian float32."""
        said = {_STORE: self.store, _DIM: str(self.dim)}
        if self.mean is not None and self.scale is not None:
            said |= {_MEAN: as_base64(self.mean), _SCALE: as_base64(self.scale)}
        return said


def codec_for(manifest: Manifest, store: Store = "fp32", dim: int | None = None) -> Codec:
    """Return the codec for vectors of an artifact.

    Mean and scale come from the artifact, not from a file, so that codes of different files can be compared.

    Args:
        manifest: manifest of the artifact.
        store: one of `STORES`.
        dim: number of dimensions to keep, only for whitened vectors; None keeps all.

    Raises:
        OptionError: the dimensions cannot be cut, or the artifact has no statistics of its vectors.

    """
    whole, space, name = manifest.embedding.dim, manifest.embedding_space, manifest.name
    kept = whole if dim is None else dim
    if not 1 <= kept <= whole:
        raise OptionError(f"{kept} dimensions: vectors of '{name}' have {whole}; give 1 to {whole}")
    if kept < whole:
        if manifest.embedding.whitening is None:
            raise OptionError(
                f"{kept} dimensions: vectors of '{name}' are not whitened, so their {whole} dimensions are not ordered and"
                " cannot be cut; build it with --whiten"
            )
        space = f"{space}/{kept}"
    if store in {"fp32", "fp16"}:
        return Codec(store, kept, space)
    found = manifest.statistics
    if found is None:
        raise OptionError(
            f"{store}: '{name}' has no statistics of its vectors; build it again with --calibrate FOLDER of real"
            " images (the embedding space stays the same), or store fp16"
        )
    return codec_of(found, store, kept, space)


def codec_of(found: Statistics, store: Store, dim: int, space: str) -> Codec:
    """Return the codec for the first `dim` dimensions of vectors with these statistics."""
    if store in {"fp32", "fp16"}:
        return Codec(store, dim, space)
    return Codec(store, dim, space, *_terms(found, store, dim))


def read_codec(labels: Mapping[str, str], space: str, dim: int) -> Codec:
    """Return the codec described by a file's metadata; without any, the file contains float32.

    Args:
        labels: metadata of the file; other keys are ignored.
        space: embedding space of the file.
        dim: number of dimensions if the metadata has none.

    Raises:
        ValueError: the metadata is incomplete or of a later version.

    """
    store = labels.get(_STORE, "fp32")
    if store not in STORES:
        raise ValueError(f"stored as {store!r}, this program reads {', '.join(STORES)}; upgrade mimexport")
    size = int(labels.get(_DIM, dim))
    if store in {"fp32", "fp16"}:
        return Codec(store, size, space)
    if _MEAN not in labels or _SCALE not in labels:
        raise ValueError(f"stored as {store} without {_MEAN} and {_SCALE}")
    mean, scale = from_base64(labels[_MEAN]), from_base64(labels[_SCALE])
    if len(mean) != size or len(scale) != size:
        raise ValueError(f"{_MEAN} and {_SCALE} have {len(mean)} and {len(scale)} numbers, the vectors {size}")
    return Codec(store, size, space, mean, scale)


def measure_statistics(vectors: np.ndarray) -> Statistics:
    """Return the statistics of unit vectors (n, D) of real images."""
    exact = np.asarray(vectors, np.float64)
    mean, std = (part.astype("<f4").tobytes() for part in (exact.mean(axis=0), exact.std(axis=0)))
    return Statistics(images=len(vectors), mean=mean, std=std)


@lru_cache(maxsize=8)
def rotation(dim: int) -> np.ndarray:
    """Return the rotation for bits, float32 (dim, dim): the orthonormal DCT-II after flipping the signs of some dimensions.

    The sign of dimension n is flipped if the first byte of the sha256 of the decimal text n is odd.
    """
    signs = np.array([1 - 2 * (hashlib.sha256(b"%d" % axis).digest()[0] & 1) for axis in range(dim)])
    row, column = np.arange(dim)[:, None], np.arange(dim)
    matrix = np.cos(np.pi * (2 * column + 1) * row / (2 * dim)) * math.sqrt(2 / dim)
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix * signs, np.float32)


def as_base64(numbers: np.ndarray) -> str:
    """Return numbers as base64 of little-endian float32."""
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def from_base64(text: str) -> np.ndarray:
    """Return the float32 numbers encoded by `as_base64`."""
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")


def _terms(found: Statistics, store: Store, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale (dim,) of the first dimensions, rescaled because cut vectors are normalised to unit length."""
    mean, std = (np.frombuffer(raw, "<f4")[:dim] for raw in (found.mean, found.std))
    length = np.sqrt((mean.astype(np.float64) ** 2 + std.astype(np.float64) ** 2).sum())
    spread = np.maximum(std / length, _LEAST)
    # After the rotation all dimensions have the same standard deviation; a normal distribution's mean deviation is √(2/π) of it.
    bit = np.full(dim, math.sqrt(2 / math.pi * float((spread**2).mean())))
    scale = bit if store == "bits" else spread * (_REACH / 127)
    return (mean / length).astype(np.float32), scale.astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
