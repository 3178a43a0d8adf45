"""Write the results of `frontier.py` as a page and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aggregator_tables
import numpy as np
from frontier_rows import FULL, ROWS
from matplotlib.figure import Figure

from mimeval.statistics import bootstrap_means, paired_difference

CLS = "[cls]"
SAME_CLASS = "same class"
PAGE = Path("early-selection.md")
PLOT = Path("images") / "early-selection.png"
MARKER = "<!-- written by tools/frontier.py, below this line -->"
_COLOURS = {
    "everything": "black", "smaller image": "tab:red", "fixed rule": "tab:blue", "by content": "tab:green",
    "merging": "tab:orange", "smaller image, fixed rule": "tab:purple",
}  # fmt: skip


def write_page(results: Path) -> None:
    """Write the page and the plot from the results of all backbones."""
    (results / PAGE).write_text(written(results), encoding="utf-8")
    if everything := _read(results, explored=False):
        _plot(everything, results.parent / PLOT)


def written(results: Path) -> str:
    """Return the complete text of the page: its prose, and below it the tables of all backbones."""
    prose = (results / PAGE).read_text(encoding="utf-8").partition(MARKER)[0]
    sections = [*map(_section, _read(results, explored=False)), *map(_explored, _read(results, explored=True))]
    return prose + MARKER + "\n\n" + "\n\n".join(sections) + "\n"


def _read(results: Path, *, explored: bool) -> list[dict[str, Any]]:
    files = sorted(results.glob("early-selection-*.json"), reverse=True)
    return [aggregator_tables.read(file) for file in files if file.stem.endswith("-explored") == explored]


def _explored(stored: dict[str, Any]) -> str:
    rows = stored["rows"]
    lines = ["| row | operations | of the same class | to everything |", "|---|---|---|---|"]
    for row in sorted((row for row in ROWS if row.title in rows), key=lambda row: -rows[row.title][SAME_CLASS].mean()):
        found = rows[row.title]
        change = paired_difference(found[SAME_CLASS], rows[FULL.title][SAME_CLASS])
        lines.append(
            f"| {_title(row.title)} | {1 / found['operations']:.2f} × fewer | {100 * found[SAME_CLASS].mean():.2f} % |"
            f" {100 * change.value:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}] |"
        )
    return "\n\n".join([
        f"## Rules for {stored['model']}, explored",
        f"{stored['images']:,} training images, each with the others: how many of its 20 nearest are of its class."
        f" Torch, {stored['precision']}.",
        "\n".join(lines),
    ])  # fmt: skip


def kept_gain(row: np.ndarray, cls: np.ndarray, full: np.ndarray) -> tuple[float, float, float]:
    """Return the share of the full encoder's gain over [cls] that a row keeps, with its paired bootstrap interval.

    Args:
        row: correctness of the row, bool (n,).
        cls: correctness of [cls], bool (n,).
        full: correctness of the full encoder, bool (n,).

    """
    draws = bootstrap_means(np.stack([row, cls, full], 1).astype(float))
    shares = (draws[:, 0] - draws[:, 1]) / (draws[:, 2] - draws[:, 1])
    low, high = np.quantile(shares, [0.025, 0.975])
    return float((row.mean() - cls.mean()) / (full.mean() - cls.mean())), float(low), float(high)


def _section(stored: dict[str, Any]) -> str:
    cls = stored["rows"][CLS]
    engines = stored["engines"]
    head = [
        "row", "operations", *(f"× images/s, {engine}" for engine in engines), "k-NN", "to [cls]", "gain kept", "linear probe"
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(_cells(stored, row.title, cls))} |" for row in ROWS if row.title in stored["rows"]]
    full = stored["rows"][FULL.title]
    speeds = [f"{full['rates'][engine][0]:,.0f} in {engine}" for engine in engines if "rates" in full]
    training, images = stored["sizes"]
    text = [
        f"## {stored['model']}",
        f"{images:,} images judged by {training:,} training images; the stronger [cls] has k-NN {100 * cls['k-NN'].mean():.2f}."
        f" Batch {stored['batch']}, {stored['machine']}; everything: images/s"
        f" {', '.join(speeds)}.",
        "\n".join(lines),
    ]
    return "\n\n".join(text)


def _title(title: str) -> str:
    return f"`{title}`" if title.startswith("--") else title


def _cells(stored: dict[str, Any], title: str, cls: dict[str, np.ndarray]) -> list[str]:
    found, full = stored["rows"][title], stored["rows"][FULL.title]
    rates = [found["rates"][engine] if "rates" in found else None for engine in stored["engines"]]
    cells = [_title(title), f"{1 / found['operations']:.2f} × fewer"]
    cells += ["" if rate is None else f"{rate[1]:.2f} ({rate[2]:.2f} to {rate[3]:.2f})" for rate in rates]
    if "k-NN" not in found or "k-NN" not in full:
        return [*cells, "", "", "", ""]
    gain = paired_difference(found["k-NN"], cls["k-NN"])
    kept = kept_gain(found["k-NN"], cls["k-NN"], full["k-NN"])
    cells.append(f"{100 * found['k-NN'].mean():.2f}")
    cells.append(f"{100 * gain.value:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]")
    cells.append(f"{100 * kept[0]:.0f} % [{100 * kept[1]:.0f}, {100 * kept[2]:.0f}]")
    return [*cells, f"{100 * found['linear probe'].mean():.2f}" if "linear probe" in found else ""]


def _plot(everything: list[dict[str, Any]], file: Path) -> None:
    figure = Figure(figsize=(6 * len(everything), 5), layout="constrained")
    for place, stored in enumerate(everything):
        cls = stored["rows"][CLS]
        axes = figure.add_subplot(1, len(everything), place + 1)
        full = stored["rows"][FULL.title]
        for row in ROWS:
            found = stored["rows"].get(row.title, {})
            if not {"k-NN", "rates"} <= found.keys():
                continue
            speed, kept = found["rates"][stored["engines"][-1]][1], kept_gain(found["k-NN"], cls["k-NN"], full["k-NN"])
            mark = "s" if row.agg == "center-weighted" else "o"
            axes.plot(speed, 100 * kept[0], mark, color=_COLOURS[row.group], ms=6)
            axes.annotate(
                row.title.replace("--", ""),
                (speed, 100 * kept[0]),
                textcoords="offset points",
                xytext=(5, 3),
                fontsize=5,
            )
        axes.axhline(95, color="#999999", lw=0.8, ls=":")
        axes.axhline(85, color="#999999", lw=0.8, ls=":")
        axes.set_title(stored["model"])
        axes.set_xlabel(f"images/s in {stored['engines'][-1]}, × those of the full encoder")
        axes.set_ylabel("gain over [cls] that is kept, k-NN, %")
    for group, colour in _COLOURS.items():
        figure.axes[0].plot([], [], "o", color=colour, label=group)
    figure.axes[0].legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
