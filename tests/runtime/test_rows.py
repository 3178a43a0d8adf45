"""Rows on disk: of two runs that compute the same, one waits and finds what the other saved."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from mimruntime.errors import OutputError
from mimruntime.rows import open_rows

LAYOUT = np.dtype([("vector", "<f4", (3,)), ("kept", "<f2", (0, 5)), ("count", "<i2")], align=True)


def rows(count: int, start: int = 0) -> np.ndarray:
    made = np.zeros(count, LAYOUT)
    made["count"] = np.arange(start, start + count)
    return made


def test_rows_come_back_in_order_with_what_was_noted(tmp_path: Path) -> None:
    with open_rows(tmp_path, "a", LAYOUT) as stored:
        assert stored.done == 0
        assert len(stored.read()) == 0
        stored.append(rows(2), seconds=0.5)
        stored.append(rows(3, 2), errors={4: "no image"})
    with open_rows(tmp_path, "a", LAYOUT) as stored, open_rows(tmp_path, "b", LAYOUT) as other:
        assert other.done == 0
        assert stored.read()["count"].tolist() == [0, 1, 2, 3, 4]
        assert stored.read()["kept"].shape == (5, 0, 5)
        assert [(chunk.rows, chunk.seconds, chunk.errors) for chunk in stored.chunks] == [
            (2, 0.5, {}),
            (3, None, {4: "no image"}),
        ]
        stored.keep(1)
        stored.append(rows(1, 7))
        assert stored.read()["count"].tolist() == [0, 1, 7]


def test_a_run_waits_for_the_one_that_computes_the_same(tmp_path: Path) -> None:
    waits, found = threading.Event(), []

    def second() -> None:
        with open_rows(tmp_path, "a", LAYOUT, lambda line: waits.set()) as stored:
            found.append(stored.done)

    thread = threading.Thread(target=second)
    with open_rows(tmp_path, "a", LAYOUT) as stored:
        thread.start()
        assert waits.wait(60)
        stored.append(rows(4))
        assert found == []
    thread.join()
    assert found == [4]


def test_what_is_written_into_rows_that_were_read_stays_in_memory(tmp_path: Path) -> None:
    for _ in range(2):
        with open_rows(tmp_path, "a", LAYOUT) as stored:
            if not stored.chunks:
                stored.append(rows(2))
            read = stored.read()
            assert read["count"].tolist() == [0, 1]
            read["count"] = 9


def test_a_place_that_takes_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write the cache .*: .*; what was computed is kept, make room"):
        open_rows(tmp_path / "file", "a", LAYOUT).__enter__()
