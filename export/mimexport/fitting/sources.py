"""A sequence of images that are read on access, so none stays in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from mimruntime.decode import Source


class LazySources(Sequence[Source]):
    """A sequence of image sources, one per row.

    Args:
        rows: the arguments for `read`.
        read: returns the source of one row.

    """

    def __init__(self, rows: Sequence[Any], read: Callable[[Any], Source]) -> None:
        self._rows = rows
        self._read = read

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        if isinstance(index, slice):
            return LazySources(self._rows[index], self._read)
        return self._read(self._rows[index])
