"""Errors of the building side; they hang in the tree of `mimruntime.errors`.

MimError
├── WeightsError     weights that cannot be fetched, read or fitted to the architecture
└── GraphError       a graph that breaks a rule of this project
"""

from mimruntime.errors import MimError


class WeightsError(MimError):
    """Weights that cannot be fetched, read or fitted to the architecture."""


class GraphError(MimError):
    """An exported graph that breaks a rule: a forbidden operator, a frozen batch, a wrong port."""
