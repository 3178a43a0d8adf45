"""Write the results of `frontier.py` as tables below the page's prose, and draw the plot.

python tools/frontier_page.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aggregator_tables
import click
import numpy as np
from frontier_plot import draw
from frontier_rows import CLS, FULL, ROWS, Row

from mimeval.statistics import Interval, bootstrap_means, interval, paired_difference

TRAINING = "training k-NN"
PAGE = Path("early-selection.md")
PLOT = Path("images") / "early-selection.svg"
MARKER = "<!-- written by tools/frontier.py, below this line -->"
_EMPTY = ""


def write_page(results: Path) -> None:
    """Write the page and the plot from the results of all backbones."""
    (results / PAGE).write_text(written(results), encoding="utf-8")
    draw(_read(results), results.parent / PLOT)


def written(results: Path) -> str:
    """Return the complete text of the page: its prose, and below it the tables of all backbones."""
    prose = (results / PAGE).read_text(encoding="utf-8").partition(MARKER)[0]
    return prose + "\n\n".join([MARKER, *map(_section, _read(results))]) + "\n"


def _read(results: Path) -> list[dict[str, Any]]:
    return [aggregator_tables.read(file) for file in sorted(results.glob("early-selection-*.json"), reverse=True)]


def strongest(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the results of the stronger [cls], chosen on training images; {} if none was measured."""
    found = [stored["rows"][row.title] for row in CLS if row.title in stored["rows"]]
    return found[0] if len(found) == 1 else max(found, key=lambda row: row[TRAINING].mean(), default={})


def kept_gain(row: np.ndarray, cls: np.ndarray, full: np.ndarray) -> Interval:
    """Return the share of the full encoder's gain over [cls] that a row keeps, with its paired bootstrap interval.

    Args:
        row: correctness of the row, bool (n,).
        cls: correctness of [cls], bool (n,).
        full: correctness of the full encoder, bool (n,).

    """
    draws = bootstrap_means(np.stack([row, cls, full], 1).astype(float))
    shares = (draws[:, 0] - draws[:, 1]) / (draws[:, 2] - draws[:, 1])
    return interval(float((row.mean() - cls.mean()) / (full.mean() - cls.mean())), shares)


def _section(stored: dict[str, Any]) -> str:
    engines = stored.get("engines", [])
    head = [
        "row", "operations", *(f"× images/s, {engine}" for engine in engines), "training k-NN, to everything", "k-NN", "to [cls]",
        "gain kept", "linear probe", "to [cls]",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(_cells(stored, row))} |" for row in ROWS if row.title in stored["rows"]]
    return "\n\n".join([f"## {stored['model']}", _conditions(stored), "\n".join(lines)])


def _conditions(stored: dict[str, Any]) -> str:
    told = []
    if "sizes" in stored:
        training, images = stored["sizes"]
        told.append(f"{images:,} images judged by {training:,} training images; torch, {stored['torch']}.")
    full = stored["rows"].get(FULL.title, {})
    if "rates" in full:
        speeds = [f"{full['rates'][engine][0]:,.0f} in {engine}" for engine in stored["engines"]]
        told.append(f"Speed: batch {stored['batch']}, {stored['machine']}; everything: images/s {', '.join(speeds)}.")
    return " ".join(told)


def _cells(stored: dict[str, Any], row: Row) -> list[str]:
    rows, cls = stored["rows"], strongest(stored)
    found, full = rows[row.title], rows.get(FULL.title, {})
    rates = rows.get(row.timed.title, {}).get("rates", {})
    cells = [_title(row.title), f"{1 / found['operations']:.2f} × fewer"]
    for engine in stored.get("engines", []):
        rate = rates.get(engine)
        cells.append(_EMPTY if rate is None else f"{rate[1]:.2f} ({rate[2]:.2f} to {rate[3]:.2f})")
    if "k-NN" not in found or "k-NN" not in full or not cls:
        return [*cells, *[_EMPTY] * 6]
    judged = TRAINING in found and TRAINING in full
    cells.append(_signed(paired_difference(found[TRAINING], full[TRAINING])) if judged else _EMPTY)
    cells += [f"{100 * found['k-NN'].mean():.2f}", _signed(paired_difference(found["k-NN"], cls["k-NN"]))]
    kept = kept_gain(found["k-NN"], cls["k-NN"], full["k-NN"])
    cells.append(f"{100 * kept.value:.0f} % [{100 * kept.low:.0f}, {100 * kept.high:.0f}]")
    if "linear probe" not in found or "linear probe" not in cls:
        return [*cells, _EMPTY, _EMPTY]
    probe = paired_difference(found["linear probe"], cls["linear probe"])
    return [*cells, f"{100 * found['linear probe'].mean():.2f}", _signed(probe)]


def _signed(difference: Interval) -> str:
    return f"{100 * difference.value:+.2f} [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _title(title: str) -> str:
    return f"`{title}`" if title.startswith("--") else title


@click.command()
@click.option(
    "--results", type=click.Path(path_type=Path, exists=True), default=aggregator_tables.PAGE.parent, show_default=True
)
def main(results: Path) -> None:
    """Write the page and the plot from the results of all backbones."""
    write_page(results)


if __name__ == "__main__":
    main()
