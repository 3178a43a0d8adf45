"""Errors of the evaluation; they hang in the tree of `mimruntime.errors`.

MimError
├── DataError        a data set that is missing, broken, or cannot be divided into what an evaluation needs
└── FeaturesError    features that are no table of finite numbers, or do not belong together
"""

from mimruntime.errors import MimError


class DataError(MimError):
    """A data set that is missing, broken, or cannot be divided into what an evaluation needs."""


class FeaturesError(MimError):
    """Features that are no table of finite numbers, or do not belong together."""
