"""`Features` of stored tokens, and the vectors that an aggregator computes from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from mimexport.aggregators import Aggregator
from mimexport.backbone import Backbone
from mimexport.blocks import take
from mimexport.device import full_precision
from mimexport.fitting.tokens import Array, Tokens, as_tensor

_CHUNK = 512
"""Number of images pooled at once."""


class StoredFeatures:
    """`Features` of stored tokens; an aggregator computes the same from them as in the graph.

    Args:
        tokens: stored tokens of B images.
        backbone: theirs; features are computed on its device.
        norm: see `ComputedFeatures`.
        spread: (D,), divisor of the patch tokens after the norm; None leaves them unchanged.

    """

    def __init__(
        self, tokens: Tokens, backbone: Backbone, norm: nn.Module | None, spread: Tensor | None = None
    ) -> None:
        self.shape = backbone.shape
        self._device = backbone.device
        self.kept = None if tokens.kept is None else as_tensor(tokens.kept, self._device).long()
        self._tokens = tokens
        self._norm = norm
        self._spread = spread

    @cached_property
    def entering_energy(self) -> Tensor:
        """See `Features`."""
        return self._float(self._tokens.energy)

    @cached_property
    def raw_patches(self) -> Tensor:
        """See `Features`."""
        return self._float(self._tokens.patches)

    @cached_property
    def patches(self) -> Tensor:
        """See `Features`."""
        patches = self._finish(self.raw_patches)
        return patches if self._spread is None else patches / self._spread

    @cached_property
    def cls(self) -> Tensor:
        """See `Features`."""
        return self._finish(self._float(self._tokens.cls))

    @property
    def cls_and_patches(self) -> tuple[Tensor, Tensor]:
        """See `Features`."""
        return self.cls, self.patches

    @cached_property
    def cls_attention(self) -> Tensor:
        """See `Features`."""
        return self._float(self._tokens.attention)

    def of_patches(self, table: Tensor) -> Tensor:
        """See `Features`."""
        return table if self.kept is None else table[self.kept]

    def rows(self, index: Tensor) -> Tensor:
        """See `Features`."""
        return take(self.patches, index)

    def mean_of(self, index: Tensor | None) -> Tensor:
        """See `Features`."""
        return (self.patches if index is None else self.rows(index)).mean(1)

    def _finish(self, tokens: Tensor) -> Tensor:
        return tokens if self._norm is None else self._norm(tokens)

    def _float(self, part: Array) -> Tensor:
        return as_tensor(part, self._device).float()  # torch widens half precision five times as fast as NumPy


@full_precision()
def pool(aggregator: Aggregator, tokens: Tokens, backbone: Backbone, *, final: bool) -> Tensor:
    """Return the pooled vectors (n, D') float32 of stored tokens, as the graph computes them before whitening and L2.

    The aggregator moves to the backbone's device, where the vectors lie.
    """
    aggregator.to(backbone.device)
    norm = backbone.norm if final else None
    after = backbone.pool_norm if final and backbone.norm is None else None
    parts = []
    with torch.inference_mode():
        for first in range(0, len(tokens), _CHUNK):
            chunk = tokens[slice(first, first + _CHUNK)]
            vector = aggregator(StoredFeatures(chunk, backbone, norm)).vector
            parts.append(vector if after is None else after(vector.unflatten(-1, (-1, backbone.shape.dim))).flatten(-2))
    return torch.cat(parts)


@full_precision()
def pool_all(aggregators: Sequence[Aggregator], tokens: Tokens, backbone: Backbone) -> list[Tensor]:
    """Return the pooled vectors (n, D') of raw tokens by each aggregator; tokens are read and widened once for all."""
    for aggregator in aggregators:
        aggregator.to(backbone.device)
    parts: list[list[Tensor]] = [[] for _ in aggregators]
    with torch.inference_mode():
        for first in range(0, len(tokens), _CHUNK):
            features = StoredFeatures(tokens[slice(first, first + _CHUNK)], backbone, None)
            for found, aggregator in zip(parts, aggregators, strict=True):
                found.append(aggregator(features).vector)
    return [torch.cat(found) for found in parts]
