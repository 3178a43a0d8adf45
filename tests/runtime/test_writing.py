"""What is written is there whole or not at all, whatever happens meanwhile: faults, kills, others at the same place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import killed_at_random
import pytest

from mimruntime import artifact, writing
from mimruntime.artifact import MANIFEST, staged_folder
from mimruntime.errors import OutputError
from mimruntime.storage import Codec
from mimruntime.vectors import open_writer

KILLED = Path(__file__).parent.parent / "support" / "killed.py"
SCENES = ("build", "build_again", "build_again_where_nothing_can_be_swapped", "compile", "file")


def fill(folder: Path, content: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(content)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_any_step_it_leaves_old_or_new_and_the_next_one_cleans_up(scene: str, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, KILLED, scene, tmp_path / "x"], capture_output=True, text=True)  # noqa: PLW1510
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[0]) > 5  # it was killed, not merely run


def build(target: Path, meanwhile: Callable[[], object], *, replace: bool = False, content: str = "new") -> None:
    """Build at `target` while something else happens."""
    with staged_folder(target, replace=replace) as stage:
        fill(stage, content)
        meanwhile()


def test_what_appears_at_the_target_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "built"
    with pytest.raises(OutputError, match="was created by another process in the meantime and is not overwritten"):
        build(target, lambda: fill(target, "mine"))
    assert (target / MANIFEST).read_text() == "mine"
    assert names(tmp_path) == ["built"]


def test_a_file_that_appears_at_the_target_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "built"
    with pytest.raises(OutputError, match="was created by another process"):
        build(target, lambda: target.write_text("mine"))
    assert target.read_text() == "mine"


@pytest.mark.parametrize("replace", [False, True])
def test_of_two_builds_to_one_target_the_second_says_so(tmp_path: Path, replace: bool) -> None:
    target = tmp_path / "built"
    if replace:
        fill(target, "old")
    with pytest.raises(OutputError, match=r"created by another process|was replaced by another"):
        build(target, lambda: build(target, lambda: None, replace=replace, content="early"), replace=replace)
    assert (target / MANIFEST).read_text() == "early"
    assert names(tmp_path) == ["built"]


def test_an_artifact_that_became_something_else_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = fill(tmp_path / "built", "old")
    with pytest.raises(OutputError, match="is not overwritten"):
        build(target, lambda: (target / MANIFEST).rename(target / "manifest of my party"), replace=True)
    assert names(target) == ["manifest of my party"]


def test_what_comes_between_the_last_look_and_the_swap_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, swap, swaps = fill(tmp_path / "built", "old"), writing.exchange, []

    def exchange(one: Path, other: Path) -> bool:
        if not swaps:
            (target / MANIFEST).write_text("mine")
        swaps.append(one)
        return swap(one, other)

    monkeypatch.setattr(writing, "exchange", exchange)
    with pytest.raises(OutputError, match="changed at the last moment"):
        build(target, lambda: None, replace=True)
    assert (target / MANIFEST).read_text() == "mine"


def test_of_many_that_replace_one_folder_every_one_does(tmp_path: Path) -> None:
    stages = [fill(tmp_path / f".stage{index}", str(index)) for index in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda stage: writing.replace(stage, tmp_path / "target", MANIFEST), stages))
    assert names(tmp_path) == ["target"]


def test_a_build_sweeps_what_dead_ones_left_and_nothing_else(tmp_path: Path) -> None:
    dead = fill(tmp_path / ".built.x1y2z3w4.partial", "dead")
    others = [tmp_path / ".other.x1y2z3w4.partial", tmp_path / ".built.notes", tmp_path / ".built.a.b.partial"]
    for other in others:
        other.mkdir()
    with staged_folder(tmp_path / "other.a") as living, staged_folder(tmp_path / "built") as stage:
        fill(stage, "new")
        assert not dead.exists()
        with staged_folder(tmp_path / "built") as third:  # another of the same name, at the same time
            assert stage.exists()
            assert third.exists()
        assert living.exists()
    assert all(other.exists() for other in others)


def test_embed_sweeps_the_file_of_a_dead_one(tmp_path: Path) -> None:
    (tmp_path / ".v.npz.4711.partial").write_bytes(b"half")
    with open_writer(tmp_path / "v.npz", codec=Codec("fp32", 2, "s"), model="m", precision="fp32"):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == ["v.npz"]


def test_a_compilation_sweeps_what_dead_ones_left(toy_copy: Path) -> None:
    from mimruntime.engines.compiled import staged_engine

    dead = fill(toy_copy / "engines", "") / ".x1y2z3w4.partial"
    (toy_copy / "engines" / MANIFEST).unlink()
    fill(dead, "dead")
    with staged_engine(artifact.Artifact.open(toy_copy)) as stage:
        assert names(toy_copy / "engines") == [stage.name]


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, sync, synced = tmp_path / "built", os.fsync, {}

    def fsync(handle: int) -> None:
        synced[os.fstat(handle).st_ino] = target.exists()
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with staged_folder(target) as stage:
        fill(stage, "new")
        fill(stage / "sub", "new")
    before = [target, target / "sub", target / MANIFEST, target / "sub" / MANIFEST]
    assert [synced[path.stat().st_ino] for path in before] == [False] * 4
    assert synced[tmp_path.stat().st_ino] is True  # and then the new name
    synced.clear()
    target = tmp_path / "file"
    writing.write_file(target, b"x")
    assert (synced[target.stat().st_ino], synced[tmp_path.stat().st_ino]) == (False, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1])
def test_sixty_builds_and_compilations_killed_at_random_lose_and_mix_nothing(seed: int, tmp_path: Path) -> None:
    counts = killed_at_random.attack(tmp_path / "x", kills=60, seed=seed)
    assert counts["killed"] >= 60
    assert counts["rounds"] > 10
