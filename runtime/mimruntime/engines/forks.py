"""Handle forked processes: a library's threads exist only in the parent, so its objects are unusable in the child."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

_THINGS: weakref.WeakSet[Any] = weakref.WeakSet()


def stays_with_process(thing: Any) -> None:
    """Never destroy `thing` in a forked child: its destructor would wait for missing threads, or crash."""
    _THINGS.add(thing)


def _abandon() -> None:
    """In the child, add a reference to each object that is never released."""
    for thing in _THINGS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def refusal(name: str) -> str:
    """Return the error text for a child that uses an engine opened by its parent."""
    return (
        f"the engine '{name}' was opened before this process was forked, and its threads exist only in the parent;"
        " open the Embedder after the fork, in each process, or start processes with spawn (docs/how-to/processes.md)"
    )
