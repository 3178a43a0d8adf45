"""The vectors of every row of `frontier.py`, computed once in torch and stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from frontier_rows import CLS, FULL, LEARNED, Row
from learned_rule import LearnedSelection, Scorer, learn
from token_merging import MergingModel

from mimeval.datasets import Split
from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.composition import compose
from mimexport.device import full_precision
from mimexport.embedding_model import EmbeddingModel
from mimexport.features import ComputedFeatures
from mimexport.loading import load_any
from mimexport.options import BuildOptions
from mimexport.preprocessing import preprocess_of
from mimexport.provenance import code_digest
from mimruntime.cpus import multiplies_bf16
from mimruntime.decode import decode
from mimruntime.manifest import Precision
from mimruntime.preprocess import to_pixels

CHUNKS = {"cpu": 50, "cuda": 1000}
"""Number of images at once."""
TEACHING = {"cpu": {"removal": 200, "halves": 600}, "cuda": {"removal": 2000, "halves": 8000}}
"""Number of training images that teach a learned rule."""


def precision_of(row: Row, device: torch.device) -> Precision:
    """Return the precision of a row's encoder: bf16 on a CPU that has it, which halves the time, but not for [cls]."""
    narrow = device.type == "cpu" and multiplies_bf16() and row.agg != "cls"
    return "bf16" if narrow else "fp32"


class VectorStore:
    """Computes and stores the vectors of rows, one file for each row and part of the images.

    Args:
        model: an embedded backbone.
        device: where torch computes.
        work: folder of the files.

    """

    def __init__(self, model: str, device: torch.device, work: Path) -> None:
        self._model, self.device = model, device
        self._work = work / code_digest() / device.type  # so that vectors of other code are not reused
        self._work.mkdir(parents=True, exist_ok=True)

    @property
    def precisions(self) -> str:
        """The precisions of the encoders, for people."""
        patches, cls = (precision_of(row, self.device) for row in (FULL, CLS[0]))
        return cls if cls == patches else f"{patches}, and {cls} for [cls]"

    def vectors(self, row: Row, part: Split) -> np.ndarray:
        """Return the stored vectors (n, D) of a row.

        Raises:
            FileNotFoundError: `compute` did not store them.

        """
        return np.asarray(np.load(self._file(row, part)))

    def compute(self, rows: Sequence[Row], parts: Sequence[Split], training: Split) -> None:
        """Store the vectors of rows that share an encoder, those that are missing.

        Args:
            rows: of one encoder.
            parts: the images.
            training: images that teach a learned rule.

        """
        network: EmbeddingModel | None = None
        for part in parts:
            missing = [row for row in rows if not self._file(row, part).exists()]
            if missing:
                network = network or self._network(missing[0], training)
                self._embed(network, missing, part)

    def _embed(self, network: EmbeddingModel, rows: Sequence[Row], part: Split) -> None:
        pixels = self.pixels(rows[0].size, part)
        found: list[list[np.ndarray]] = [[] for _ in rows]
        for start in range(0, len(pixels), CHUNKS[self.device.type]):
            batch = torch.from_numpy(np.array(pixels[start : start + CHUNKS[self.device.type]]))
            with torch.inference_mode(), full_precision():
                for parts, vectors in zip(found, embed(network, rows, batch.to(self.device)), strict=True):
                    parts.append(vectors.float().cpu().numpy())
        for row, parts in zip(rows, found, strict=True):
            save(self._file(row, part), np.concatenate(parts))

    def pixels(self, size: int | None, part: Split) -> np.ndarray:
        """Return the pixels of images at an edge in px, uint8 (n, H, W, 3), as a memory map; decode them once."""
        preprocess = preprocess_of(load_any(self._model, size=size).config)
        file = self._work / f"pixels-{preprocess.size}-{part.digest[:12]}.npy"
        if not file.exists():
            images = [to_pixels(decode(part.load(index)), preprocess) for index in range(len(part))]
            save(file, np.stack(images))
        return np.asarray(np.load(file, mmap_mode="r"))

    def _file(self, row: Row, part: Split) -> Path:
        precision = precision_of(row, self.device)
        return self._work / f"{self._model}-{precision}-{row.folder}-{part.digest[:12]}.npy"

    def _network(self, row: Row, training: Split) -> EmbeddingModel:
        network = network_of(self._model, row.encoder)
        if row.by in LEARNED:
            network.backbone.selection = LearnedSelection(network.backbone, self._scorer(row.by, training))
        network.set_precision(precision_of(row, self.device))
        return network.to(self.device)

    def _scorer(self, rule: str, training: Split) -> Scorer:
        """Return the stored scorer of a learned rule; fit it if it is missing."""
        file = self._work / f"{self._model}-{rule.replace(' ', '-')}.npz"
        if not file.exists():
            teacher = rule.rsplit(maxsplit=1)[-1]
            count = TEACHING[self.device.type]["removal" if teacher == "removal" else "halves"]
            pixels = np.array(self.pixels(None, training)[:count])
            full = network_of(self._model, FULL).to(self.device)
            with torch.inference_mode(), full_precision():
                weight, bias = learn(full, pixels, teacher)
            np.savez(file, weight=weight.numpy(), bias=bias.numpy())
        with np.load(file) as found:
            return Scorer(torch.from_numpy(found["weight"]), torch.from_numpy(found["bias"]))


def network_of(model: str, row: Row) -> EmbeddingModel:
    """Return the network of a row in float32, a learned rule left out."""
    loaded = load_any(model, size=row.size)
    options = BuildOptions(
        model=model, agg=row.agg, out=Path(), size=row.size, keep=row.keep, keep_by=row.timed.by, whiten_by_default=False,
        token_norm=row.norm,
    )  # fmt: skip
    network, _ = compose(loaded, options)
    return MergingModel(network, row.merge, centered=row.agg == "center-weighted").eval() if row.merge else network


def embed(network: EmbeddingModel, rows: Sequence[Row], pixels: torch.Tensor) -> list[torch.Tensor]:
    """Return the vectors (B, D) of each row for uint8 pixels; the rows share the network's encoder."""
    if isinstance(network, MergingModel):
        state = network.merged(pixels)
        return [network.pool(state, centered=row.agg == "center-weighted") for row in rows]
    tokens, kept = network.encode(pixels)
    backbone: Backbone = network.backbone
    found = []
    for row in rows:
        norm = backbone.norm if row.norm == "final" else None
        aggregator = make_aggregator(row.agg, backbone.shape, {}).to(pixels.device)
        vector = aggregator(ComputedFeatures(backbone, tokens, norm, kept)).vector
        found.append(torch.nn.functional.normalize(vector.float(), dim=1))
    return found


def save(file: Path, array: np.ndarray) -> None:
    """Write an array so that a stopped run leaves no half of it."""
    stage = file.with_name(f".{file.name}.partial.npy")
    np.save(stage, array)
    stage.replace(file)
