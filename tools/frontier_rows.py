"""The rows of `frontier.py`: the number of patches, the rule, the size of the image, and the aggregator."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from token_merging import MergingModel

from mimexport.embedding_model import EmbeddingModel
from mimexport.keep import resolve_keep

Group = Literal["everything", "smaller image", "fixed rule", "by content", "merging", "smaller image, fixed rule"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: the group, which sets the colour in the plot.
        keep: as `--keep` of `build`; None keeps all patches.
        by: as `--keep-by` of `build`.
        size: edge of the image in px; None takes that of the backbone.
        agg: aggregator; for merged patches "topk" means their mean weighted by size.
        merge: number of pairs that are merged in each block; () merges none.

    """

    group: Group
    keep: str | None = None
    by: str | None = None
    size: int | None = None
    agg: str = "topk"
    merge: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The options of the row, as a user would type them."""
        options = [f"--image-size {self.size}"] if self.size else []
        options += [f"--keep {self.keep}"] if self.keep else []
        options += [f"--keep-by {self.by}"] if self.by else []
        options += [f"--agg {self.agg}"] if self.agg != "topk" else []
        runs = [f"{len(list(run))} × {pairs}" for pairs, run in groupby(self.merge)]
        return (
            ", ".join([*([" ".join(options)] if options else []), *([f"ToMe {', '.join(runs)}"] if runs else [])])
            or "everything"
        )

    @property
    def folder(self) -> str:
        """Name of the folder of its artifact."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.title)

    def tokens(self, patches: int, depth: int) -> list[int]:
        """Return the number of patches that enter each block."""
        keep = resolve_keep(self.keep, self.by, patches, depth)
        counts, left = [], patches
        for block in range(depth):
            left = next((stage.patches for stage in keep.stages if stage.block == block), left) if keep else left
            counts.append(left)
            left -= self.merge[block] if self.merge else 0
        return counts

    def merging(self, model: EmbeddingModel) -> MergingModel:
        """Return the network of merged patches."""
        return MergingModel(model, self.merge, centered=self.agg == "center-weighted")


_SOME = "center-checkerboard"
FULL = Row("everything")
ROWS = (
    FULL,
    Row("everything", agg="center-weighted"),
    *(Row("smaller image", size=size) for size in (56, 48, 40)),
    Row("smaller image", size=48, agg="center-weighted"),
    *(Row("fixed rule", share, _SOME) for share in ("75%", "65%", "50%")),
    *(Row("fixed rule", share, _SOME, agg="center-weighted") for share in ("75%", "65%", "50%", "37.5%", "25%")),
    Row("fixed rule", "65%", "center"),
    Row("fixed rule", "50%", "checkerboard", agg="center-weighted"),
    Row("fixed rule", "50%", "center"),
    Row("fixed rule", "50%", "checkerboard"),
    Row("fixed rule", "75%@0,50%@6", _SOME, agg="center-weighted"),
    Row("by content", "50%", "contrast"),
    Row("by content", "50%", "norm"),
    Row("by content", "65%", "center-norm"),
    Row("by content", "50%@4", "center-norm"),
    Row("by content", "50%@4", "norm"),
    Row("by content", "75%@2,50%@6", "center-norm"),
    Row("smaller image, fixed rule", "65%", "checkerboard", size=56),
    Row("smaller image, fixed rule", "65%", "checkerboard", size=56, agg="center-weighted"),
    *(Row("merging", agg=agg, merge=(*[r] * 11, 0)) for r in (4, 5) for agg in ("topk", "center-weighted")),
)
