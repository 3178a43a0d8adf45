"""What a family of backbones says of its models: their shape, and how they come apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mimexport.blocks import ClosedBlock, OpenBlock


@dataclass(frozen=True, slots=True)
class Shape:
    """What an aggregator must know of a backbone before it runs.

    Attributes:
        dim: width D of a token.
        grid: patch tokens at the output, rows and columns.
        prefix: number of [cls] and register tokens in front of the patches.
        has_cls: whether the first prefix token is [cls].
        kept: how many patches of the grid are left at the output; None where all are.

    """

    dim: int
    grid: tuple[int, int]
    prefix: int
    has_cls: bool
    kept: int | None = None

    @property
    def patches(self) -> int:
        """Number N of patch tokens at the output."""
        return self.grid[0] * self.grid[1] if self.kept is None else self.kept


@dataclass(frozen=True, slots=True)
class BackboneParts:
    """A timm model taken apart.

    Attributes:
        embed: images to the tokens that enter the first block.
        blocks: all of them.
        regroup: what happens to the tokens before the last block.
        place: adds positions and prefix to embedded patches (B, N, D); None where patches cannot be dropped.
        norm_pre: of the tokens that enter the first block, where they are placed by `place`.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: list[OpenBlock | ClosedBlock]
    regroup: Callable[[Tensor], Tensor] = lambda tokens: tokens
    place: Callable[[Tensor], Tensor] | None = None
    norm_pre: nn.Module = field(default_factory=nn.Identity)


@dataclass(frozen=True, slots=True)
class Family:
    """How models of one class become a backbone. To add one: a file with these, and a line in `FAMILIES`.

    Attributes:
        open_model: takes a model apart; position tables are baked.
        shape: of its tokens.
        unit: what the edge of its input must be a multiple of, px.

    """

    open_model: Callable[[Any], BackboneParts]
    shape: Callable[[Any], Shape]
    unit: Callable[[Any], int]


def real_module(module: nn.Module | None) -> nn.Module | None:
    """Return `module`, None for an identity that stands for nothing."""
    return None if isinstance(module, nn.Identity) else module
