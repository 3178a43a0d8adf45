"""The whole network that is traced: raw pixels in, a unit vector out."""

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
from mimruntime.manifest import Precision, TokenNorm

_EPSILON = 1e-6
"""Below this length a vector is zero; far above the smallest float32, so that no engine divides by a denormal."""

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,  # the graph is quantised once it is exported
}


class EmbeddingModel(nn.Module):
    """uint8 images (B, H, W, 3) -> float32 vectors (B, D') of length 1 [, selection (B, gh, gw)].

    Made in float32; `set_precision` changes the backbone alone. Pixel statistics, token norm, selection, pooling and L2
    always run in float32.

    Args:
        backbone: the frozen transformer.
        aggregator: made for its shape.
        token_norm: 'raw' or 'final'.
        mean: of the pixels the backbone was trained on, per channel, in units of [0, 1].
        std: likewise.
        whitening: applied to the pooled vector, before L2.
        with_selection: also return the share of every patch.

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

    def set_precision(self, precision: Precision) -> None:
        """Run the backbone in `precision` from now on."""
        self.dtype = _DTYPES[precision]
        self.backbone.to(self.dtype)
        for norm in (self.norm, self.pool_norm):
            if norm is not None:  # part of the backbone's module tree, but of the float32 tail
                norm.float()

    def encode(self, pixels: Tensor) -> Encoded:
        """Return what enters the last block for uint8 pixels (B, H, W, 3)."""
        # Cast first: TensorRT casts uint8 and does nothing else with it. Cut next: engines that can do it before the cast.
        patches = (self.backbone.patchify(pixels.float()) - self.mean) / self.std
        return self.backbone.encode(patches, self.dtype)

    def embed(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Return unit vectors (B, D') and the share of every patch (B, N), None where patches have no share.

        Args:
            features: of the tokens that `encode` gives, with this model's `norm`.

        """
        vector, weights = self.aggregator(features)
        if self.pool_norm is not None:
            vector = self.pool_norm(vector.unflatten(-1, (-1, self.backbone.shape.dim))).flatten(-2)
        if self.whitening is not None:
            vector = self.whitening(vector)
        return vector / vector.square().sum(-1, keepdim=True).sqrt().clamp_min(_EPSILON), weights

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return (embedding,) or (embedding, selection)."""
        tokens, kept = self.encode(pixels)
        features = ComputedFeatures(self.backbone, tokens, self.norm, kept)
        embedding, weights = self.embed(features)
        if not self.with_selection or weights is None:
            return (embedding,)
        return embedding, features.to_grid(weights)


class EmulatedHalf(TorchFunctionMode):
    """Within it, products of 16-bit tensors are taken in float32 and rounded: what hardware that has them does.

    torch on a CPU without them takes many times as long for the same; float32 tensors are left alone.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `func`, widened where it is a product."""
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
