"""Shrink a failing input by removing ever smaller pieces while it still fails (delta debugging)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S", bound=Sequence[object])


def shrink(given: S, fails: Callable[[S], bool], most_tries: int = 300) -> S:
    """Return a part of `given` that still fails, or `given` itself if nothing can be removed.

    Args:
        given: the failing input, bytes or a list.
        fails: returns whether a part of it fails.
        most_tries: largest number of calls of `fails`.

    """
    tries, piece = 0, len(given) // 2
    while piece:
        start, before = 0, len(given)
        while start < len(given):
            if tries == most_tries:
                return given
            tries += 1
            rest = given[:start] + given[start + piece :]  # type: ignore[operator]
            if fails(rest):
                given = rest
            else:
                start += piece
        if len(given) == before or piece > 1:
            piece //= 2
    return given
