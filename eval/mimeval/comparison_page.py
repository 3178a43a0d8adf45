"""A comparison of two artifacts as one HTML page that needs nothing beside it."""

from __future__ import annotations

from html import escape

from mimeval.comparison import Comparison, Row
from mimeval.markdown import points
from mimeval.page import document, items, table, terms
from mimeval.plots import differences_plot

_HEAD = ("metric", "difference", "McNemar p")
_TERMS = ("[a, b]", "k-NN", "5-shot", "linear probe", "recall@k", "mAP", "McNemar p")


def as_comparison_page(found: Comparison) -> str:
    """Return the page: the verdict in words, the differences with their intervals, the table, the terms."""
    first, second = found.names
    about = (
        f"{found.dataset}: {found.images:,} test images, classifiers fitted on each one's own vectors."
        f" {first}: {found.engines[0]}. {second}: {found.engines[1]}."
    )
    rows = (_row(row) for row in found.rows)
    parts = [
        f"<h1>{escape(second)} against {escape(first)}</h1>",
        f"<p class='headline' id='verdict'>{escape(found.verdict())}</p>",
        f"<p id='data' class='quiet'>{escape(about)}</p>",
        f"<h2>{escape(second)} minus {escape(first)}</h2>",
        f"<div class='plot' id='differences'>{differences_plot(found.rows)}</div>",
        table("comparison", (_HEAD[0], escape(first), escape(second), *_HEAD[1:]), rows),
        items("notes", found.notes),
        terms(_TERMS),
    ]
    return document(f"{second} against {first}", parts)


def _row(row: Row) -> tuple[str, ...]:
    accuracies = (f"{100 * part.value:.1f}" for part in (row.first, row.second))
    return (
        escape(row.metric),
        *accuracies,
        points(row.difference),
        "" if row.mcnemar is None else f"{row.mcnemar.p:.2g}",
    )
