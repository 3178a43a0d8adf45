"""A folder is of one job: of two that begin in it at once at most one goes on, and its shards are told from others'."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from collection_helpers import mimexport, read_shards

from mimruntime.artifact import Artifact
from mimruntime.collection.inputs import Columns
from mimruntime.collection.job import plan
from mimruntime.collection.local_folder import LocalFolder
from mimruntime.collection.remote_folder import RemoteFolder
from mimruntime.collection.store import open_folder
from mimruntime.errors import OutputError

HOLD = """
import sys
from mimruntime.collection.store import open_folder
with open_folder(sys.argv[1]).hold():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, on this machine and in an object store."""
    return str(tmp_path / "o") if request.param == "local" else f"memory://{uuid.uuid4().hex}/o"


def begin(where: str, artifact: Path, *images: Path) -> list[str]:
    """Plan a job and return the names of its shards."""
    job = plan(map(str, images), where, Artifact.open(artifact), columns=Columns(), shard_size=25)
    return [job.record.shard_name(index) for index in range(job.record.shards)]


@pytest.mark.parametrize("differs", ["list", "artifact"])
def test_a_job_that_begins_while_another_does_is_refused_and_leaves_nothing(
    toy_artifact: Path,
    toy_without_selection: Path,
    gallery: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    differs: str,
) -> None:
    rival = {"list": (toy_artifact, gallery / "002.jpg"), "artifact": (toy_without_selection, gallery / "001.jpg")}
    kind = type(open_folder(place))
    upload = kind.upload

    def upload_after_the_rival(folder: LocalFolder | RemoteFolder, name: str, source: Path) -> None:
        """Both have seen an empty folder; the rival's whole job comes before the list of the first."""
        monkeypatch.setattr(kind, "upload", upload)
        assert mimexport("embed", *rival[differs], "--out", place) == 0
        upload(folder, name, source)

    monkeypatch.setattr(kind, "upload", upload_after_the_rival)
    assert mimexport("embed", toy_artifact, gallery / "001.jpg", "--out", place) == 1
    assert f"was begun with another {'list' if differs == 'list' else 'graph'}" in capsys.readouterr().err
    names = [*open_folder(place).names(), *open_folder(f"{place}/_job").names()]
    assert sorted(name.split("-")[0] for name in names if name not in {"lock", "_job"}) == [
        "list",
        "part",
        "record.json",
    ]
    assert mimexport("embed", *rival[differs], "--out", place) == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_shards_carry_space_and_graph_in_their_names(
    toy_artifact: Path, toy_without_selection: Path, toy_copy: Path, gallery: Path, tmp_path: Path
) -> None:
    first, other, same = (
        begin(str(tmp_path / f"out-{number}"), artifact, gallery)
        for number, artifact in enumerate((toy_artifact, toy_without_selection, toy_copy))
    )
    assert set(first).isdisjoint(other)
    assert same == first


class Turns:
    """Two threads whose every request to a store waits for its turn; which of them is next is given."""

    def __init__(self, order: tuple[int, ...]) -> None:
        self._order, self._ended = list(order), [False, False]
        self._changed = threading.Condition()
        self.who = threading.local()

    def take(self) -> None:
        """Wait until it is this thread's turn, and use it up."""
        with self._changed:
            self._changed.wait_for(lambda: self._next() == self.who.number)
            if self._order:
                self._order.pop(0)
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended[self.who.number] = True
            self._changed.notify_all()

    def _next(self) -> int:
        """Whose turn it is; without any left, or where that one has ended, the other's."""
        while self._order and self._ended[self._order[0]]:
            self._order.pop(0)
        return self._order[0] if self._order else int(self._ended[0])


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, ...], str, str], list[bool]]:
    """Create one object twice at once, in a given order of requests; return who was told to have created it."""
    memory = type(fsspec.filesystem("memory"))
    requests = {name: getattr(memory, name) for name in ("pipe_file", "find", "rm")}
    turns: list[Turns] = []

    def in_turn(name: str) -> Callable[..., object]:
        def request(self: object, *given: object, **named: object) -> object:
            turns[-1].take()
            return requests[name](self, *given, **named)

        return request

    for name in requests:
        monkeypatch.setattr(memory, name, in_turn(name))

    def run(order: tuple[int, ...], *contents: str) -> list[bool]:
        turns.append(Turns(order))
        folder, told = open_folder(f"memory://{uuid.uuid4().hex}/o"), [False, False]

        def one(number: int) -> None:
            turns[-1].who.number = number
            try:
                told[number] = folder.create("_job/record.json", contents[number].encode())
            finally:
                turns[-1].end()

        threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if any(told):
            assert folder.read("_job/record.json").decode() == contents[told.index(True)]
        return told

    return run


