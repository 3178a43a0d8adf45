"""The record that describes a backbone family: the token shape of its models and how to split them into parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mimexport.blocks import ClosedBlock, OpenBlock


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a backbone's output tokens.

    Attributes:
        dim: width D of a token.
        grid: patch tokens at the output, rows and columns.
        prefix: number of [cls] and register tokens before the patches.
        has_cls: whether the first prefix token is [cls].
        kept: number of patches at the output if some are dropped; None if all are kept.

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
    """The parts of a timm model.

    Attributes:
        embed: maps images to the tokens that enter the first block.
        blocks: all blocks.
        regroup: reorders the tokens before the last block.
        place: adds positions and prefix tokens to embedded patches (B, N, D); None if patches cannot be dropped.
        norm_pre: norm of the tokens that enter the first block; applied after `place`.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: list[OpenBlock | ClosedBlock]
    regroup: Callable[[Tensor], Tensor] = lambda tokens: tokens
    place: Callable[[Tensor], Tensor] | None = None
    norm_pre: nn.Module = field(default_factory=nn.Identity)


@dataclass(frozen=True, slots=True)
class Family:
    """How models of one timm class become a backbone. To add one, write a file and a line in `FAMILIES`.

    Attributes:
        open_model: splits a model into parts; position tables become constants.
        shape: returns the shape of the model's tokens.
        unit: returns the number that the input edge must be a multiple of, px.

    """

    open_model: Callable[[Any], BackboneParts]
    shape: Callable[[Any], Shape]
    unit: Callable[[Any], int]


def real_module(module: nn.Module | None) -> nn.Module | None:
    """Return `module`, or None if it is an identity."""
    return None if isinstance(module, nn.Identity) else module
