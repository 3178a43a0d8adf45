"""Whether a distribution is installed."""

from __future__ import annotations

from importlib import metadata


def is_installed(distribution: str) -> bool:
    """Return whether a distribution, by its name on the package index, is installed here."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
