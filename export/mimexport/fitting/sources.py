"""Images as sources that are read when they are asked for, so that none of them stays in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from mimruntime.decode import Source


class LazySources(Sequence[Source]):
    """One source for every row.

    Args:
        rows: whatever `read` takes one of.
        read: a row to its source.

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
