"""A smaller input that still fails: pieces are left out, ever smaller ones, as long as it does (delta debugging)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S", bound=Sequence[object])


def shrink(given: S, fails: Callable[[S], bool], most_tries: int = 300) -> S:
    """Return a part of `given` that fails as well: of bytes or a list, `given` itself where nothing can be left out.

    Args:
        given: what fails.
        fails: tells whether a part of it does.
        most_tries: calls of `fails`.

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
