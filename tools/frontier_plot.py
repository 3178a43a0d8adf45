"""Draw the results of `frontier.py`: accuracy against images/s."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
from frontier_rows import CLS, FULL, ROWS, Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mimeval.statistics import mean_interval

METRICS = ("k-NN", "linear probe")
_COLOURS = {
    "everything": "black", "smaller image": "tab:red", "fixed rule": "tab:blue", "by content": "tab:green",
    "learned": "tab:olive", "merging": "tab:orange", "smaller image, fixed rule": "tab:purple",
}  # fmt: skip


def draw(everything: list[dict[str, Any]], file: Path) -> bool:
    """Draw a panel for every backbone, metric and engine that was measured; return whether there was any."""
    panels = [
        (stored, metric, engine)
        for stored in everything
        for metric, engine in product(METRICS, stored.get("engines", []))
        if _points(stored, metric, engine)
    ]
    if not panels:
        return False
    columns = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.2 * lines), layout="constrained")
    for place, (stored, metric, engine) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        _panel(axes, stored, metric, engine)
    for group, colour in _COLOURS.items():
        figure.axes[0].plot([], [], "o", color=colour, label=group)
    figure.legend(
        handles=figure.axes[0].get_legend_handles_labels()[0],
        ncols=len(_COLOURS),
        loc="outside lower center",
        fontsize=8,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "early-selection"}):
        figure.savefig(file, metadata={"Date": None})
    return True


def _panel(axes: Axes, stored: dict[str, Any], metric: str, engine: str) -> None:
    points = _points(stored, metric, engine)
    for row, (speed, value) in points.items():
        half = mean_interval(stored["rows"][row.title][metric])
        mark = "s" if row.agg == "center-weighted" else "o"
        error = [[100 * (value - half.low)], [100 * (half.high - value)]]
        axes.errorbar(speed, 100 * value, error, fmt=mark, color=_COLOURS[row.group], ms=5, elinewidth=0.4)
        if not any(faster >= speed and better > value for faster, better in points.values()):
            axes.annotate(
                row.title.replace("--keep-by ", "").replace("--", ""),
                (speed, 100 * value),
                textcoords="offset points",
                xytext=(5, 3),
                fontsize=6,
            )
    for row in CLS:
        if metric in (found := stored["rows"].get(row.title, {})):
            axes.axhline(100 * found[metric].mean(), color="#999999", lw=0.8, ls=":")
    axes.margins(x=0.2)  # room for the labels
    axes.set(title=f"{stored['model']}, {engine}", xlabel="images/s", ylabel=f"{metric}, %")


def _points(stored: dict[str, Any], metric: str, engine: str) -> dict[Row, tuple[float, float]]:
    """Return images/s and accuracy of every row that has both; the ratio measured in turn, times the full encoder's."""
    rows, found = stored["rows"], {}
    full = rows.get(FULL.title, {}).get("rates", {}).get(engine)
    for row in ROWS:
        rate = rows.get(row.timed.title, {}).get("rates", {}).get(engine)
        if full and rate and row not in CLS and metric in rows.get(row.title, {}):
            found[row] = (full[0] * rate[1], float(rows[row.title][metric].mean()))
    return found
