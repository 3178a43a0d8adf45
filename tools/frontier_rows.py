"""The rows of `frontier.py`: what enters the encoder, by which rule, and the aggregator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from mimexport.keep import resolve_keep
from mimruntime.manifest import TokenNorm

Group = Literal[
    "[cls]", "everything", "smaller image", "fixed rule", "by content", "learned", "merging", "smaller image, fixed rule"
]  # fmt: skip
AGGREGATORS = ("topk", "center-weighted")
LEARNED = ("learned removal", "learned halves", "learned places")
"""Rules of `learned_rule.py`."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: the group, which sets the colour in the plot.
        keep: as `--keep` of `build`; None keeps all patches.
        by: as `--keep-by` of `build`, or a name in `LEARNED`.
        size: edge of the image in px; None takes that of the backbone.
        agg: aggregator; for merged patches "topk" means their mean weighted by size.
        norm: token norm.
        merge: number of pairs that are merged in each block; () merges none.

    """

    group: Group
    keep: str | None = None
    by: str | None = None
    size: int | None = None
    agg: str = "topk"
    norm: TokenNorm = "raw"
    merge: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The options of the row, as a user would type them."""
        if self.agg == "cls":
            return f"[cls], {self.norm}"
        options = [f"--image-size {self.size}"] if self.size else []
        options += [f"--keep {self.keep}"] if self.keep else []
        options += [f"--keep-by {self.by.replace(' ', '-')}"] if self.by else []
        options += [f"--agg {self.agg}"] if self.agg != "topk" else []
        runs = [f"{len(list(run))} × {pairs}" for pairs, run in groupby(self.merge)]
        return (
            ", ".join([*([" ".join(options)] if options else []), *([f"ToMe {', '.join(runs)}"] if runs else [])])
            or "everything"
        )

    @property
    def folder(self) -> str:
        """Name of the folder of its graph."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.title)

    @property
    def encoder(self) -> Row:
        """The row of the same encoder with the default aggregator."""
        return replace(self, group="everything", agg="topk", norm="raw")

    @property
    def timed(self) -> Row:
        """The row whose speed this one has: a learned rule costs what `norm` costs."""
        return replace(self, group="by content", by="norm") if self.by in LEARNED else self

    def tokens(self, patches: int, depth: int) -> list[int]:
        """Return the number of patches that enter each block."""
        keep = resolve_keep(self.keep, self.timed.by, patches, depth)
        counts, left = [], patches
        for block in range(depth):
            left = next((stage.patches for stage in keep.stages if stage.block == block), left) if keep else left
            counts.append(left)
            left -= self.merge[block] if self.merge else 0
        return counts


_SOME = "center-checkerboard"
FULL = Row("everything")
CLS = (Row("[cls]", agg="cls", norm="raw"), Row("[cls]", agg="cls", norm="final"))
ROWS = (
    *CLS,
    FULL,
    Row("everything", agg="center-weighted"),
    *(Row("fixed rule", share, _SOME, agg=agg) for share in ("65%", "50%") for agg in AGGREGATORS),
    *(Row("smaller image", size=size) for size in (56, 48, 40)),
    Row("merging", merge=(*[4] * 11, 0)),
    Row("smaller image, fixed rule", "65%", _SOME, size=56),
    Row("merging", merge=(16, 16, 4, 4, *[0] * 8)),
    Row("by content", "50%", "norm"),
    Row("fixed rule", "50%", "center"),
    Row("fixed rule", "50%", "checkerboard"),
    Row("smaller image, fixed rule", "75%", _SOME, size=48),
    Row("by content", "50%@4", "center-norm"),
    *(Row("by content", "50%", by) for by in ("contrast", "center-norm", "similarity")),
    *(Row("learned", "50%", by) for by in LEARNED),
    *(Row("fixed rule", share, _SOME) for share in ("75%", "62%", "47%", "44%", "25%")),
    Row("smaller image, fixed rule", "75%", _SOME, size=56),
    Row("by content", "75%@2,50%@6", "center-norm"),
)
"""The most important first."""
ENCODERS = (
    CLS,
    *(
        tuple(row for row in ROWS if row.encoder == encoder and row not in CLS)
        for encoder in dict.fromkeys(row.encoder for row in ROWS)
    ),
)
"""Rows that share an encoder in one precision."""
