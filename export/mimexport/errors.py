"""Errors of the building side; they hang in the tree of `mimruntime.errors`.

MimError
├── WeightsError     weights that cannot be fetched, read or fitted to the architecture
├── HeadError        a head that cannot be read, or was not made for this backbone
├── FitError         images or features from which nothing can be learned
└── GraphError       a graph that breaks a rule of this project
"""

from mimruntime.errors import MimError


class WeightsError(MimError):
    """Weights that cannot be fetched, read or fitted to the architecture."""


class HeadError(MimError):
    """A head that cannot be read, or was not made for this backbone."""


class FitError(MimError):
    """Images or features from which nothing can be learned."""


class GraphError(MimError):
    """An exported graph that breaks a rule: a forbidden operator, a frozen batch, a wrong port."""
