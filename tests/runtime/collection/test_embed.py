"""A folder of shards: complete, resumable, never mixed; what cannot be read is a row with its error."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collection_helpers import mimexport, read_shards
from fsspec.implementations.memory import MemoryFile

from mimruntime import Embedder
from mimruntime.artifact import Artifact
from mimruntime.batch import BatchEmbedder
from mimruntime.collection.inputs import Columns
from mimruntime.collection.job import plan
from mimruntime.collection.store import open_folder
from mimruntime.collection.worker import ShardWorker
from mimruntime.errors import OutputError, SpaceError
from mimruntime.filesystem import locked


@pytest.fixture
def broken(gallery: Path, tmp_path: Path) -> Path:
    """Six photographs, a corrupt image, an empty file; and a list that names a file that is not there."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in sorted(gallery.iterdir())[:6]:
        shutil.copy(path, folder)
    (folder / "000b.jpg").write_bytes((folder / "000.jpg").read_bytes()[:900])
    (folder / "001b.jpg").touch()
    (tmp_path / "list.txt").write_text(
        "".join(f"{path}\n" for path in [*sorted(folder.iterdir()), folder / "gone.jpg"])
    )
    return folder


def test_the_shards_hold_what_one_file_holds(
    toy_artifact: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mimexport("embed", toy_artifact, gallery, "--out", tmp_path / "shards", "--shard-size", 25) == 0
    said = capsys.readouterr().out
    assert "60 of 60 images embedded" in said
    assert "3 shards, 60 images, 16 dimensions" in said
    stored = read_shards(tmp_path / "shards")
    assert stored.paths == [str(path) for path in sorted(gallery.iterdir())]
    with Embedder.open(toy_artifact) as embedder:
        expected = embedder.embed(sorted(gallery.iterdir()))
        assert np.abs(np.array(stored.vectors, np.float32) - expected).max() < 1e-6
        assert stored.spaces == {embedder.space}
    counts = [pq.ParquetFile(path).metadata.num_rows for path in sorted((tmp_path / "shards").glob("part-*"))]
    assert counts == [25, 25, 10]
    # Readers of folders pass over what belongs to the job.
    assert len(pq.read_table(tmp_path / "shards")) == 60


def test_what_cannot_be_read_is_a_row_and_the_job_goes_on(
    toy_artifact: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mimexport("embed", toy_artifact, f"@{tmp_path}/list.txt", "--out", tmp_path / "o", "--shard-size", 4) == 0
    assert "3 could not be read (column 'error')" in capsys.readouterr().err
    stored = read_shards(tmp_path / "o")
    failed = {Path(path).name: error for path, error in zip(stored.paths, stored.errors, strict=True) if error}
    assert sorted(failed) == ["000b.jpg", "001b.jpg", "gone.jpg"]
    assert "truncated" in failed["000b.jpg"]
    assert failed["001b.jpg"] == f"{broken}/001b.jpg: is empty, 0 bytes"
    assert failed["gone.jpg"] == f"{broken}/gone.jpg: cannot be read (No such file or directory)"
    assert [vector is None for vector in stored.vectors] == [error is not None for error in stored.errors]


def test_strict_stops_at_the_first_and_keeps_the_shards_before_it(
    toy_artifact: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("embed", toy_artifact, broken, "--out", tmp_path / "o", "--shard-size", 1)
    assert mimexport(*job, "--strict") == 1
    assert "--strict stops here, finished shards stay in" in capsys.readouterr().err
    assert [Path(path).name for path in read_shards(tmp_path / "o").paths] == ["000.jpg"]
    assert mimexport(*job) == 0
    assert len(read_shards(tmp_path / "o").paths) == 8


def test_a_finished_job_does_nothing_and_a_lost_shard_is_made_again(
    toy_artifact: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("embed", toy_artifact, gallery, "--out", tmp_path / "o/", "--shard-size", 25)
    assert mimexport(*job) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "o").glob("part-*")}
    lost = sorted(first)[1]
    (tmp_path / "o" / lost).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "o").glob("part-*")}
    assert mimexport(*job) == 0
    assert "2 of 3 shards already existed" in capsys.readouterr().out
    after = {path.name: path for path in (tmp_path / "o").glob("part-*")}
    assert {name: path.read_bytes() for name, path in after.items()} == first
    assert {name: path.stat().st_mtime_ns for name, path in after.items() if name != lost} == before
    assert mimexport(*job) == 0
    assert "nothing left to do" in capsys.readouterr().out


