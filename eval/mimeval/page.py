"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from html import escape

from mimeval.lost_images import as_section
from mimeval.markdown import points, skipped_rows
from mimeval.plots import frontier_plot, gains_plot
from mimeval.report import DeploymentDrift, Example, Gain, Report, Sample
from mimeval.summary import GLOSSARY, counted_from, headlines, labelled, open_questions, with_engine_names
from mimeval.verdict import explain

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.3rem; font-weight: 600; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
.headline { font-size: 1.25rem; line-height: 1.45; margin: .8rem 0; max-width: 50rem }
.quiet, small { color: #666 } summary { cursor: pointer; color: #666 }
.badge { border-radius: .3rem; padding: .1rem .55rem; margin-left: .4rem; font-size: 1rem }
.badge.pass, .badge.fail, .badge.undecided { color: white }
.badge.pass { background: #2a7f62 } .badge.fail { background: #c0392b } .badge.undecided { background: #9a6b00 }
.open { border-left: 4px solid #b8860b; padding: .1rem 1rem; background: #fdf8ea }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: left; font-variant-numeric: tabular-nums }
.pass { color: #2a7f62 } .fail { color: #c0392b } .undecided { color: #9a6b00 }
svg.plot, .plot svg { max-width: 100%; height: auto }
figure { display: inline-block; margin: .4rem .6rem .4rem 0; font-size: 12px; width: 8rem; vertical-align: top }
figcaption { overflow-wrap: anywhere; line-height: 1.3 }
figure svg, figure img { width: 8rem; height: 8rem; object-fit: cover; image-rendering: pixelated; border-radius: .2rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: 14px }
dt { font-weight: 600 } dd { margin: 0 }
"""
_EDGE = 100
"""Edge of a sample, in SVG units."""


def as_page(report: Report) -> str:
    """Return the page: findings in words, open questions, examples, gains, throughput, tables and terms."""
    report = with_engine_names(labelled(report))
    decisive = [gain for gain in report.gains if gain.decides]
    parts = [
        f"<h1>Did the gain carry over?<span id='verdict' class='badge {report.verdict}'>{report.verdict}</span></h1>",
        "".join(f"<p class='headline'>{escape(text)}</p>" for text in headlines(report)),
        f"<p id='data' class='quiet'>{_data(report)}</p>",
        _open(report),
        _examples(report.examples),
        _selections(report.samples),
        f"<h2>Gains by {escape(report.metric)}</h2>",
        "<p>Each row is one model on one engine. Grey, open: in torch. Coloured: on the engine. Bars are 95 % intervals.</p>",
        f"<div class='plot' id='gains'>{gains_plot(decisive)}</div>",
        _details("All gains, by every metric", _gain_table(report.gains)),
        "<h2>Accuracy and throughput</h2>",
        "<p>Measured during the evaluation, on a machine that may have been busy. No point beats those on the line in both.</p>",
        f"<div class='plot' id='frontier'>{frontier_plot(report)}</div>",
        "<h2>Vectors against torch's</h2>",
        _drift_table(report.drifts),
        as_section(report),
        _details("Why this verdict, row by row", items("reasons", report.reasons)),
        items("baselines", [f"Counted from the stronger: {sentence}" for sentence in counted_from(report)]),
        items("notes", report.notes),
        _skipped(report),
        terms(),
    ]
    return document(f"{report.verdict}: {report.dataset}", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Return a complete page with these parts, which are HTML."""
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
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


def _open(report: Report) -> str:
    questions = open_questions(report)
    if not questions:
        return ""
    return f"<h2>Undecided, and what would decide it</h2><div class='open'>{items('open', questions)}</div>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def _examples(examples: Sequence[Example]) -> str:
    """Return the pictures that only one model classifies correctly, one line per model."""
    parts = []
    for right, wrong in dict.fromkeys((one.right, one.wrong) for one in examples):
        drawn = "".join(
            f"<figure><img alt='' src='data:image/png;base64,{one.png}'><figcaption>{escape(one.label)}</figcaption></figure>"
            for one in examples
            if one.right == right
        )
        parts.append(f"<p>Right with {escape(right)}, wrong with {escape(wrong)}:</p><div>{drawn}</div>")
    return f"<h2>Where the two differ, in torch</h2><div id='examples'>{''.join(parts)}</div>" if parts else ""


def terms(chosen: Collection[str] = tuple(GLOSSARY)) -> str:
    """Return the glossary of these terms."""
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(GLOSSARY[term])}</dd>" for term in chosen)
    return f"<h2>Terms</h2><dl id='terms'>{rows}</dl>"


def items(name: str, texts: Sequence[str]) -> str:
    """Return an HTML list of texts; "" if there are none."""
    return f"<ul id='{name}'>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""


def table(name: str, head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Return a table; its cells are HTML."""
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
    return table("gain-table", head, rows)


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
    return table("drift-table", head, cells)


def _selections(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    drawn = "".join(_sample(sample) for sample in samples)
    return (
        f"<h2>Selected patches</h2><p>Dark: small weight. Bright: large weight.</p><div id='selections'>{drawn}</div>"
    )


def _sample(sample: Sample) -> str:
    """Return the image with a dark square over each patch; a smaller weight gives a darker square."""
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
    return f"<h2>What did not run</h2>{table('skipped', ('artifact', 'on', 'why'), rows)}"
