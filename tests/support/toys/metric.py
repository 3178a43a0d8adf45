"""Example of a user's metric: whether the nearest class centre is the correct one."""

from __future__ import annotations

import numpy as np

from mimeval.metrics import Metric, Scores, Task, TrainingSet


def _nearest_centre(task: Task, known: TrainingSet, _: np.ndarray | None, test: np.ndarray) -> Scores:
    classes = np.unique(known.labels)
    centres = np.stack([known.features[known.labels == label].mean(0) for label in classes])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return {"nearest centre": classes[(test @ centres.T).argmax(1)] == task.test_labels}


METRIC = Metric(score=_nearest_centre, chance=lambda _, learned, __, ___: 1 / len(np.unique(learned)))
