"""Two jobs of `embed` begun at once in one folder, again and again, and killed at random."""

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
"""In what the two jobs differ."""
_START_S = 2
"""In which a process starts, lists, and claims the folder."""


@dataclass
class Rivals:
    """Two commands that want the same folder, and what each of them writes alone."""

    commands: list[list[str]]
    names: list[set[str]]
    ends: dict[int, int] = field(default_factory=dict)

    def begin(self) -> list[subprocess.Popen[str]]:
        """Start both at once."""
        return [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in self.commands
        ]

    def note(self, code: int) -> None:
        self.ends[code] = self.ends.get(code, 0) + 1


def check(out: Path, rivals: Rivals) -> None:
    """What is in the folder now is whole, and of one job."""
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
    """Start both jobs again and again and kill them where they are; a job that is refused says why."""
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
        if chance.random() < 1 / 4 or len(list(out.glob("part-*"))) == 60:  # to begin is where they meet
            shutil.rmtree(out, ignore_errors=True)


def attack(
    folder: Path, artifacts: tuple[Path, Path], gallery: Path, differs: str, kills: int, chance: np.random.Generator
) -> dict[int, int]:
    """Kill so many jobs of one folder, check after each, and at the end that nothing is lost.

    Args:
        folder: for all of it.
        artifacts: the second one is for jobs that differ in it.
        gallery: 60 images, embedded twenty times over.
        differs: one of `DIFFERENCES`.
        kills: processes.
        chance: decides the moments.

    Returns:
        how many processes ended with each exit code.

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
