"""Jobs of two lists and two artifacts are begun at once in one folder and killed at random: nothing lost, nothing mixed.

MIMEXPORT_KILLS and MIMEXPORT_SEED change how many kills there are and when they come.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from collection_helpers import START, mimexport, read_shards

KILLS = int(os.environ.get("MIMEXPORT_KILLS", "32"))
SEED = int(os.environ.get("MIMEXPORT_SEED", "0"))
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("differs", ["list", "artifact", "nothing"])
def test_jobs_killed_at_random_in_one_folder_lose_nothing_and_mix_nothing(
    toy_artifact: Path, toy_without_selection: Path, gallery: Path, tmp_path: Path, differs: str
) -> None:
    images = [gallery] * 20
    lists = [images, images[:-1] if differs == "list" else images]
    artifacts = [toy_artifact, toy_without_selection if differs == "artifact" else toy_artifact]
    arguments = [
        ["embed", artifact, *named, "--shard-size", 20, "--engine", "onnxruntime"]
        for artifact, named in zip(artifacts, lists, strict=True)
    ]
    alone = [tmp_path / f"alone-{number}" for number in range(2)]
    for place, job in zip(alone, arguments, strict=True):
        assert mimexport(*job, "--out", place) == 0
    out = tmp_path / "o"
    rivals = Rivals(
        [[str(part) for part in (sys.executable, "-c", START, *job, "--out", out)] for job in arguments],
        [{path.name for path in place.glob("part-*")} for place in alone],
    )
    kill_at_random(rivals, out, -(-KILLS // 3), np.random.default_rng([SEED, len(differs)]))
    found = len(list(out.glob("part-*")))
    codes = [mimexport(*job, "--out", out) for job in arguments]
    assert sorted(codes) == ([0, 0] if differs == "nothing" else [0, 1])
    check(out, rivals)
    assert read_shards(out) == read_shards(alone[codes.index(0)])
    assert not list(out.rglob("*.partial"))
    print(f"{differs}: exit codes {rivals.ends}, {found} shards found by the last run")  # noqa: T201 - figures, by -s
