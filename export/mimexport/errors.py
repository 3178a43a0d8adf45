"""Errors of `mimexport`, subclasses of `mimruntime.errors.MimError`.

MimError
├── WeightsError     weights that cannot be downloaded, read or loaded into the architecture
├── HeadError        a head that cannot be read, or was fitted on another backbone
├── FitError         too few or unusable images or features for a fit
└── GraphError       a graph that breaks a rule of this project
"""

from mimruntime.errors import MimError


class WeightsError(MimError):
    """Weights that cannot be downloaded, read or loaded into the architecture."""


class HeadError(MimError):
    """A head that cannot be read, or was fitted on another backbone."""


class FitError(MimError):
    """Too few or unusable images or features for a fit."""


class GraphError(MimError):
    """An exported graph that breaks a rule: a forbidden operator, a fixed batch size, a wrong input or output."""
