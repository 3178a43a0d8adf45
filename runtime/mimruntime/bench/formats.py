"""Write a benchmark report as text, JSON and plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mimruntime.bench.bench import Report
from mimruntime.errors import MissingExtraError, OutputError


def as_text(report: Report) -> Iterator[str]:
    """Yield the lines of a Markdown table of runners, then one line per ratio."""
    rates = ", ".join(f"{rate:.0f} GFLOP/s in {precision}" for precision, rate in report.matrix_gflops.items())
    yield f"{report.artifact} on {report.machine}; products of 2048²: {rates}"
    yield ""
    batches = sorted({batch for one in report.runners for batch in one.images_per_second})
    heads = [f"batch {batch}" for batch in batches]
    yield f"| runner | p50 / p95 / p99 ms | {' | '.join(heads)} | decoding too | cold start s | peak MiB | share |"
    yield "|---" * (len(batches) + 6) + "|"
    for one in report.runners:
        rates = " | ".join(_cell(one.images_per_second.get(batch)) for batch in batches)
        latency = " / ".join(f"{value:.1f}" for value in one.latency_ms.values())
        rest = (one.with_decoding, one.cold_start_s, one.peak_mib, one.share)
        yield f"| {one.name} ({one.what}) | {latency} | {rates} | {' | '.join(map(_cell, rest))} |"
    yield from (f"{one.name}, decoding too: {one.spent}" for one in report.runners if one.spent)
    for name, reason in report.left_out.items():
        yield f"{name} left out: {reason}"
    if report.ratios:
        yield ""
    for ratio in report.ratios:
        yield (
            f"{ratio.ours} is {ratio.ratio:.2f} x {ratio.theirs}"
            f" (middle half {ratio.low:.2f} to {ratio.high:.2f} of {ratio.pairs} pairs in turn)"
        )


def write_json(report: Report, path: Path) -> None:
    """Write all figures as JSON.

    Raises:
        OutputError: the file cannot be written.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def write_plot(report: Report, path: Path) -> None:
    """Plot images per second over batch size, one line per runner.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.

    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only a plot needs it
    except ImportError as error:
        raise MissingExtraError("a plot", extra="eval") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for one in report.runners:
        axes.plot(list(one.images_per_second), list(one.images_per_second.values()), marker="o", label=one.name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch")
    axes.set_ylabel("images/s, without decoding")
    axes.set_title(f"{Path(report.artifact).name} on {report.machine}", fontsize=9)
    axes.legend(fontsize=8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
