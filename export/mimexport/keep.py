"""The options `--keep` and `--keep-by`: which patches stay in the encoder, as a record of the manifest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from mimexport.counts import parse_count
from mimexport.families import family_of
from mimexport.grid import center_checkerboard_order, center_order, checkerboard_order
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import Keep, KeepStage

FIXED: dict[str, Callable[[tuple[int, int]], Tensor]] = {
    "center": center_order,
    "checkerboard": checkerboard_order,
    "center-checkerboard": center_checkerboard_order,
}
"""Rules that are the same for every image: the order (N,) of a grid's patches, of which the first stay."""

PIXELS, SIMILARITY = "contrast", "similarity"
BY_CONTENT = ("norm", "center-norm", PIXELS, SIMILARITY)
"""Rules that look at the image. norm: length of the token that enters the block; center-norm: the same times the patch's
closeness to the centre; contrast: variance of the patch's pixels; similarity: the patches whose tokens are least similar to
the mean of all that are left."""

DEFAULT_RULE = "center-checkerboard"
"""Chosen on training images of two backbones; docs/results/early-selection.md measures it and the others."""


def check_keep(keep: str | None, rule: str | None) -> None:
    """Refuse, before a model is loaded, what no model could take.

    Raises:
        UnknownNameError: no such rule.
        OptionError: a rule without `keep`, or a schedule that cannot be read.

    """
    if rule is not None and keep is None:
        raise OptionError(
            f"--keep-by {rule} says which patches stay, not how many; give --keep, for example --keep 50%"
        )
    if rule is not None and rule not in (*FIXED, *BY_CONTENT):
        raise UnknownNameError("keep-by rule", rule, [*FIXED, *BY_CONTENT])
    if keep is not None:
        _split(keep)


def resolve_keep(keep: str | None, rule: str | None, patches: int, depth: int) -> Keep | None:
    """Return the record of a schedule, or None where every patch stays.

    Args:
        keep: "50%", "49", or several with the block before which they apply, "75%@0,50%@6"; shares are of all patches.
        rule: a name in `FIXED` or `BY_CONTENT`; None takes `DEFAULT_RULE`.
        patches: of the backbone's grid.
        depth: number of its blocks.

    Raises:
        UnknownNameError: no such rule.
        OptionError: a schedule that cannot be read, does not fall, or names a block that is not there.

    """
    check_keep(keep, rule)
    if keep is None:
        return None
    given = [KeepStage(block=block, patches=parse_count("--keep", count, patches)) for count, block in _split(keep)]
    for stage in given:
        if stage.block >= depth:
            raise OptionError(f"--keep {keep}: block {stage.block} was given, the model has blocks 0 to {depth - 1}")
    for earlier, later in pairwise(given):
        if later.block <= earlier.block or later.patches > earlier.patches:
            raise OptionError(
                f"--keep {keep}: {earlier.patches} patches before block {earlier.block}, then {later.patches} before block"
                f" {later.block}; expected later blocks with fewer patches, for example 75%@0,50%@6"
            )
    stages, left = [], patches
    for stage in given:
        if stage.patches < left:
            stages.append(stage)
            left = stage.patches
    return Keep(stages=tuple(stages), by=rule or DEFAULT_RULE) if stages else None


def keep_in(model: nn.Module, keep: str | None, rule: str | None) -> Keep | None:
    """Return the record of a schedule for a timm model that was not taken apart yet; see `resolve_keep`."""
    blocks: Any = model.blocks
    return resolve_keep(keep, rule, family_of(model).shape(model).patches, len(blocks))


def _split(keep: str) -> list[tuple[str, int]]:
    """Return the counts of a schedule and the blocks before which they apply."""
    parts = [part.strip().partition("@") for part in keep.split(",")]
    if any(not count or (mark and not (block.isascii() and block.isdigit())) for count, mark, block in parts):
        raise OptionError(
            f"--keep {keep}: expected a count (49) or share (50%) of the patches, several with the block before which"
            " they apply: 75%@0,50%@6"
        )
    return [(count, int(block or 0)) for count, _, block in parts]
