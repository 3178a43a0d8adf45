"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from mimeval.markdown import points, skipped_rows
from mimeval.plots import frontier_plot, gains_plot
from mimeval.report import DeploymentDrift, Gain, Report, Sample
from mimeval.verdict import explain

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .6rem; text-align: left; font-variant-numeric: tabular-nums }
.pass { color: #2a7f62 } .fail { color: #c0392b } .undecided { color: #b8860b }
svg.plot, .plot svg { max-width: 100%; height: auto }
figure { display: inline-block; margin: .4rem; font-size: 11px; width: 9rem; vertical-align: top }
figcaption { overflow-wrap: anywhere }
figure svg { width: 9rem; height: 9rem; image-rendering: pixelated }
"""
_EDGE = 100
"""Of a sample, in the units of its own drawing."""


def as_page(report: Report) -> str:
    """Return the page: verdict, gains with intervals, accuracy against throughput, tables, selections."""
    decisive = [gain for gain in report.gains if gain.decides]
    parts = [
        f"<h1>Did the gain carry over? <span id='verdict' class='{report.verdict}'>{report.verdict}</span></h1>",
        f"<p id='data'>{_data(report)}</p>",
        _items("reasons", report.reasons),
        _items("baselines", [f"Counted from the stronger: {chosen.sentence()}" for chosen in report.baselines]),
        _items("notes", report.notes),
        f"<h2>Gains by {escape(report.metric)}</h2>",
        f"<div class='plot' id='gains'>{gains_plot(decisive)}</div>",
        _gain_table(report.gains),
        "<h2>Accuracy and throughput</h2>",
        "<p>Measured while the evaluation ran, whatever else the machine did; the line joins what nothing beats in both.</p>",
        f"<div class='plot' id='frontier'>{frontier_plot(report)}</div>",
        "<h2>Vectors against torch's</h2>",
        _drift_table(report.drifts),
        _selections(report.samples),
        _skipped(report),
    ]
    title = f"{report.verdict}: {escape(report.dataset)}"
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{title}</title>"
    return (
        f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def _data(report: Report) -> str:
    images = report.images
    return escape(
        f"{report.dataset}: {images['engines']:,} test images on engines, {images['torch']:,} in torch,"
        f" {images['training']:,} training images, {report.classes} classes. Decided by {report.metric},"
        f" margin {100 * report.margin:g} points, seed {report.seed}."
    )


def _items(name: str, texts: Sequence[str]) -> str:
    return f"<ul id='{name}'>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def _table(name: str, head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table id='{name}'><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _gain_table(gains: Sequence[Gain]) -> str:
    head = ("model", "on", "metric", "fitted on", "gain in torch", "gain", "change", "verdict", "decides")
    rows = (
        (
            escape(f"{gain.model} - {gain.baseline}"),
            escape(gain.deployment),
            escape(gain.metric),
            gain.fitted,
            points(gain.found.reference),
            points(gain.found.gain),
            points(gain.found.change),
            f"<span class='{gain.found.verdict}' title='{escape(explain(gain), quote=True)}'>{gain.found.verdict}</span>",
            "yes" if gain.decides else "",
        )
        for gain in gains
    )
    return _table("gain-table", head, rows)


def _drift_table(rows: Sequence[DeploymentDrift]) -> str:
    head = ("model", "on", "worst cosine", "1st percentile", "median", "top-10 overlap", "Jaccard", "images/s", "")
    cells = (
        (
            escape(row.model),
            escape(row.deployment),
            f"{row.drift.cosine_worst:.5f}",
            f"{row.drift.cosine_p1:.6f}",
            f"{row.drift.cosine_median:.6f}",
            f"{100 * row.drift.overlap:.1f} %",
            "" if row.drift.jaccard is None else f"{row.drift.jaccard:.4f}",
            "" if row.rate is None else f"{row.rate:.0f}",
            f"<span class='fail'>{escape(row.problem)}</span>" if row.problem else "",
        )
        for row in rows
    )
    return _table("drift-table", head, cells)


def _selections(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    drawn = "".join(_sample(sample) for sample in samples)
    return f"<h2>What was selected</h2><p>Dark: left out; bright: a large share.</p><div id='selections'>{drawn}</div>"


def _sample(sample: Sample) -> str:
    """Return the image under one dark square a patch, the darker the smaller its share."""
    rows, columns = len(sample.shares), len(sample.shares[0])
    most = max(max(row) for row in sample.shares) or 1
    height, width = _EDGE / rows, _EDGE / columns
    veil = "".join(
        f"<rect x='{column * width:.2f}' y='{row * height:.2f}' width='{width:.2f}' height='{height:.2f}'"
        f" opacity='{0.75 * (1 - share / most):.2f}'/>"
        for row, shares in enumerate(sample.shares)
        for column, share in enumerate(shares)
    )
    picture = f"<image href='data:image/png;base64,{sample.png}' width='{_EDGE}' height='{_EDGE}'/>"
    caption = escape(f"{sample.model}, {sample.deployment}: {sample.image.rsplit('/', 1)[-1]}")
    return (
        f"<figure><svg viewBox='0 0 {_EDGE} {_EDGE}'>{picture}{veil}</svg><figcaption>{caption}</figcaption></figure>"
    )


def _skipped(report: Report) -> str:
    if not report.skipped:
        return ""
    rows = (tuple(map(escape, row)) for row in skipped_rows(report.skipped))
    return f"<h2>What did not run</h2>{_table('skipped', ('artifact', 'on', 'why'), rows)}"
