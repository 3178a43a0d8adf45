"""Find rows of the stored baseline that are missing in a run, and decide which of them should be there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set

from mimeval.deployments import SkippedDeployment
from mimeval.report import Report, Score
from mimruntime.cpus import multiplies_bf16


def absent(rows: Sequence[Score], report: Report, *, part: bool) -> tuple[list[str], list[str]]:
    """Return sentences about rows that are missing without a reason, and names of rows that are missing with one.

    A row may be missing if only some artifacts or engines were requested, if its engine is not installed, or if it belongs
    to another kind of CPU.

    Args:
        rows: rows of the baseline.
        report: the report of this run.
        part: whether only some artifacts or engines were requested.

    """
    here = _deployments(report.scores)
    refused = [skip for skip in report.skipped if skip.kind == "refused"]
    missing = [skip for skip in report.skipped if skip.kind == "missing"]
    lost, noted = [], []
    for model, deployment in dict.fromkeys((old.model, old.deployment) for old in rows):
        name = f"{model} on {deployment}"
        if deployment in here[model]:
            continue
        if any(_is_of(model, deployment, skip) for skip in refused):
            lost.append(f"{name} ran for the baseline but does not run now")
        elif (
            part or any(_is_of(model, deployment, skip) for skip in missing) or of_another_cpu(deployment, here[model])
        ):
            noted.append(name)
        else:
            instead = sorted(other for other in here[model] if _asked(other) == _asked(deployment))
            lost.append(
                f"{name} is in the baseline but did not run"
                + (f", although {', '.join(instead)} did" if instead else "; if intended, write the baseline again")
            )
    return lost, noted


def of_another_cpu(deployment: str, here: Set[str]) -> bool:
    """Return whether a deployment is the form that another kind of CPU gives to a graph that ran here.

    A bf16 graph runs in bf16 on a CPU that supports it, and in fp32 on others. If this CPU supports bf16, a bf16 row that
    now runs in fp32 counts as lost. Rows of fp32 graphs are the same on all CPUs.

    Args:
        deployment: deployment of the row.
        here: deployments of the same model in this run.

    """
    asked = _asked(deployment)
    if asked.endswith(" bf16") and deployment == asked:
        return f"{asked} in fp32" in here and not multiplies_bf16()
    return asked.endswith((" bf16", " fp16")) and deployment == f"{asked} in fp32" and asked in here


def _deployments(scores: Iterable[Score]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for score in scores:
        found[score.model].add(score.deployment)
    return found


def _asked(deployment: str) -> str:
    """Return engine and graph precision of a deployment, without the precision and hardware of the run."""
    return " ".join(deployment.split()[:2])


def _is_of(model: str, deployment: str, skip: SkippedDeployment) -> bool:
    """Return whether a skipped deployment, or a baseline that was not built, would have produced the row."""
    asked = _asked(deployment)
    same = skip.artifact == model or skip.artifact.startswith(f"{model}.")
    return same and skip.deployment in {asked, asked.partition(" ")[2]}