def orders() -> Iterator[tuple[int, ...]]:
    """Every order in which two writers of at most four requests each may come."""
    for chosen in itertools.combinations(range(8), 4):
        yield tuple(int(turn in chosen) for turn in range(8))


def test_in_no_order_of_requests_do_two_jobs_begin_in_one_folder_of_an_object_store(race: Callable) -> None:
    outcomes = {tuple(race(order, "one", "another")) for order in orders()}
    assert outcomes == {(True, False), (False, True), (False, False)}
    # Who has the store to himself begins.
    assert race((0,) * 8, "one", "another") == [True, False]


def test_two_runs_of_one_job_may_begin_together_in_an_object_store(race: Callable) -> None:
    assert all(any(race(order, "one", "one")) for order in orders())


def test_a_writer_killed_between_two_requests_does_not_lock_an_object_store_for_ever(tmp_path: Path) -> None:
    folder = open_folder(f"local://{tmp_path}/o")
    folder.write("_job/record.json.0123456789ab.dead.announced", b"")
    assert not folder.create("_job/record.json", b"{}")
    (left,) = (tmp_path / "o" / "_job").iterdir()
    os.utime(left, (left.stat().st_mtime - 4000,) * 2)
    assert folder.create("_job/record.json", b"{}")
    assert [path.name for path in (tmp_path / "o" / "_job").iterdir()] == ["record.json"]


def test_a_second_run_of_the_same_job_is_refused_until_the_first_has_ended_or_was_killed(
    toy_artifact: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("embed", toy_artifact, gallery, "--out", tmp_path / "o")
    begin(str(tmp_path / "o"), toy_artifact, gallery)
    command = [sys.executable, "-c", HOLD, tmp_path / "o"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        assert mimexport(*job, "--shard-size", 25) == 1
        said = capsys.readouterr().err
        assert f"another run is writing to it (process {first.pid} on " in said
        assert "wait until it has ended, or choose another --out" in said
        first.kill()
    assert mimexport(*job, "--shard-size", 25) == 0


def test_a_disk_without_links_takes_a_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    folder = LocalFolder(tmp_path / "o")
    assert folder.create("x", b"one")
    assert not folder.create("x", b"two")
    assert folder.read("x") == b"one"
    assert folder.names() == ["x"]


def test_a_folder_of_the_first_version_is_taken_up(
    toy_artifact: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    job = ("embed", toy_artifact, gallery, "--out", out, "--shard-size", 25)
    assert mimexport(*job) == 0
    whole = read_shards(out)
    names = sorted(str(path) for path in gallery.iterdir())
    listed = b"[25,null,null]" + b"".join(b"%s\0-1\0-1\n" % name.encode() for name in names)
    digest = hashlib.sha256(listed).hexdigest()
    record = json.loads((out / "_job" / "record.json").read_text())
    for path in (*out.glob("part-*"), *(out / "_job").glob("list-*")):
        path.rename(path.with_name(path.name.replace(record["digest"][:12], digest[:12])))
    (out / "_job" / "record.json").write_text(json.dumps({**record, "schema": 1, "digest": digest}))
    (out / f"part-0000001-{digest[:12]}.parquet").unlink()
    assert mimexport(*job) == 0
    assert "2 of 3 shards already existed" in capsys.readouterr().out
    assert read_shards(out) == whole
    assert {path.name[13:25] for path in out.glob("part-*")} == {digest[:12]}
    with pytest.raises(OutputError, match="begun with another list"):
        begin(str(out), toy_artifact, gallery / "001.jpg")
