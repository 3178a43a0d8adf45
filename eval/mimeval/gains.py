"""Compute the gains of models over their baselines, in torch and in every deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mimeval.deployments import SkippedDeployment
from mimeval.drift import to_rounding
from mimeval.measurement import Measurements
from mimeval.models import Model
from mimeval.report import TORCH, Gain
from mimeval.statistics import judge_gain, mcnemar

SAME = "the engine's vectors equal torch's up to rounding, and every image is judged alike"


def gains_of(models: Sequence[Model], found: Measurements, deciding: str, *, margin: float, seed: int) -> list[Gain]:
    """Return every model's gain over its baseline in every deployment, by every metric.

    Too few images may have been seen to exclude a loss. If the vectors of both equal torch's up to rounding and no image is
    judged differently, nothing can be lost, and the row passes.

    Args:
        models: the models and their baselines.
        found: the scores; a deployment whose baseline did not run is added to the skipped ones.
        deciding: the metric that decides the verdict.
        margin: the tolerated loss of gain.
        seed: seed of the bootstrap.

    """
    titles = {model.title: model.baseline for model in models}
    rows = [key for key in found.scores if key[1] != TORCH and key[2] == deciding and titles[key[0]] is not None]
    gains = []
    for (title, deployment, metric, fitted), values in found.scores.items():
        baseline = titles[title]
        if deployment == TORCH or baseline is None:
            continue
        other = found.scores.get((baseline, deployment, metric, fitted))
        if other is None:
            found.skipped.append(
                SkippedDeployment(
                    title, deployment, f"no gain in {metric}: its baseline {baseline} did not run there", "refused"
                )
            )
            continue
        reference = found.scores[title, TORCH, metric, "torch"]
        reference_baseline = found.scores[baseline, TORCH, metric, "torch"]
        count = len(values)
        judged = judge_gain(
            reference[:count],
            reference_baseline[:count],
            values,
            other,
            margin=margin,
            seed=seed,
            established_on=(reference, reference_baseline),
            rows=len(rows) if metric == deciding else 1,
        )
        if judged.verdict == "undecided" and judged.reference.low > 0 and not judged.change.value:
            exact = {row.model for row in found.drifts if row.deployment == deployment and to_rounding(row.drift)}
            if {title, baseline} <= exact:
                judged = replace(judged, verdict="pass", reason=SAME, images_needed=count)
        gains.append(
            Gain(
                model=title,
                baseline=baseline,
                deployment=deployment,
                metric=metric,
                fitted=fitted,
                found=judged,
                mcnemar=mcnemar(values, reference[:count]) if values.dtype == np.bool_ else None,
                decides=metric == deciding,
            )
        )
    return gains
