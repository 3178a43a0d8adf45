"""Repeatedly start two `embed` jobs in one folder at the same time, and kill them at random."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from collection_helpers import START, mimexport, read_shards

DIFFERENCES = ("list", "artifact", "nothing")
"""Differences between the two jobs."""
_START_S = 2
"""Seconds in which a process starts, lists the images and claims the folder."""


@dataclass
class Rivals:
    """Two commands with the same output folder, and the result of each alone."""

    commands: list[list[str]]
    names: list[set[str]]
    ends: dict[int, int] = field(default_factory=dict)

    def begin(self) -> list[subprocess.Popen[str]]:
        """Start both at the same time."""
        return [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in self.commands
        ]

    def note(self, code: int) -> None:
        self.ends[code] = self.ends.get(code, 0) + 1


def check(out: Path, rivals: Rivals) -> None:
    """Check that the content of the folder is complete and from one job."""
    shards = {path.name for path in out.glob("part-*")}
    assert any(shards <= names for names in rivals.names)
    for name in shards:
        assert pq.ParquetFile(out / name).metadata.num_rows == 20


def wait_a_while(processes: list[subprocess.Popen[str]], out: Path, chance: np.random.Generator) -> None:
    """Return at a random moment of the start, or, twice as often, after up to four further shards."""
    if chance.random() < 1 / 3:
        time.sleep(chance.random() * _START_S)
        return
    wanted = len(list(out.glob("part-*"))) + int(chance.integers(5))
    while len(list(out.glob("part-*"))) < wanted and any(process.poll() is None for process in processes):
        time.sleep(chance.random() / 50)


def kill_at_random(rivals: Rivals, out: Path, kills: int, chance: np.random.Generator) -> None:
    """Repeatedly start both jobs and kill them; check that a rejected job prints the reason."""
    while rivals.ends.get(-signal.SIGKILL, 0) < kills:
        processes = rivals.begin()
        wait_a_while(processes, out, chance)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            said = process.communicate()[1]
            rivals.note(process.returncode)
            assert process.returncode in {-signal.SIGKILL, 0, 1}, said
            if process.returncode == 1:
                assert "was begun with another" in said or "another run is writing" in said
        check(out, rivals)
        if chance.random() < 1 / 4 or len(list(out.glob("part-*"))) == 60:  # restart: jobs conflict at the start
            shutil.rmtree(out, ignore_errors=True)


def attack(
    folder: Path, artifacts: tuple[Path, Path], gallery: Path, differs: str, kills: int, chance: np.random.Generator
) -> dict[int, int]:
    """Kill `kills` jobs of one folder, check after each, and check at the end that nothing is lost.

    Args:
        folder: folder for all files.
        artifacts: two artifacts; the second is used if the jobs differ in it.
        gallery: 60 images, each embedded twenty times.
        differs: one of `DIFFERENCES`.
        kills: number of processes to kill.
        chance: random generator for the moments.

    Returns:
        The number of processes by exit code.

    """
    lists = [[gallery] * 20, [gallery] * (19 if differs == "list" else 20)]
    arguments = [
        ["embed", artifact, *images, "--shard-size", 20, "--engine", "onnxruntime"]
        for artifact, images in zip((artifacts[0], artifacts[differs == "artifact"]), lists, strict=True)
    ]
    alone = [folder / f"alone-{number}" for number in range(2)]
    for place, job in zip(alone, arguments, strict=True):
        assert mimexport(*job, "--out", place) == 0
    out = folder / "o"
    rivals = Rivals(
        [[str(part) for part in (sys.executable, "-c", START, *job, "--out", out)] for job in arguments],
        [{path.name for path in place.glob("part-*")} for place in alone],
    )
    kill_at_random(rivals, out, kills, chance)
    codes = [mimexport(*job, "--out", out) for job in arguments]
    assert sorted(codes) == ([0, 0] if differs == "nothing" else [0, 1])
    check(out, rivals)
    assert read_shards(out) == read_shards(alone[codes.index(0)])
    assert not list(out.rglob("*.partial"))
    return rivals.ends
