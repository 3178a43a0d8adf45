"""Compare an evaluation with the stored results of an earlier one on the same images (the baseline file)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import msgspec

from mimeval.coverage import absent, of_another_cpu
from mimeval.errors import DataError
from mimeval.report import DeploymentDrift, Fitted, Gain, Report, Score
from mimeval.statistics import Verdict, is_lower, paired_difference
from mimeval.verdict import explain, worst
from mimruntime import records
from mimruntime.writing import write_file

_FORMAT = "mimexport-baseline"
_SCHEMA = 1
_Row = tuple[str, str, str, Fitted]
"""Model, deployment, metric and side."""
_NAMED = 4
"""Number of rows that a note names."""
_GROWTH = 2
"""Accepted growth of the distance to torch; between CPUs the same graph differs by less."""
_NO_DRIFT = 1e-5
"""1 - cosine that is always accepted as rounding."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One data set of the baseline.

    Attributes:
        dataset: name of the data set.
        digest: digest of test images, their order and labels, and of training images.
        training: number of training images.
        metric: name of the compared score.
        scores: scores of all models and deployments, including torch.
        drifts: distances of each deployment's vectors from torch's.

    """

    dataset: str
    digest: str
    training: int
    metric: str
    scores: list[Score]
    drifts: list[DeploymentDrift] = []


class _Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The complete file."""

    format: str = _FORMAT
    schema: int = _SCHEMA
    entries: list[Entry]


def read_baseline(path: Path) -> list[Entry]:
    """Return the entries of a baseline file; empty if the file does not exist.

    Raises:
        DataError: the file is not a baseline.

    """
    try:
        raw = path.read_bytes()
        if raw.startswith(b"["):  # files without a schema number
            return records.parse(raw, list[Entry])
        return records.decode(raw, _Baseline, format_name=_FORMAT, schema=_SCHEMA).entries
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} {error}; or move it away and write a new one") from error


def write_baseline(report: Report, path: Path) -> None:
    """Write `report` into the baseline file; entries of other data sets do not change.

    Raises:
        DataError: the file is not a baseline.
        OutputError: the file cannot be written.

    """
    scores = [score for score in report.scores if score.metric == report.metric]
    entry = Entry(
        dataset=report.dataset,
        digest=report.digest,
        training=report.images["training"],
        metric=report.metric,
        scores=scores,
        drifts=report.drifts,
    )
    entries = [old for old in read_baseline(path) if _key(old) != _key(entry)] + [entry]
    write_file(path, msgspec.json.format(msgspec.json.encode(_Baseline(entries=entries)), indent=1) + b"\n")


def compare(report: Report, entries: list[Entry], *, part: bool = False) -> Report:
    """Return `report` with the comparison to the baseline added to its verdict.

    The verdict is "fail" if one of these holds:
    - a score is significantly lower than in the baseline, and the loss may exceed the margin;
    - vectors are more than twice as far from torch's as in the baseline, since faults can cost little accuracy;
    - a row of the baseline is missing without a reason; see `mimeval.coverage.absent`.

    An undecided gain passes if torch shows the gain, the baseline has the row, another gain passes by itself and nothing
    failed. A row from another kind of CPU is compared with the baseline's row of the same graph. Other rows that the
    baseline lacks must pass by themselves.

    Args:
        report: the report of this run.
        entries: entries of the baseline file.
        part: whether only some artifacts or engines were requested.

    """
    wanted = report.digest, report.images["training"], report.metric
    entry = next((entry for entry in entries if _key(entry) == wanted), None)
    if entry is None:
        note = f"no baseline for these {report.images['engines']} images of {report.dataset}"
        return msgspec.structs.replace(report, notes=[*report.notes, note])
    now = {_row(score): score for score in report.scores if score.metric == report.metric}
    both = [(score, old) for score in now.values() if (old := _before(score, entry.scores)) is not None]
    lost, noted = absent(entry.scores, report, part=part)
    found = [text for score, old in both if (text := _regression(score, old, report, rows=len(both)))]
    found += [*lost, *(text for old in entry.drifts for text in _drifted(old, report))]
    known = {_row(score) for score, _ in both}
    added = {f"{row[0]} on {row[1]}" for row in now.keys() - known}
    notes = [*_note(noted, "of the baseline did not run here"), *_note(sorted(added), "are not in the baseline")]
    verdict, texts = worst(report.verdict, report.reasons, [("fail", text) for text in found])
    if verdict == "undecided":
        verdict, texts = _accept(report, texts, known)
    return msgspec.structs.replace(report, verdict=verdict, reasons=texts, notes=[*report.notes, *notes])


