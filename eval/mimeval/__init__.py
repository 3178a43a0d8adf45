"""Evaluate embedders on labelled images: metrics, statistics and a verdict.

Names are imported on first use, because scikit-learn and scipy take seconds to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimruntime.errors import MimError
from mimruntime.lazy import lazy_names

if TYPE_CHECKING:
    from mimeval.api import compare, evaluate
    from mimeval.comparison import Comparison
    from mimeval.datasets import Dataset, open_dataset
    from mimeval.report import Report

__all__ = ["Comparison", "Dataset", "MimError", "Report", "compare", "evaluate", "open_dataset"]

_HOMES = {
    "Comparison": "mimeval.comparison",
    "Dataset": "mimeval.datasets",
    "Report": "mimeval.report",
    "compare": "mimeval.api",
    "evaluate": "mimeval.api",
    "open_dataset": "mimeval.datasets",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
