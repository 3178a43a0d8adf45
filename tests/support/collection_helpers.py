"""Run the command `embed`, and read folders of shards."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from mimruntime import cli

START = "from mimruntime import cli; cli.run(cli.COMMANDS)"
"""Script that runs the program in a new process."""


class Shards(NamedTuple):
    """All rows of a folder of shards, in order."""

    paths: list[str]
    vectors: list
    errors: list
    spaces: set[str]

    def by_path(self) -> dict:
        return dict(zip(self.paths, self.vectors, strict=True))


def read_shards(folder: Path) -> Shards:
    tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("part-*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    return Shards(
        *([row[name] for row in rows] for name in ("path", "vector", "error")), {r["embedding_space"] for r in rows}
    )


def mimexport(*arguments: object) -> int:
    """Run the program in this process and return its exit code."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.run(cli.COMMANDS, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, previous)
    return int(stop.value.code or 0)