def _before(score: Score, rows: Sequence[Score]) -> Score | None:
    """Return the baseline row for `score`: the same row, or that of the same graph on another kind of CPU."""
    _, deployment, *side = _row(score)
    same = [old for old in rows if old.model == score.model and [old.metric, old.fitted] == side]
    own = (old for old in same if old.deployment == deployment)
    others = (old for old in same if of_another_cpu(old.deployment, {deployment}))
    return next(own, None) or next(others, None)


def _note(names: Sequence[str], what: str) -> list[str]:
    more = " …" if len(names) > _NAMED else ""
    return [f"{len(names)} rows {what}: {', '.join(names[:_NAMED])}{more}"] if names else []


def _accept(report: Report, reasons: list[str], known: Set[_Row]) -> tuple[Verdict, list[str]]:
    """Return verdict and reasons of an undecided report after accepting gains that the baseline has."""
    gains = [gain for gain in report.gains if gain.decides]
    accepted = {
        explain(gain)
        for gain in gains
        if gain.found.verdict == "undecided" and gain.found.reference.low > 0 and _has(known, gain)
    }
    if not accepted or not any(gain.found.verdict == "pass" for gain in gains):
        return "undecided", reasons
    said = f"the undecided gains are those of the baseline ({len(accepted)} rows)"
    if left := [text for text in reasons if text not in accepted]:
        return "undecided", [*left, f"of other rows, {said}"]
    return "pass", [f"every other gain carried over, and {said}"]


def _regression(score: Score, old: Score, report: Report, *, rows: int) -> str | None:
    # If one of them used more images, compare only those that the digest covers.
    count = score.images if score.images == old.images else min(score.images, old.images, report.images["engines"])
    pair = score.scores()[:count], old.scores()[:count]
    change = paired_difference(*pair, seed=report.seed)
    if change.low < -report.margin and is_lower(*pair, seed=report.seed, rows=rows):
        return (
            f"{score.model} on {score.deployment}, {score.metric} fitted on {score.fitted}: {100 * change.value:+.1f}"
            f" [{100 * change.low:+.1f}, {100 * change.high:+.1f}] points against the baseline"
        )
    return None


def _drifted(old: DeploymentDrift, report: Report) -> Iterator[str]:
    """Yield a sentence for each row of `report` whose vectors are further from torch than in `old`."""
    for row in report.drifts:
        tolerated = max(_GROWTH * (1 - old.drift.cosine_p1), _NO_DRIFT)
        if (row.model, row.deployment) == (old.model, old.deployment) and not 1 - row.drift.cosine_p1 <= tolerated:
            yield (
                f"{row.model} on {row.deployment}: the 1st percentile of the cosine to torch is {row.drift.cosine_p1:.5f},"
                f" it was {old.drift.cosine_p1:.5f} in the baseline"
            )


def _has(known: Set[_Row], gain: Gain) -> bool:
    return all((name, gain.deployment, gain.metric, gain.fitted) in known for name in (gain.model, gain.baseline))


def _row(score: Score) -> _Row:
    return score.model, score.deployment, score.metric, score.fitted


def _key(entry: Entry) -> tuple[str, int, str]:
    return entry.digest, entry.training, entry.metric