def test_shards_of_another_precision_are_taken_up_and_named(
    toy_artifact: Path, gallery: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = ("embed", toy_artifact, gallery, "--out", tmp_path / "o", "--shard-size", 30)
    assert mimexport(*job) == 0
    first, second = sorted((tmp_path / "o").glob("part-*"))
    table = pq.read_table(first)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"precision": b"int8"}), first)
    second.unlink()
    assert mimexport(*job) == 0
    assert any("one embedding space, computed in fp32 and in int8" in line for line in caplog.messages)
    second.unlink()
    assert mimexport(*job, "--expect-precision", "int8") == 1
    assert not second.exists()


def test_another_job_in_the_same_folder_is_refused(
    toy_artifact: Path,
    toy_without_selection: Path,
    gallery: Path,
    broken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "o"
    assert mimexport("embed", toy_artifact, gallery, "--out", out) == 0
    before = sorted(out.rglob("*"))
    for artifact, images, options, says in [
        (toy_artifact, broken, (), "begun with another list of images (60 in shards of 1000, now 8 in shards of 1000)"),
        (toy_artifact, gallery, ("--shard-size", 7), "60 in shards of 7); give the inputs"),
        (toy_artifact, gallery, ("--image-column", "x"), "begun with another list"),
        (toy_without_selection, gallery, (), "begun with another graph of the same space"),
    ]:
        assert mimexport("embed", artifact, images, "--out", out, *options) == 1
        said = capsys.readouterr().err
        assert says in said
        assert "--out" in said or "artifact" in said
    assert sorted(out.rglob("*")) == before
    record = out / "_job" / "record.json"
    record.write_text(record.read_text().replace('"embedding_space": "', '"embedding_space": "0'))
    assert mimexport("embed", toy_artifact, gallery, "--out", out) == 1
    assert "holds vectors of space 0" in capsys.readouterr().err
    record.write_text(record.read_text().replace('"schema": 2', '"schema": 3, "more": 1'))
    assert mimexport("embed", toy_artifact, gallery, "--out", out) == 1
    assert "has schema 3, this program reads up to 2; upgrade mimexport" in capsys.readouterr().err
    record.write_text("{}")
    assert mimexport("embed", toy_artifact, gallery, "--out", out) == 1
    assert "_job/record.json is not of this program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("photos/", (), "holds other files (000.jpg …) and no job of mimexport"),
        ("photos/000.jpg/", (), "is a file; expected a folder for the shards"),
        ("/proc/o/", (), "cannot write /proc/o/_job/list-"),
        ("what://x/y", (), "cannot reach what://x/y: what:// is no storage that pyarrow or fsspec knows"),
        ("az://x/y", (), "cannot reach az://x/y: az:// needs another package: "),
        ("s3://key:secret@bucket/y", (), "s3://key:secret@bucket is refused; expected a bucket alone"),
        ("s3://bucket/v.parquet", (), "one file is written to a local path"),
        ("v.npz", ("--shard-size", 5), "--shard-size needs a folder of shards, but --out v.npz is one file"),
        ("v.npz", ("--ray", "auto"), "--ray needs a folder of shards"),
        ("o", ("--workers", 2), "--workers is for --ray"),
        ("o", ("--expect-space", "feed"), "expected feed"),
    ],
)
def test_each_mistake_is_one_line_and_leaves_nothing(
    toy_artifact: Path,
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    options: tuple,
    says: str,
) -> None:
    shutil.copytree(gallery, tmp_path / "photos")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert mimexport("embed", toy_artifact, "photos", "--out", out, *options) == 1
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_relative_names_mean_another_list_in_another_folder(
    toy_artifact: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("a", "b"):
        shutil.copytree(gallery, tmp_path / side / "photos")
    monkeypatch.chdir(tmp_path / "a")
    assert mimexport("embed", toy_artifact, "photos", "--out", tmp_path / "o") == 0
    assert read_shards(tmp_path / "o").paths[0] == "photos/000.jpg"
    monkeypatch.chdir(tmp_path / "b")
    assert mimexport("embed", toy_artifact, "photos", "--out", tmp_path / "o") == 1


@pytest.mark.parametrize("kind", ["files", "rows"])
def test_a_job_taken_up_from_another_folder_finds_the_images_it_was_begun_with(
    toy_artifact: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(gallery, folder / "photos")
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"path": [f"photos/{path.name}" for path in gallery.iterdir()]}), table)
    monkeypatch.chdir(folder)
    named = {"files": ("photos", folder / "photos"), "rows": (table, table)}[kind]
    job = ("--out", tmp_path / "o", "--shard-size", 25)
    assert mimexport("embed", toy_artifact, named[0], *job) == 0
    whole = read_shards(tmp_path / "o")
    assert whole.errors == [None] * 60
    for path in list((tmp_path / "o").glob("part-*"))[:2]:
        path.unlink()
    monkeypatch.chdir(tmp_path)
    assert mimexport("embed", toy_artifact, named[1], *job) == 0
    assert read_shards(tmp_path / "o") == whole


