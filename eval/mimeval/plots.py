"""The figures of the report's page, as SVG with searchable text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from mimeval.comparison import Row
from mimeval.report import TORCH, Gain, Report
from mimruntime.errors import MissingExtraError

_ROW_INCHES = 0.24
_COLOURS = {"pass": "#2a7f62", "fail": "#c0392b", "undecided": "#b8860b"}


def gains_plot(gains: Sequence[Gain]) -> str:
    """Plot gains with intervals, one row per model, deployment and `fitted`; the open mark above is the gain in torch."""
    rows = sorted(gains, key=lambda gain: (gain.model, gain.deployment, gain.fitted), reverse=True)
    figure, axes = _figure(9, 1.2 + _ROW_INCHES * 1.6 * max(1, len(rows)))
    for place, gain in enumerate(rows):
        for interval, offset, mark, colour in (
            (gain.found.reference, 0.2, "o", "#777777"),
            (gain.found.gain, -0.2, "s", _COLOURS[gain.found.verdict]),
        ):
            value, low, high = (100 * part for part in (interval.value, interval.low, interval.high))
            axes.plot([low, high], [place + offset] * 2, color=colour, lw=1.5)
            filled = "white" if mark == "o" else colour
            axes.plot(value, place + offset, mark, ms=5, color=colour, markerfacecolor=filled)
    axes.axvline(0, color="#333333", lw=0.8)
    axes.set_yticks(range(len(rows)), [f"{_plain(gain.model)}, {gain.deployment}, on {gain.fitted}" for gain in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlabel("gain over the baseline, points (95 % interval); grey, open: torch")
    return _svg(figure)


def differences_plot(rows: Sequence[Row]) -> str:
    """Plot differences with intervals, one row per metric; coloured if the interval excludes zero."""
    figure, axes = _figure(9, 0.9 + 0.35 * len(rows))
    for place, row in enumerate(reversed(rows)):
        value, low, high = (100 * part for part in (row.difference.value, row.difference.low, row.difference.high))
        colour = _COLOURS["pass"] if low > 0 else _COLOURS["fail"] if high < 0 else "#777777"
        axes.plot([low, high], [place, place], color=colour, lw=2)
        axes.plot(value, place, "s", ms=6, color=colour)
    axes.axvline(0, color="#333333", lw=0.8)
    axes.set_yticks(range(len(rows)), [row.metric for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("difference, points (95 % interval)")
    return _svg(figure)


def frontier_plot(report: Report) -> str:
    """Plot accuracy by the deciding metric against images per second; no other point beats those on the line in both."""
    rates = {(row.model, row.deployment): row.rate for row in report.drifts if row.rate is not None}
    found = {
        (row.model, row.deployment): 100 * row.accuracy.value
        for row in report.scores
        if row.metric == report.metric and row.fitted == "torch" and row.deployment != TORCH
    }
    figure, axes = _figure(9, 5)
    keys = [key for key in found if key in rates]
    for deployment in dict.fromkeys(key[1] for key in keys):
        own = [key for key in keys if key[1] == deployment]
        axes.plot([rates[key] for key in own], [found[key] for key in own], "o", ms=6, label=deployment)
    for key in keys:
        axes.annotate(_plain(key[0]), (rates[key], found[key]), textcoords="offset points", xytext=(5, 3), fontsize=7)
    best = frontier([(rates[key] or 0.0, found[key]) for key in keys])
    if best:
        axes.plot(*zip(*best, strict=True), color="#333333", lw=0.8, zorder=0)
        axes.legend(fontsize=8)
    axes.set_xlabel("images per second, the engine alone")
    axes.set_ylabel(f"{report.metric}, %")
    return _svg(figure)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (x, y) that no other point beats in both, by decreasing x."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def _plain(name: str) -> str:
    """Escape a name for matplotlib, which typesets text between two dollars as formulas."""
    return name.replace("$", r"\$")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and only a report needs it
    except ImportError as error:
        raise MissingExtraError("the report's page", "eval") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#dddddd", lw=0.5)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl  # noqa: PLC0415 - as above

    stream = io.StringIO()
    # Keep text as text, so that it can be searched; the fixed salt makes pages reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mimeval"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawn = stream.getvalue()
    return drawn[drawn.index("<svg") :]
