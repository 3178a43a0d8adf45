"""The features that an aggregator reads from one batch; each is computed on first access."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

from torch import Tensor, nn

from mimexport.backbone import Backbone, Shape
from mimexport.blocks import ALL, CLS, OpenBlock
from mimruntime.errors import OptionError


class Features(Protocol):
    """Features of a batch of B images with N patches of width D, in float32; computed by a backbone or stored."""

    shape: Shape
    kept: Tensor | None
    """Grid position of each patch, see `Encoded`; None if no patch was dropped."""

    def of_patches(self, table: Tensor) -> Tensor:
        """Return the entries of a full-grid table for the kept patches: (N,), or (B, N) if the images keep different ones."""

    @property
    def entering_energy(self) -> Tensor:
        """Squared length (B, N) of the patch tokens that enter the last block."""

    @property
    def raw_patches(self) -> Tensor:
        """Patch tokens (B, N, D) that leave the last block, without norm."""

    @property
    def patches(self) -> Tensor:
        """Patch tokens (B, N, D) that leave the last block."""

    @property
    def cls(self) -> Tensor:
        """[cls] (B, D)."""

    @property
    def cls_and_patches(self) -> tuple[Tensor, Tensor]:
        """[cls] (B, D) and the patch tokens (B, N, D)."""

    @property
    def cls_attention(self) -> Tensor:
        """The last block's attention (B, heads, N) of [cls] to the patches, renormalised over them."""

    def rows(self, index: Tensor) -> Tensor:
        """Return the chosen patch tokens (B, k, D).

        Args:
            index: (B, k) int64 in [0, N), or (k,), the same for every image.

        """

    def mean_of(self, index: Tensor | None) -> Tensor:
        """Return the mean (B, D) of the chosen patch tokens.

        Args:
            index: see `rows`, or None for all patches.

        """


class ComputedFeatures:
    """`Features` computed by a backbone; each is computed on first access.

    Args:
        backbone: the frozen transformer.
        tokens: (B, S, D), the input of its last block, prefix tokens first.
        norm: applied to each token that is read (token norm 'final'), or None for 'raw' tokens.
        kept: grid position of each patch, see `Encoded`; None if no patch was dropped.

    Attributes:
        shape: shape of the backbone's tokens; N counts the kept patches.
        kept: as in Args.

    """

    def __init__(self, backbone: Backbone, tokens: Tensor, norm: nn.Module | None, kept: Tensor | None = None) -> None:
        if (backbone.keep is None) != (kept is None):
            raise ValueError("`kept` must be given if the backbone drops patches, and must be None otherwise")
        self.shape = backbone.shape
        self.kept = kept
        self._places = backbone.places_of(kept)
        self._block = backbone.last_block
        self._tokens = tokens
        self._norm = norm

    def of_patches(self, table: Tensor) -> Tensor:
        """See `Features`."""
        return table if self.kept is None else table[self.kept]

    def to_grid(self, weights: Tensor) -> Tensor:
        """Return patch weights (B, N) on the full grid (B, rows, columns), with 0 for dropped patches."""
        rows, columns = self.shape.grid
        if self.kept is not None:
            full = weights.new_zeros(weights.shape[0], rows * columns)
            weights = full.scatter(1, self.kept.expand(weights.shape[0], -1), weights)
        return weights.unflatten(1, (rows, columns))

    @cached_property
    def entering(self) -> Tensor:
        """Patch tokens (B, N, D) that enter the last block, without norm."""
        return self._tokens[:, self.shape.prefix :].float()

    @cached_property
    def entering_energy(self) -> Tensor:
        """Squared length (B, N) of the patch tokens that enter the last block."""
        return self.entering.square().sum(-1)

    @cached_property
    def raw_patches(self) -> Tensor:
        """Patch tokens (B, N, D) that leave the last block, without norm."""
        return self._output[:, self.shape.prefix :]

    @cached_property
    def patches(self) -> Tensor:
        """Patch tokens (B, N, D) that leave the last block."""
        return self._finish(self.raw_patches)

    @cached_property
    def cls(self) -> Tensor:
        """[cls] (B, D); the last block computes only this row."""
        return self._finish(self._block(self._tokens, CLS, self._places).float())[:, 0]

    @cached_property
    def cls_and_patches(self) -> tuple[Tensor, Tensor]:
        """[cls] (B, D) and the patch tokens (B, N, D)."""
        return self._finish(self._output[:, :1])[:, 0], self.patches

    def rows(self, index: Tensor) -> Tensor:
        """See `Features.rows`; the last block computes only these rows."""
        return self._finish(self._block(self._tokens, index + self.shape.prefix, self._places).float())

    def mean_of(self, index: Tensor | None) -> Tensor:
        """See `Features.mean_of`; raw tokens are averaged before the block's last product."""
        if self._norm is not None:
            return (self.patches if index is None else self.rows(index)).mean(1)
        prefix = self.shape.prefix
        rows = slice(prefix, None) if index is None else index + prefix
        return self._block.mean(self._tokens, rows, self._places)

    @cached_property
    def cls_attention(self) -> Tensor:
        """The last block's attention (B, heads, N) of [cls] to the patches, renormalised over them."""
        if not isinstance(self._block, OpenBlock):
            kind = type(self._block.block).__name__
            raise OptionError(f"the last block of this backbone ({kind}) does not expose its attention; use --agg topk")
        weights = self._block.attention(self._tokens, CLS, self._places)[:, :, 0, self.shape.prefix :]
        return weights / weights.sum(-1, keepdim=True)

    @cached_property
    def _output(self) -> Tensor:
        return self._block(self._tokens, ALL, self._places).float()

    def _finish(self, tokens: Tensor) -> Tensor:
        return tokens if self._norm is None else self._norm(tokens)
