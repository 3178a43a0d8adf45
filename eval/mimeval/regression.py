"""What was measured before, kept with the code: a later evaluation on the same images is held against it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path

import msgspec

from mimeval.errors import DataError
from mimeval.report import Drifted, Fitted, Gain, Report, Score
from mimeval.statistics import Verdict, is_lower, paired_difference
from mimeval.verdict import worst
from mimruntime import records
from mimruntime.writing import write_file

_FORMAT = "mimexport-baseline"
_SCHEMA = 1
_GROWTH = 2
"""Times as far from torch as in the baseline; the same graph on another CPU differs by less."""
_NO_DRIFT = 1e-5
"""1 - cosine that is rounding, whatever the baseline had."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One data set of the baseline.

    Attributes:
        dataset: its name.
        digest: of the test images, their order and labels, and of those that are learned from.
        training: how many images were learned from.
        metric: what is compared.
        scores: of every model and deployment, torch among them.
        drifts: how far the vectors of every deployment were from torch's.

    """

    dataset: str
    digest: str
    training: int
    metric: str
    scores: list[Score]
    drifts: list[Drifted] = []


class _Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The file, whole."""

    format: str = _FORMAT
    schema: int = _SCHEMA
    entries: list[Entry]


def read_baseline(path: Path) -> list[Entry]:
    """Return the entries of a baseline file; none where there is no file.

    Raises:
        DataError: it is something else.

    """
    try:
        raw = path.read_bytes()
        if raw.startswith(b"["):  # before there was a schema
            return records.parse(raw, list[Entry])
        return records.decode(raw, _Baseline, format_name=_FORMAT, schema=_SCHEMA).entries
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} {error}; or write one: make eval-baseline") from error


def write_baseline(report: Report, path: Path) -> None:
    """Put `report` into the baseline file; other data sets keep their entries.

    Raises:
        DataError: the file is something else.
        OutputError: it cannot be written.

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


def compare(report: Report, entries: list[Entry]) -> Report:
    """Return `report` with what the baseline says added to its verdict.

    A score fails when its loss against the baseline, image by image, is shown and may exceed the margin; vectors fail
    that are twice as far from torch's as they were: what costs little accuracy may still be broken. So does a
    deployment the baseline has and whose engine, though installed, would not run; where the engine is not installed it
    is noted. A gain that is there in torch, and whose change these images leave undecided, passes when the baseline has
    it, other gains pass by themselves and none of that is found: what was accepted then is still so.
    """
    wanted = report.digest, report.images["training"], report.metric
    entry = next((entry for entry in entries if _key(entry) == wanted), None)
    if entry is None:
        note = f"no baseline for these {report.images['engines']} images of {report.dataset}; make eval-baseline writes one"
        return msgspec.structs.replace(report, notes=[*report.notes, note])
    now = {_row(score): score for score in report.scores}
    refused = {(skip.artifact, skip.deployment) for skip in report.skipped if skip.kind == "refused"}
    reasons: list[tuple[Verdict, str]] = []
    notes = []
    compared = sum(_row(old) in now for old in entry.scores)
    for old in entry.scores:
        score = now.get(_row(old))
        if score is not None:
            if text := _regression(score, old, report, rows=compared):
                reasons.append(("fail", text))
        elif any(_is_of(old, name, where) for name, where in refused):
            reasons.append(("fail", f"{old.model} on {old.deployment} ran for the baseline and does not now"))
        else:
            notes.append(f"{old.model} on {old.deployment}")
    reasons += [("fail", text) for old in entry.drifts for text in _drifted(old, report)]
    if notes:
        many = sorted(set(notes))
        reports = [*report.notes, f"{len(many)} rows of the baseline did not run here: {', '.join(many[:4])} …"]
        report = msgspec.structs.replace(report, notes=reports)
    verdict, texts = worst(report.verdict, report.reasons, reasons)
    open_gains = [gain for gain in report.gains if gain.decides and gain.found.verdict == "undecided"]
    known = {_row(old) for old in entry.scores} & now.keys()
    accepted_before = all(_has(known, gain) and gain.found.reference.low > 0 for gain in open_gains)
    passed = any(gain.decides and gain.found.verdict == "pass" for gain in report.gains)
    if verdict == "undecided" and len(texts) == len(open_gains) and accepted_before and passed:
        accepted = f"what these images leave undecided is as it was in the baseline ({len(open_gains)} rows)"
        verdict, texts = "pass", [f"every other gain carried over, and {accepted}"]
    return msgspec.structs.replace(report, verdict=verdict, reasons=texts)


def _is_of(old: Score, artifact: str, deployment: str) -> bool:
    """Return whether a row would have come from an artifact on an engine, known by its name and its graph's precision."""
    ran = " ".join(old.deployment.split()[:2])  # what it computed in, and on which hardware, shows when it runs
    return ran == deployment and (artifact == old.model or artifact.startswith(f"{old.model}."))


def _regression(score: Score, old: Score, report: Report, *, rows: int) -> str | None:
    # Where one of them saw more images, only those that the digest covers are surely the same.
    count = score.images if score.images == old.images else min(score.images, old.images, report.images["engines"])
    pair = score.scores()[:count], old.scores()[:count]
    change = paired_difference(*pair, seed=report.seed)
    if change.low < -report.margin and is_lower(*pair, seed=report.seed, rows=rows):
        return (
            f"{score.model} on {score.deployment}, {score.metric} fitted on {score.fitted}: {100 * change.value:+.1f}"
            f" [{100 * change.low:+.1f}, {100 * change.high:+.1f}] points against the baseline"
        )
    return None


def _drifted(old: Drifted, report: Report) -> Iterator[str]:
    """Yield a sentence for what of `report` is further from torch than `old`."""
    for row in report.drifts:
        tolerated = max(_GROWTH * (1 - old.drift.cosine_p1), _NO_DRIFT)
        if (row.model, row.deployment) == (old.model, old.deployment) and not 1 - row.drift.cosine_p1 <= tolerated:
            yield (
                f"{row.model} on {row.deployment}: the 1st percentile of the cosine to torch is {row.drift.cosine_p1:.5f},"
                f" it was {old.drift.cosine_p1:.5f} in the baseline"
            )


def _has(known: Set[tuple[str, str, str, Fitted]], gain: Gain) -> bool:
    return all((name, gain.deployment, gain.metric, gain.fitted) in known for name in (gain.model, gain.baseline))


def _row(score: Score) -> tuple[str, str, str, Fitted]:
    return score.model, score.deployment, score.metric, score.fitted


def _key(entry: Entry) -> tuple[str, int, str]:
    return entry.digest, entry.training, entry.metric