def test_a_job_without_one_readable_image_fails_and_keeps_its_errors(
    toy_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text("gone.jpg\nlost.jpg\n")
    job = ("embed", toy_artifact, f"@{tmp_path}/list.txt", "--out", tmp_path / "o")
    assert mimexport(*job) == 1
    said = capsys.readouterr().err
    assert "none of 2 images could be read" in said
    assert "first: gone.jpg: cannot be read" in said
    assert len(read_shards(tmp_path / "o").errors) == 2
    # Nor is it done well when it is run again, whole or from its half.
    assert mimexport(*job) == 1
    assert "none of 2 images could be read" in capsys.readouterr().err
    halves = (*job[:-1], tmp_path / "halves", "--shard-size", 1)
    for left in (2, 1):
        assert mimexport(*halves) == 1
        assert "first: gone.jpg: cannot be read" in capsys.readouterr().err
        sorted((tmp_path / "halves").glob("part-*"))[left - 1].unlink()


def test_a_job_whose_rest_holds_only_errors_ends_well(toy_artifact: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{photo}\ngone.jpg\n")
    job = ("embed", toy_artifact, f"@{tmp_path}/list.txt", "--out", tmp_path / "o", "--shard-size", 1)
    assert mimexport(*job) == 0
    sorted((tmp_path / "o").glob("part-*"))[1].unlink()
    assert mimexport(*job) == 0
    assert mimexport(*job) == 0


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_a_worker_that_does_not_see_the_list_says_so(
    toy_artifact: Path, gallery: Path, tmp_path: Path, damage: str
) -> None:
    job = plan([str(gallery)], str(tmp_path / "o"), Artifact.open(toy_artifact), columns=Columns(), shard_size=9)
    (file,) = (tmp_path / "o" / "_job").glob("list-*")
    if damage == "lost":
        file.unlink()
    else:
        file.write_bytes(b"x" * 100)
    says = {"lost": "is not there; every machine must see --out", "damaged": "cannot be read .*; where it is damaged"}
    with pytest.raises(OutputError, match=says[damage]) as error:
        ShardWorker(BatchEmbedder(toy_artifact), job)(0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["toy_whitened", "toy_without_selection"])
def test_a_worker_that_finds_another_artifact_writes_nothing(
    toy_copy: Path, photo: Path, tmp_path: Path, request: pytest.FixtureRequest, other: str
) -> None:
    out = tmp_path / "o"
    planned = Artifact.open(toy_copy)
    job = plan([str(photo)], str(out), planned, columns=Columns(), shard_size=9)
    shutil.rmtree(toy_copy)
    shutil.copytree(request.getfixturevalue(other), toy_copy)
    now = Artifact.open(toy_copy)
    with contextlib.closing(BatchEmbedder(toy_copy)) as embedder, pytest.raises(SpaceError) as error:
        ShardWorker(embedder, job)(0)
    for part in (str(toy_copy), str(out), "put that artifact there"):
        assert part in str(error.value)
    for one in (planned, now):
        assert f"space {one.manifest.embedding_space}, graph {one.graph_sha256[:12]}…" in str(error.value)
    assert [path.name for path in out.iterdir()] == ["_job"]


@pytest.mark.parametrize("kind", ["list", "zip", "parquet"])
@pytest.mark.parametrize("out", ["v.parquet", "o"])
def test_inputs_without_images_are_one_line(
    toy_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, out: str
) -> None:
    (tmp_path / "in.list").touch()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("readme.txt", "no image")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "in.parquet")
    name = f"{'@' * (kind == 'list')}{tmp_path}/in.{kind}"
    assert mimexport("embed", toy_artifact, name, "--out", tmp_path / out) == 1
    assert capsys.readouterr().err.endswith("the inputs hold no images\n")
    assert not (tmp_path / out).exists()


def test_a_write_to_an_object_store_that_breaks_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type(fsspec.filesystem("memory"))
    put = memory.pipe_file

    def half(self: object, path: str, content: bytes, **_: object) -> None:
        put(self, path, content[:10])
        raise OSError("connection reset")

    folder = open_folder(f"memory://{uuid.uuid4().hex}/v")
    with monkeypatch.context() as patched:
        patched.setattr(memory, "pipe_file", half)
        # What was written through streams before, and closed by `with`.
        patched.setattr(MemoryFile, "write", lambda self, content: half(self.fs, self.path, content))
        with pytest.raises(OutputError, match=r"cannot write memory://.*/v/x.parquet: connection reset"):
            folder.write("x.parquet", b"z" * 1000)
    assert folder.names() == []
    folder.write("x.parquet", b"z" * 1000)
    assert folder.read("x.parquet") == b"z" * 1000


def test_a_shard_has_the_mode_that_the_user_gives_files(toy_artifact: Path, photo: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert mimexport("embed", toy_artifact, photo, "--out", tmp_path / "o") == 0
    finally:
        os.umask(before)
    (file,) = (tmp_path / "o").glob("part-*")
    assert stat.filemode(file.stat().st_mode) == "-rw-------"


def test_names_that_are_not_utf8_are_found_again(toy_artifact: Path, photo: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes(photo.read_bytes())
    assert mimexport("embed", toy_artifact, source, "--out", tmp_path / "o") == 0
    stored = read_shards(tmp_path / "o")
    assert stored.errors == [None]
    assert stored.paths[0].endswith("caf\\xe9.jpg")


@pytest.mark.parametrize("scheme", ["memory", "local"])
def test_an_object_store_and_another_file_system_hold_the_same_shards(
    toy_artifact: Path, gallery: Path, tmp_path: Path, scheme: str
) -> None:
    assert mimexport("embed", toy_artifact, gallery, "--out", tmp_path / "o", "--shard-size", 25) == 0
    place = f"memory://{uuid.uuid4().hex}" if scheme == "memory" else f"local://{tmp_path}/remote"
    job = ("embed", toy_artifact, gallery, "--out", f"{place}/vectors", "--shard-size", 25)
    assert mimexport(*job) == 0
    remote = open_folder(f"{place}/vectors")
    local = {path.name: path.read_bytes() for path in (tmp_path / "o").glob("part-*")}
    assert {name: remote.read(name) for name in remote.names() if name.startswith("part-")} == local
    lost = sorted(local)[0]
    fsspec.filesystem(scheme).rm(f"{place}/vectors/{lost}".split("://")[1])
    assert mimexport(*job) == 0
    assert remote.read(lost) == local[lost]


def test_parquet_rows_and_image_files_share_a_job(toy_artifact: Path, gallery: Path, tmp_path: Path) -> None:
    files = sorted(gallery.iterdir())
    table = pa.table({"image": [path.read_bytes() for path in files], "path": [f"row {path.name}" for path in files]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=16)
    inputs = (files[0], tmp_path / "t.parquet", files[1])
    assert mimexport("embed", toy_artifact, *inputs, "--out", tmp_path / "o", "--shard-size", 9) == 0
    stored = read_shards(tmp_path / "o")
    assert stored.paths == [str(files[0]), *(f"row {path.name}" for path in files), str(files[1])]
    assert stored.vectors[0] == stored.vectors[1]
    assert stored.vectors[-1] == stored.vectors[2]
    assert mimexport("embed", toy_artifact, tmp_path / "t.parquet", "--out", tmp_path / "v.npz") == 0


def test_a_partial_file_is_swept_once_its_writer_has_ended(toy_artifact: Path, gallery: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    dead, alive = (tmp_path / "o" / f".x.parquet.{name}.partial" for name in ("dead", "alive"))
    for path in (dead, alive):
        path.write_bytes(b"half")
    with locked(alive, shared=True):
        assert mimexport("embed", toy_artifact, gallery, "--out", tmp_path / "o") == 0
        assert sorted(path.name[:8] for path in (tmp_path / "o").iterdir()) == [".x.parqu", "_job", "part-000"]
        assert alive.exists()
