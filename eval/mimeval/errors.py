"""Errors of the evaluation, subclasses of `mimruntime.errors.MimError`.

MimError
├── DataError        a data set that is missing or damaged, or cannot be split for an evaluation
└── FeaturesError    features that are not finite tables, or do not fit together
"""

from mimruntime.errors import MimError


class DataError(MimError):
    """A data set that is missing or damaged, or cannot be split for an evaluation."""


class FeaturesError(MimError):
    """Features that are not finite tables, or do not fit together."""
