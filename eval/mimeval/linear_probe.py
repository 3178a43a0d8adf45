"""Linear probe: multinomial logistic regression on standardised frozen features.

The standardisation equals the batch norm without affine in the probes of MAE and AbMILP. The L2 penalty is chosen on a
split of the training images; test images are not used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mimeval.checks import check_features
from mimeval.errors import FeaturesError

PENALTIES = (3e-3, 1e-3, 3e-4, 1e-4)
"""Weights of ‖W‖²/2 relative to the mean loss per image, strongest first; each fit starts from the previous one."""
_HELD_OUT = 5
"""One training image of five is used to choose the penalty."""
_STEPS = 40
"""L-BFGS steps per fit; few are enough, because each fit starts from the previous one."""
_SMALLEST_STD = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A fitted probe.

    Attributes:
        mean: float (D,), subtracted from features.
        std: float (D,), divisor of the centred features.
        model: the regression on standardised features.

    """

    mean: np.ndarray
    std: np.ndarray
    model: LogisticRegression

    def predict(self, queries: np.ndarray) -> np.ndarray:
        """Return the predicted label (m,) of each query (m, D)."""
        return np.asarray(self.model.predict(_standardise(queries, self.mean, self.std)))


def fit(train: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Probe:
    """Fit a probe on training features.

    Args:
        train: (n, D).
        labels: (n,) integers of two or more classes.
        seed: seed of the split.

    Raises:
        FeaturesError: features or labels do not fit together or are not finite, or there is only one class.

    """
    check_features(train, train, labels)
    if len(np.unique(labels)) < 2:
        raise FeaturesError("a linear probe needs two classes or more, the training labels hold one")
    mean, std = train.mean(axis=0), np.maximum(train.std(axis=0), _SMALLEST_STD)
    table = _standardise(train, mean, std)
    model, penalty = _choose(table, labels, seed)
    _fit(model, penalty, table, labels)
    return Probe(mean, std, model)


def predict(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Fit a probe on `train` and `labels`, and return the predicted label (m,) of each query (m, D).

    Raises:
        FeaturesError: as `fit`, or the queries do not fit `train`.

    """
    check_features(train, queries, labels)
    return fit(train, labels, seed=seed).predict(queries)


def _standardise(table: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return np.asarray((table - mean) / std, np.float32)


def _choose(table: np.ndarray, labels: np.ndarray, seed: int) -> tuple[LogisticRegression, float]:
    """Fit with penalties from the strongest to the weakest until the accuracy on held-out images falls.

    Returns:
        The last fitted model, as a start for the final fit, and the best penalty.

    """
    fitting, held_out = _split(labels, seed)
    model = LogisticRegression(max_iter=_STEPS, warm_start=True)
    best, accuracy = PENALTIES[0], -1.0
    for penalty in PENALTIES:
        _fit(model, penalty, table[fitting], labels[fitting])
        reached = float(model.score(table[held_out], labels[held_out]))
        if reached < accuracy:
            break
        best, accuracy = penalty, reached
    return model, best


def _split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows for fitting and for choosing the penalty; each class has at least one row for fitting."""
    order = np.random.default_rng(seed).permutation(len(labels))
    _, first = np.unique(labels[order], return_index=True)
    choosing = np.zeros(len(labels), bool)
    choosing[::_HELD_OUT] = True
    choosing[first] = False
    return (order[~choosing], order[choosing]) if choosing.any() else (order, order)


def _fit(model: LogisticRegression, penalty: float, table: np.ndarray, labels: np.ndarray) -> None:
    """Continue fitting `model` with `penalty`; early stopping is intended, so its warning is ignored."""
    model.C = 1 / (penalty * len(table))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(table, labels)
