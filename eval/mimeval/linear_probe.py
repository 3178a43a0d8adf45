"""Linear probe: multinomial logistic regression on standardised frozen features.

The standardisation equals the batch norm without affine in the probes of MAE and AbMILP. The L2 penalty is chosen on a
split of the training images; test images are not used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mimeval.accelerator import Accelerator, accelerator
from mimeval.checks import check_features
from mimeval.errors import FeaturesError

PENALTIES = (3e-3, 1e-3, 3e-4, 1e-4)
"""Weights of ‖W‖²/2 relative to the mean loss per image, strongest first; each fit starts from the previous one."""
_HELD_OUT = 5
"""One training image of five is used to choose the penalty."""
_STEPS = 40
"""L-BFGS steps per fit; few are enough, because each fit starts from the previous one."""
_SMALLEST_STD = 1e-6
_LBFGS = {"maxiter": _STEPS, "maxls": 50, "gtol": 1e-4, "ftol": 64 * np.finfo(float).eps}
"""scikit-learn's settings, for the fit on a GPU."""


class Regression(Protocol):
    """A logistic regression on standardised features."""

    def fit(self, table: np.ndarray, labels: np.ndarray, penalty: float) -> None:
        """Continue from the last fit on `table` (n, D) and `labels` (n,), whose classes stay the same."""

    def predict(self, table: np.ndarray) -> np.ndarray:
        """Return the predicted label (m,) of each row of `table` (m, D)."""


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
    model: Regression

    def predict(self, queries: np.ndarray) -> np.ndarray:
        """Return the predicted label (m,) of each query (m, D)."""
        return self.model.predict(_standardise(queries, self.mean, self.std))


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
    model.fit(table, labels, penalty)
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


def _choose(table: np.ndarray, labels: np.ndarray, seed: int) -> tuple[Regression, float]:
    """Fit with penalties from the strongest to the weakest until the accuracy on held-out images falls.

    Returns:
        The last fitted model, as a start for the final fit, and the best penalty.

    """
    fitting, held_out = _split(labels, seed)
    gpu = accelerator()
    model: Regression = _OnCpu() if gpu is None else _OnGpu(gpu)
    best, accuracy = PENALTIES[0], -1.0
    for penalty in PENALTIES:
        model.fit(table[fitting], labels[fitting], penalty)
        reached = float((model.predict(table[held_out]) == labels[held_out]).mean())
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


class _OnCpu:
    """scikit-learn's regression; early stopping is intended, so its warning is ignored."""

    def __init__(self) -> None:
        self._model = LogisticRegression(max_iter=_STEPS, warm_start=True)

    def fit(self, table: np.ndarray, labels: np.ndarray, penalty: float) -> None:
        self._model.C = 1 / (penalty * len(table))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model.fit(table, labels)

    def predict(self, table: np.ndarray) -> np.ndarray:
        return np.asarray(self._model.predict(table))


class _OnGpu:
    """The same regression by the same minimiser, with loss and gradient from a GPU."""

    def __init__(self, gpu: Accelerator) -> None:
        self._gpu = gpu
        self._classes = np.empty(0, np.int64)
        self._weights: np.ndarray | None = None

    def fit(self, table: np.ndarray, labels: np.ndarray, penalty: float) -> None:
        self._classes, targets = np.unique(labels, return_inverse=True)
        # Of two classes the first has weights of 0, as in scikit-learn: the penalty counts one vector, not two.
        fixed = int(len(self._classes) == 2)
        weights = np.zeros((len(self._classes), table.shape[1] + 1)) if self._weights is None else self._weights
        loss = self._gpu.cross_entropy(table, targets)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights[fixed:] = flat.reshape(-1, weights.shape[1])
            value, gradient = loss(weights)
            gradient[:, :-1] += penalty * weights[:, :-1]
            return value + penalty * float(np.square(weights[:, :-1]).sum()) / 2, gradient[fixed:].ravel()

        found = optimize.minimize(objective, weights[fixed:].ravel(), jac=True, method="L-BFGS-B", options=_LBFGS)
        weights[fixed:] = found.x.reshape(-1, weights.shape[1])
        self._weights = weights

    def predict(self, table: np.ndarray) -> np.ndarray:
        if self._weights is None:
            raise ValueError("the regression is not fitted")
        return np.asarray(self._classes[(table @ self._weights[:, :-1].T + self._weights[:, -1]).argmax(axis=1)])
