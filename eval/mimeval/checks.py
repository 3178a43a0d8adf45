"""Checks of features and labels before an evaluation."""

from __future__ import annotations

import numpy as np

from mimeval.errors import FeaturesError


def check_features(train: np.ndarray, queries: np.ndarray, train_labels: np.ndarray | None = None) -> None:
    """Raise FeaturesError if features or labels are invalid.

    Args:
        train: (n, D), n ≥ 1.
        queries: (m, D).
        train_labels: (n,) integers.

    Raises:
        FeaturesError: shapes do not fit, values are not finite, or labels are invalid.

    """
    for name, table in (("training features", train), ("query features", queries)):
        if table.ndim != 2:
            raise FeaturesError(f"{name} have shape {table.shape}, expected (images, dimensions)")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if bad.size:
            raise FeaturesError(f"{name} hold NaN or infinity in {bad.size} of {len(table)} rows, first row {bad[0]}")
    if not len(train) or train.shape[1] != queries.shape[1]:
        raise FeaturesError(f"training features {train.shape} and query features {queries.shape} differ in width")
    if train_labels is not None:
        check_labels(train_labels, len(train))


def check_labels(labels: np.ndarray, rows: int) -> None:
    """Raise FeaturesError unless labels are one integer per row.

    Raises:
        FeaturesError: the shape or dtype differs.

    """
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise FeaturesError(f"labels are {labels.dtype} {labels.shape}, expected {rows} integers")
