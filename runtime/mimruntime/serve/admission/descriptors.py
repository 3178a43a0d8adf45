"""Compute how many connections the file descriptors of a process allow."""

from __future__ import annotations

import logging
import resource

_LOG = logging.getLogger("mimexport")
_SPARE = 256
"""Descriptors for files, libraries, and connections that are accepted but not yet counted."""


def fit_connections(wanted: int, protocols: int = 1) -> int:
    """Raise the soft limit of descriptors for `wanted` connections per protocol; return the number it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = protocols * wanted + _SPARE
    if resource.RLIM_INFINITY != soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(1, (soft - min(_SPARE, soft // 2)) // protocols)
    _LOG.warning(
        "--max-connections %d needs %d descriptors, %d are allowed (ulimit -Hn): %d connections are taken instead",
        *(wanted, needed, soft, allowed),
    )
    return allowed
