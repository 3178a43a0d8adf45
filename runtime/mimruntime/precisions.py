"""Vectors of one embedding space that were computed in two precisions compare, at a loss, and that is said."""

from __future__ import annotations

import logging
from collections.abc import Iterable

_LOG = logging.getLogger("mimexport")


def warn_of_mixing(what: str, precisions: Iterable[str | None]) -> None:
    """Log that `what` are of several precisions, where they are; what says none (None) is left out."""
    found = sorted({precision for precision in precisions if precision is not None})
    if len(found) > 1:
        _LOG.warning(
            "%s: one embedding space, computed in %s; they compare, at a loss of neighbours",
            what,
            " and in ".join(found),
        )
