"""An engine that gives torch's own vectors keeps the gain, however few images were seen."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from mimeval.drift import Drift
from mimeval.gains import SAME, gains_of
from mimeval.measurement import Measurements
from mimeval.models import Model
from mimeval.report import TORCH, DeploymentDrift, Gain

EXACT = Drift(1.0, 1.0, 1.0, 1.0, None, 60)
BASE = np.arange(60) < 10
BETTER = np.arange(60) < 40


def gain(drifts: tuple[Drift, Drift] = (EXACT, EXACT), on_engine: np.ndarray = BETTER) -> Gain:
    found = Measurements()
    for title, torch, engine in (("cls", BASE, BASE), ("topk", BETTER, on_engine)):
        found.scores[title, TORCH, "k-NN", "torch"] = torch
        found.scores[title, "ort fp32", "k-NN", "torch"] = engine
    found.drifts = [
        DeploymentDrift(model=title, deployment="ort fp32", drift=drift, problem=None, rate=None)
        for title, drift in zip(("cls", "topk"), drifts, strict=True)
    ]
    models = [Model("cls", "a", (), None, False), Model("topk", "b", (), "cls", True)]
    return gains_of(models, found, "k-NN", margin=0.005, seed=0)[0]


def test_vectors_equal_to_rounding_lose_nothing() -> None:
    found = gain().found
    assert (found.verdict, found.reason) == ("pass", SAME)
    assert found.reference.low > 0


@pytest.mark.parametrize("which", [0, 1])
def test_it_takes_the_vectors_of_both(which: int) -> None:
    drifts = [EXACT, EXACT]
    drifts[which] = Drift(0.9999, 1.0, 1.0, 1.0, None, 60)
    assert gain((drifts[0], drifts[1])).found.verdict == "undecided"


def test_one_image_judged_otherwise_leaves_it_open() -> None:
    assert gain(on_engine=np.arange(60) < 39).found.verdict == "undecided"


def test_a_gain_that_is_not_there_in_torch_stays_open() -> None:
    found = Measurements()
    assert msgspec.to_builtins(gain())["found"]["verdict"] == "pass"
    for title in ("cls", "topk"):
        for where in (TORCH, "ort fp32"):
            found.scores[title, where, "k-NN", "torch"] = BASE
        found.drifts.append(DeploymentDrift(model=title, deployment="ort fp32", drift=EXACT, problem=None, rate=None))
    models = [Model("cls", "a", (), None, False), Model("topk", "b", (), "cls", True)]
    assert gains_of(models, found, "k-NN", margin=0.005, seed=0)[0].found.verdict == "undecided"
