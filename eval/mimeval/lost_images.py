"""List the images that torch got right and an engine wrong, with links to the page of `mimexport browse`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

import numpy as np

from mimeval.report import TORCH, Report, Score

PAGE = "http://127.0.0.1:8010/"
"""Default address of the page of `mimexport browse`."""
_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class LostImages:
    """The images of one model that one engine classifies differently from torch.

    Attributes:
        model: title of the model.
        deployment: engine and precision.
        lost: names of images that torch got right and the engine wrong.
        won: number of images that torch got wrong and the engine right.

    """

    model: str
    deployment: str
    lost: tuple[str, ...]
    won: int


def lost_images(report: Report) -> Iterator[LostImages]:
    """Yield the lost images of every engine by the deciding metric, if scores are right or wrong."""
    rows = [
        row for row in report.scores if row.metric == report.metric and row.fitted == "torch" and row.bits is not None
    ]
    torch: dict[str, Score] = {row.model: row for row in rows if row.deployment == TORCH}
    for row in rows:
        if row.deployment == TORCH or row.model not in torch:
            continue
        now = row.scores()
        before = torch[row.model].scores()[: len(now)]  # engines see the first images
        lost = tuple(report.names[at] for at in np.flatnonzero(before & ~now))
        yield LostImages(row.model, row.deployment, lost, int((~before & now).sum()))


def as_section(report: Report) -> str:
    """Return these images as HTML; "" if there are none."""
    found = [each for each in lost_images(report) if each.lost]
    if not found:
        return ""
    return (
        "<h2>Right in torch, wrong on an engine</h2><p>Each is a link into a page that shows its neighbours side by side:"
        " <code>mimexport browse ARTIFACT OTHER-PRECISION --images FOLDER</code></p>"
        f"<div id='lost'>{''.join(map(_details, found))}</div>"
    )


def _details(found: LostImages) -> str:
    links = ", ".join(f"<a href='{PAGE}#image={quote(name)}'>{escape(name)}</a>" for name in found.lost[:_MOST_SHOWN])
    more = f" and {len(found.lost) - _MOST_SHOWN:,} more" if len(found.lost) > _MOST_SHOWN else ""
    title = f"{found.model}, {found.deployment}: {len(found.lost):,} lost, {found.won:,} won"
    return f"<details><summary>{escape(title)}</summary><p>{links}{more}</p></details>"
