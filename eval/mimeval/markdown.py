"""The report as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from mimeval.deployments import SkippedDeployment
from mimeval.report import TORCH, DeploymentDrift, Gain, Report, Score
from mimeval.statistics import Interval
from mimeval.summary import GLOSSARY, counted_from, headlines, labelled, open_questions

_NAMED = 3
"""Largest number of artifacts that are listed by name; for more, only the number is given."""


def as_markdown(report: Report) -> str:
    """Return the verdict with its reasons, and the tables of gains, accuracies and drift."""
    report, images = labelled(report), report.images
    questions = open_questions(report)
    lines = [
        *(line for text in headlines(report) for line in (text, "")),
        *(["Undecided:", "", *(f"- {text}" for text in questions), ""] if questions else []),
        f"**{report.verdict.upper()}** on {report.dataset}: {images['engines']:,} test images on engines,"
        f" {images['torch']:,} in torch, {images['training']:,} training images, {report.classes} classes;"
        f" decided by {report.metric}, margin {100 * report.margin:g} points, seed {report.seed}.",
        "",
        *(f"- {reason}" for reason in report.reasons),
        *(f"- gains are counted from the stronger baseline: {sentence}" for sentence in counted_from(report)),
        *(f"- note: {note}" for note in report.notes),
        "",
        *_gains(report),
        "",
        *_accuracies(report),
        "",
        *_drifts(report.drifts),
    ]
    if report.skipped:
        lines += ["", "| did not run | on | why |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in skipped_rows(report.skipped)]
    lines += ["", "Terms:", "", *(f"- **{term}**: {meaning}" for term, meaning in GLOSSARY.items())]
    return "\n".join(lines) + "\n"


def skipped_rows(skipped: Sequence[SkippedDeployment]) -> list[tuple[str, str, str]]:
    """Return the skipped deployments as (artifacts, engine and precisions, reason), one row per engine and reason."""
    groups: dict[tuple[str, str], list[SkippedDeployment]] = {}
    for skip in skipped:
        groups.setdefault((skip.deployment.split()[0], skip.reason), []).append(skip)
    rows = []
    for (_, reason), group in groups.items():
        names = list(dict.fromkeys(skip.artifact for skip in group))
        artifacts = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} artifacts"
        rows.append((artifacts, ", ".join(dict.fromkeys(skip.deployment for skip in group)), reason))
    return rows


def points(interval: Interval) -> str:
    """Return a difference in points with its interval."""
    value, low, high = (100 * part for part in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _gains(report: Report) -> list[str]:
    """Return a row per model, deployment and `fitted` of the deciding metric."""
    rows = [gain for gain in report.gains if gain.decides]
    if not rows:
        return []
    head = f"| {report.metric} | on | fitted on | gain in torch | gain | change | McNemar p | verdict | images needed |"
    return [head, "|---" * 9 + "|", *(_gain(row) for row in rows)]


def _gain(gain: Gain) -> str:
    found = gain.found
    p = "" if gain.mcnemar is None else f"{gain.mcnemar.p:.2g}"
    needed = "never" if found.images_needed is None else f"{found.images_needed:,}"
    cells = [
        f"{gain.model} - {gain.baseline}", gain.deployment, gain.fitted, points(found.reference), points(found.gain),
        points(found.change), p, f"**{found.verdict}**" if found.verdict != "pass" else "pass", needed,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _accuracies(report: Report) -> list[str]:
    """Return a row per model, deployment and `fitted`, and a column per metric with the gain on the deployment."""
    metrics = list(dict.fromkeys(score.metric for score in report.scores))
    keyed = {(row.model, row.deployment, row.fitted, row.metric): row for row in report.scores}
    gains = {(row.model, row.deployment, row.fitted, row.metric): row for row in report.gains}
    rows = list(dict.fromkeys((row.model, row.deployment, row.fitted) for row in report.scores))
    lines = [f"| model | on | fitted on | {' | '.join(metrics)} |", "|---" * (3 + len(metrics)) + "|"]
    for key in rows:
        cells = [_cell(keyed.get((*key, metric)), gains.get((*key, metric))) for metric in metrics]
        side = "" if key[1] == TORCH else key[2]
        lines.append(f"| {key[0]} | {key[1]} | {side} | {' | '.join(cells)} |")
    return lines


def _cell(score: Score | None, gain: Gain | None) -> str:
    if score is None:
        return ""
    shown = "" if gain is None else f" ({points(gain.found.gain)})"
    return f"{100 * score.accuracy.value:.1f}{shown}"


def _drifts(rows: list[DeploymentDrift]) -> list[str]:
    lines = [
        "| model | on | cosine: worst | 1st percentile | median | top-10 overlap | selection (Jaccard) | images/s |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        drift = row.drift
        jaccard = "" if drift.jaccard is None else f"{drift.jaccard:.4f}"
        rate = "" if row.rate is None else f"{row.rate:.0f}"
        lines.append(
            f"| {row.model} | {row.deployment} | {drift.cosine_worst:.5f} | {drift.cosine_p1:.6f}"
            f" | {drift.cosine_median:.6f} | {100 * drift.overlap:.1f} % | {jaccard} | {rate} |"
        )
    return lines
