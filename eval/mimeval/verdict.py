"""Combine findings into one verdict with reasons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mimeval.report import DeploymentDrift, Gain
from mimeval.statistics import LOSES, Verdict, mean_interval

EXIT = {"pass": 0, "fail": 1, "undecided": 3}
"""Exit status by verdict; 2 is wrong usage."""

_NEAR_CHANCE = 0.05
"""Largest distance from chance that counts as guessing, limited by chance itself: with 200 classes, chance is 0.5 %."""
Reason = tuple[Verdict, str]


def conclude(
    gains: Sequence[Gain], drifts: Sequence[DeploymentDrift], others: Sequence[Reason]
) -> tuple[Verdict, list[str]]:
    """Return the verdict and its reasons, worst first: any failure fails, otherwise any open question is undecided."""
    found: list[Reason] = [*others]
    found += [("fail", f"{row.model} on {row.deployment}: {row.problem}") for row in drifts if row.problem]
    for gain in gains:
        if gain.decides and gain.found.verdict != "pass":
            found.append((gain.found.verdict, explain(gain)))
    if not any(gain.decides for gain in gains):
        found.append(("undecided", "no gain was measured: a baseline alone has none"))
    fails = [text for kind, text in found if kind == "fail"]
    open_ = [text for kind, text in found if kind == "undecided"]
    verdict: Verdict = "fail" if fails else "undecided" if open_ else "pass"
    return verdict, [*fails, *open_] or ["every gain carried over"]


def worst(verdict: Verdict, reasons: Sequence[str], more: Sequence[Reason]) -> tuple[Verdict, list[str]]:
    """Return a verdict and its reasons after adding `more`."""
    if not more:
        return verdict, list(reasons)
    texts = [text for _, text in more]
    kept = [] if verdict == "pass" else list(reasons)
    fails = verdict == "fail" or any(kind == "fail" for kind, _ in more)
    return ("fail" if fails else "undecided"), [*texts, *kept]


def explain(gain: Gain) -> str:
    """Return a gain's verdict as one sentence, with the number of images for a decision."""
    found = gain.found
    text = f"{gain.model} on {gain.deployment}, {gain.metric} fitted on {gain.fitted}: {found.reason}"
    if found.reason == LOSES:
        return f"{text} ({100 * found.reference.value:+.1f} points)"
    if found.verdict != "undecided":
        return f"{text} ({100 * found.change.value:+.1f} points, margin {100 * found.margin:.1f})"
    if found.images_needed is None:
        return f"{text}; no number of images would decide it, as far as can be estimated"
    seen = f"{found.images:,} were seen"
    if found.reference_images != found.images:
        seen += f" on the engine, {found.reference_images:,} in torch"
    return f"{text}; about {found.images_needed:,} images would decide, {seen}"


def at_chance(scores: np.ndarray, chance: float, most: float = 1.0) -> list[Reason]:
    """Return reasons if torch's own features are not better than guessing.

    Args:
        scores: scores (n,) of the baseline in torch.
        chance: mean score of guessing.
        most: largest score of one image.

    """
    accuracy = mean_interval(scores)
    if accuracy.low > chance:
        return []
    # An event not seen among n images may still have a rate of 3 / n.
    high = max(accuracy.high, accuracy.value + most * 3 / len(scores))
    text = f"torch's own baseline scores {100 * accuracy.value:.1f} %, guessing {100 * chance:.1f} %"
    if high < chance + min(_NEAR_CHANCE, chance):
        return [("fail", f"{text}: the labels do not match the images")]
    return [("undecided", f"{text}: too few images to tell the difference")]
