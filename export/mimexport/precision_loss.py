"""The loss of narrower precisions on real images, and the statistics of their vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimexport.embedding_model import EmbeddingModel, embed_with_torch
from mimruntime.decode import decode
from mimruntime.errors import OptionError, ParityError
from mimruntime.image_paths import find_images
from mimruntime.manifest import Conversion, Precision, Preprocess, Statistics
from mimruntime.parity import WORST_COSINE, Run
from mimruntime.preprocess import to_pixels
from mimruntime.storage import measure_statistics

NEIGHBOURS = 10
_MOST_CALIBRATION, _MOST_TEST = 128, 256
_LEAST = 4 * NEIGHBOURS
_BATCH = 8


@dataclass(frozen=True, slots=True)
class PrecisionLoss:
    """Real images, and torch's vectors of them.

    Attributes:
        calibration: uint8 (n, size, size, 3), images to calibrate int8; n = 0 for other precisions.
        images: uint8 (n, size, size, 3), other images, to measure the loss.
        reference: float32 (n, D), torch's vectors of `images` in fp32.

    """

    calibration: np.ndarray
    images: np.ndarray
    reference: np.ndarray

    @classmethod
    def prepare(
        cls,
        model: EmbeddingModel,
        preprocess: Preprocess,
        precision: Precision,
        folder: Path | None,
        report: Callable[[str], None],
    ) -> PrecisionLoss:
        """Load the images of `folder` and embed them with `model`, which must be in fp32; no folder means no images."""
        none = np.zeros((0, preprocess.size, preprocess.size, 3), np.uint8)
        if folder is None:
            return cls(none, none, np.zeros((0, 0), np.float32))
        calibration, images = load_images(folder, preprocess)
        purpose = "see how vectors are spread" if precision == "fp32" else f"measure the loss in {precision}"
        report(f"embedding {len(images)} images with torch to {purpose}")
        return cls(calibration if precision == "int8" else none, images, embed_with_torch(model, images))

    def measure(self, run: Run) -> Conversion | None:
        """Return the loss of `run` compared with torch in fp32; None without images."""
        if not len(self.images):
            return None
        return compare(embed(run, self.images), self.reference, len(self.calibration))

    def statistics(self) -> Statistics | None:
        """Return the statistics of torch's vectors in fp32; None without images."""
        return measure_statistics(self.reference) if len(self.reference) else None


def check_narrow(vectors: np.ndarray, reference: np.ndarray, precision: Precision) -> None:
    """Raise ParityError if a 16-bit precision changes the vectors too much.

    The check uses torch because an engine on a CPU without 16-bit products computes in fp32 with rounded weights.

    Args:
        vectors: (n, D) float32, torch's in `precision`.
        reference: (n, D) float32, torch's in fp32.
        precision: "fp16" or "bf16".

    Raises:
        ParityError: the worst cosine is below the tolerance.

    """
    worst, least = compare(vectors, reference, 0).worst_cosine, WORST_COSINE[precision]
    if not worst >= least:
        raise ParityError(
            f"torch: embeddings in {precision} differ from the reference: worst cosine {worst:.7f}, at least {least} is"
            f" expected; use --precision {'fp16' if precision == 'bf16' else 'fp32'}"
        )


def load_images(folder: Path, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of images for calibration and of other images for measuring the loss, uint8 (n, size, size, 3) each.

    Every fifth image by name is for calibration, at most 128; of the others, at most 256 evenly spaced ones measure the loss.

    Raises:
        OptionError: there are too few images, or too few different ones.
        ImageError: an image cannot be decoded.
    """
    paths = find_images([folder])
    if len(paths) < _LEAST:
        raise OptionError(f"--calibrate {folder} holds {len(paths)} images; give at least {_LEAST}")
    parts = (paths[::5], [path for index, path in enumerate(paths) if index % 5])
    spread = (part[:: -(-len(part) // most)] for part, most in zip(parts, (_MOST_CALIBRATION, _MOST_TEST), strict=True))
    calibration, test = (np.stack([to_pixels(decode(path), preprocess) for path in part]) for part in spread)
    # Copies of one image would give int8 the ranges of that image only, and would make the neighbour overlap meaningless.
    read = [*calibration, *test]
    if (different := len({image.tobytes() for image in read})) < _LEAST:
        raise OptionError(
            f"--calibrate {folder}: only {different} of {len(read)} images are different; give at least {_LEAST} different"
            " images"
        )
    return calibration, test


def embed(run: Run, pixels: np.ndarray) -> np.ndarray:
    """Return the vectors (n, D) of pixels (n, H, W, 3), computed in small batches."""
    return np.concatenate([run(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)])


def compare(vectors: np.ndarray, reference: np.ndarray, calibration_images: int) -> Conversion:
    """Compare unit vectors (n, D) with those of torch in fp32."""
    cosines = np.minimum((vectors.astype(np.float64) * reference).sum(axis=1), 1.0)
    return Conversion(
        images=len(vectors),
        worst_cosine=round(float(cosines.min()), 6),
        median_cosine=round(float(np.median(cosines)), 6),
        neighbour_overlap=round(neighbour_overlap(vectors, reference), 4),
        neighbours=NEIGHBOURS,
        calibration_images=calibration_images,
    )


def neighbour_overlap(vectors: np.ndarray, reference: np.ndarray, neighbours: int = NEIGHBOURS) -> float:
    """Return the mean share of each image's nearest neighbours by `reference` (n, D) that are also nearest by `vectors`."""
    ours, theirs = (_nearest(side, neighbours) for side in (vectors, reference))
    return float(np.mean([len(set(a) & set(b)) / neighbours for a, b in zip(ours, theirs, strict=True)]))


def _nearest(vectors: np.ndarray, count: int) -> list[list[int]]:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest: list[list[int]] = np.argsort(-similarity, axis=1, kind="stable")[:, :count].tolist()
    return nearest
