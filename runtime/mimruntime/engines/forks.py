"""Processes that are forked off: a library's threads stay with the parent, and its objects are of no use to the child."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

_THINGS: weakref.WeakSet[Any] = weakref.WeakSet()


def stays_with_process(thing: Any) -> None:
    """Let a forked process never destroy `thing`: that would wait for threads which are not there, or crash."""
    _THINGS.add(thing)


def _abandon() -> None:
    """In the child, give everything a reference that nobody takes back; it ends with the process."""
    for thing in _THINGS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def refusal(name: str) -> str:
    """Return the line for a child that uses what its parent opened with the library `name`."""
    return (
        f"the engine '{name}' was opened before this process was forked off, and its threads stayed with the parent;"
        " open the Embedder after the fork, in each process, or start processes by spawn (docs/how-to/processes.md)"
    )
