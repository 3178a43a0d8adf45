"""What every evaluator checks first: features are finite tables of one width, with a label for every row."""

from __future__ import annotations

import numpy as np

from mimeval.errors import FeaturesError


def check_features(train: np.ndarray, queries: np.ndarray, train_labels: np.ndarray | None = None) -> None:
    """Refuse what would give a figure that means nothing.

    Args:
        train: (n, D), n ≥ 1.
        queries: (m, D).
        train_labels: (n,) integers.

    Raises:
        FeaturesError: another shape, NaN or infinity, or labels that do not fit.

    """
    for name, table in (("training features", train), ("query features", queries)):
        if table.ndim != 2:
            raise FeaturesError(f"{name} have shape {table.shape}, expected (images, dimensions)")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if bad.size:
            raise FeaturesError(f"{name} hold NaN or infinity in {bad.size} of {len(table)} rows, first row {bad[0]}")
    if not len(train) or train.shape[1] != queries.shape[1]:
        raise FeaturesError(f"{train.shape} training and {queries.shape} query features do not belong together")
    if train_labels is not None:
        check_labels(train_labels, len(train))


def check_labels(labels: np.ndarray, rows: int) -> None:
    """Refuse labels that are not one integer a row.

    Raises:
        FeaturesError: another shape or type.

    """
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise FeaturesError(f"labels are {labels.dtype} {labels.shape}, expected {rows} integers")
