"""The torch model of an artifact with the interface of an engine; the reference for vectors of engines."""

from __future__ import annotations

import numpy as np
import torch

from mimexport.backbone import Backbone, Encoded
from mimexport.device import full_precision
from mimexport.embedding_model import EmbeddingModel, EmulatedHalf
from mimexport.features import ComputedFeatures
from mimexport.provenance import code_digest
from mimruntime.artifact import Artifact
from mimruntime.engines.base import EMBEDDING, SELECTION, Engine
from mimruntime.errors import ArtifactError, EngineError
from mimruntime.manifest import Precision, TokenNorm
from mimruntime.reference import load_reference

NAME = "torch"
_LEAST_COSINE = 0.99999
"""Smallest cosine of the rebuilt model to the vectors stored at the build; differences between machines are far smaller."""


class TorchReference(Engine):
    """The model of one artifact, run by torch in float32 unless another precision is set, on the device of its backbone."""

    def __init__(self, model: EmbeddingModel, trunk: SharedBackbone, size: int) -> None:
        self.name, self.provider, self.version = NAME, trunk.backbone.device.type, torch.__version__
        self.pixel_shape = (size, size, 3)
        self.outputs = (EMBEDDING, SELECTION) if model.aggregator.has_weights else (EMBEDDING,)
        self.precision = "fp32"
        self._model: EmbeddingModel | None = model
        self._trunk = trunk

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See base class."""
        if self._model is None:
            raise EngineError("this engine is closed")
        with torch.inference_mode(), EmulatedHalf(), full_precision():
            features = self._trunk.features(self._model, pixels)
            embedding, weights = self._model.embed(features)
        outputs = {EMBEDDING: embedding.cpu().numpy()}
        if weights is not None:
            outputs[SELECTION] = features.to_grid(weights).cpu().numpy()
        return outputs

    def set_precision(self, precision: Precision) -> None:
        """Set the precision; torch rounds each product to it on any CPU."""
        if self._model is not None:
            self._model.set_precision(precision)
            self.precision = precision
            self.mark_code()  # `check_reference` compared float32 only

    def mark_code(self) -> None:
        """Name this package's code in the version: nothing tells whether its vectors are those that older code computed."""
        self.version = f"{torch.__version__} {code_digest()}"

    def _close(self) -> None:
        """See base class."""
        self._model = None


class SharedBackbone:
    """A backbone that keeps its result for the last batch, so that several aggregators can share it."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._pixels: np.ndarray | None = None
        self._encoded = Encoded(torch.empty(0))
        self._features: dict[TokenNorm, ComputedFeatures] = {}

    def features(self, model: EmbeddingModel, pixels: np.ndarray) -> ComputedFeatures:
        """Return the features of uint8 pixels (B, H, W, 3) for `model`'s aggregator."""
        if self._pixels is not pixels:
            images = torch.from_numpy(pixels).to(self.backbone.device)
            self._encoded, self._features, self._pixels = model.encode(images), {}, pixels
        if model.token_norm not in self._features:
            tokens, kept = self._encoded
            self._features[model.token_norm] = ComputedFeatures(self.backbone, tokens, model.norm, kept)
        return self._features[model.token_norm]


def check_reference(artifact: Artifact, reference: TorchReference) -> None:
    """Raise ArtifactError if a rebuilt model does not reproduce the vectors stored at the build.

    Raises:
        ArtifactError: a cosine is below `_LEAST_COSINE`.

    """
    images, expected = load_reference(artifact)
    cosines = (reference.run(images)[EMBEDDING] * expected).sum(axis=1)
    if not cosines.min() >= _LEAST_COSINE:  # written so that NaN fails
        raise ArtifactError(
            f"{artifact.path}: the torch model rebuilt from its manifest has cosine {cosines.min():.6f} to the vectors"
            f" of the build, at least {_LEAST_COSINE} is expected; build the artifact again"
        )
