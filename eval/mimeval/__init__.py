"""The evaluation side: labelled images and embedders -> metrics -> statistics -> verdict.

Names are imported on first use: scikit-learn and scipy take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mimruntime.errors import MimError

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mimeval' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
