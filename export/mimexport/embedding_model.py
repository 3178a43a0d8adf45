"""The complete network that is exported: uint8 pixels in, unit vectors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mimexport.aggregators import Aggregator
from mimexport.backbone import Backbone, Encoded
from mimexport.features import ComputedFeatures, Features
from mimexport.whitening import Whitening
from mimruntime.engines.base import EMBEDDING, KEPT, SELECTION
from mimruntime.manifest import Precision, TokenNorm

_EPSILON = 1e-6
"""Smallest divisor of the L2 normalisation; far above the smallest float32, so no engine divides by a denormal."""

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,  # the graph is quantised after the export
}


class EmbeddingModel(nn.Module):
    """uint8 images (B, H, W, 3) -> float32 vectors (B, D') of length 1 [, selection [, kept], both (B, gh, gw)].

    It starts in float32; `set_precision` changes only the backbone. Pixel normalisation, token norm, selection, pooling and
    L2 normalisation always run in float32.

    Args:
        backbone: the frozen transformer.
        aggregator: created for the backbone's shape.
        token_norm: 'raw' or 'final'.
        mean: mean of the training pixels per channel, in [0, 1].
        std: standard deviation of the training pixels per channel, in the same units.
        whitening: applied to the pooled vector before L2 normalisation.
        with_selection: also return the weight of each patch and, if the backbone drops patches, which ones it kept (1 or 0).

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        aggregator: Aggregator,
        token_norm: TokenNorm,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        whitening: Whitening | None = None,
        with_selection: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.aggregator = aggregator
        final = token_norm == "final"
        self.token_norm: TokenNorm = token_norm
        self.norm = backbone.norm if final else None
        self.pool_norm = backbone.pool_norm if final and backbone.norm is None else None
        self.whitening = whitening
        self.dtype = torch.float32
        self.with_selection = with_selection
        self.register_buffer("mean", backbone.per_channel(255 * torch.tensor(mean)), persistent=False)
        self.register_buffer("std", backbone.per_channel(255 * torch.tensor(std)), persistent=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        if not self.with_selection or not self.aggregator.has_weights:
            return (EMBEDDING,)
        return (EMBEDDING, SELECTION) if self.backbone.keep is None else (EMBEDDING, SELECTION, KEPT)

    def set_precision(self, precision: Precision) -> None:
        """Set the precision of the backbone."""
        self.dtype = _DTYPES[precision]
        self.backbone.to(self.dtype)
        for norm in (self.norm, self.pool_norm):
            if norm is not None:  # a submodule of the backbone that must stay in float32
                norm.float()

    def encode(self, pixels: Tensor) -> Encoded:
        """Return the input of the last block for uint8 pixels (B, H, W, 3)."""
        # Cast first: TensorRT supports no other operation on uint8. Then split into patches; some engines move that before
        # the cast.
        patches = (self.backbone.patchify(pixels.float()) - self.mean) / self.std
        return self.backbone.encode(patches, self.dtype)

    def embed(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return unit vectors (B, D') and patch weights (B, N); None if the aggregator does not weight patches.

        Args:
            features: features of the tokens from `encode`, with this model's `norm`.

        """
        vector, weights = self.aggregator(features)
        if self.pool_norm is not None:
            vector = self.pool_norm(vector.unflatten(-1, (-1, self.backbone.shape.dim))).flatten(-2)
        if self.whitening is not None:
            vector = self.whitening(vector)
        return vector / vector.square().sum(-1, keepdim=True).sqrt().clamp_min(_EPSILON), weights

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that `outputs` names."""
        tokens, kept = self.encode(pixels)
        features = ComputedFeatures(self.backbone, tokens, self.norm, kept)
        embedding, weights = self.embed(features)
        if not self.with_selection or weights is None:
            return (embedding,)
        selection = embedding, features.to_grid(weights)
        return selection if kept is None else (*selection, features.to_grid(torch.ones_like(weights)))


class EmulatedHalf(TorchFunctionMode):
    """Context in which products of 16-bit tensors are computed in float32 and then rounded, as 16-bit hardware does.

    On a CPU without 16-bit products, torch's own 16-bit kernels are many times slower. float32 products do not change.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`; for a product of 16-bit tensors, compute in float32 and round the result."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype not in {torch.float16, torch.bfloat16}:
            return func(*args, **kwargs)
        wide = [x.float() if isinstance(x, Tensor) else x for x in args]
        named = {name: x.float() if isinstance(x, Tensor) else x for name, x in kwargs.items()}
        return func(*wide, **named).to(args[0].dtype)


_PRODUCTS = {nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, nn.functional.conv2d}


def embed_with_torch(model: EmbeddingModel, images: np.ndarray) -> np.ndarray:
    """Return the embeddings (n, D) float32 of uint8 images (n, H, W, 3), two at a time to keep memory low."""
    with torch.inference_mode(), EmulatedHalf():
        parts = [model(torch.from_numpy(images[i : i + 2]))[0].numpy() for i in range(0, len(images), 2)]
    return np.concatenate(parts)
