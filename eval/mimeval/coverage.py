"""Which rows of a baseline are not in a run, and which of them ought to be there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set

from mimeval.deployments import SkippedDeployment
from mimeval.report import Report, Score
from mimruntime.cpus import multiplies_bf16


def absent(rows: Sequence[Score], report: Report, *, part: bool) -> tuple[list[str], list[str]]:
    """Return sentences on rows of the baseline that ought to be in `report` and are not, and names of others that are not.

    A row may be absent when some artifacts or engines alone were asked for, when its engine is not installed, and when
    it is of another kind of CPU. Whatever else is absent was lost.

    Args:
        rows: of the baseline.
        report: what ran now.
        part: whether some artifacts or engines alone were asked for.

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
            lost.append(f"{name} ran for the baseline and does not now")
        elif (
            part or any(_is_of(model, deployment, skip) for skip in missing) or of_another_cpu(deployment, here[model])
        ):
            noted.append(name)
        else:
            instead = sorted(other for other in here[model] if _asked(other) == _asked(deployment))
            lost.append(
                f"{name} is in the baseline and did not run"
                + (f", but {', '.join(instead)} did" if instead else "; where that is meant, write the baseline again")
            )
    return lost, noted


def of_another_cpu(deployment: str, here: Set[str]) -> bool:
    """Return whether a deployment is what another kind of CPU makes of a graph that ran here.

    A CPU that multiplies bf16 computes a graph in bf16 as it is, others in fp32. Where this CPU does, a row in bf16
    that turned into one in fp32 is lost all the same; no row of a graph in fp32 is ever of another CPU.

    Args:
        deployment: of the row.
        here: deployments of the same model that ran.

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
    """Return engine and precision of the graph; what it computes in, and on which hardware, shows when it runs."""
    return " ".join(deployment.split()[:2])


def _is_of(model: str, deployment: str, skip: SkippedDeployment) -> bool:
    """Return whether a row would have come from what was skipped: an artifact on an engine, or one that was not built."""
    asked = _asked(deployment)
    same = skip.artifact == model or skip.artifact.startswith(f"{model}.")
    return same and skip.deployment in {asked, asked.partition(" ")[2]}
