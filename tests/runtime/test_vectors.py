"""A file of vectors is complete or not there, and reads back as it was written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mimruntime import vectors as module
from mimruntime.errors import MissingExtraError, OptionError, OutputError, VectorsError
from mimruntime.storage import Codec
from mimruntime.vectors import open_writer, read_vectors

ROWS = [
    ("a.jpg", np.arange(4, dtype=np.float32), None),
    ("b.jpg", None, "b.jpg: is empty"),
    ("dir/ç 日本.jpg", np.full(4, 0.5, np.float32), None),
]


def write(path: Path, rows: list = ROWS) -> None:
    with open_writer(path, codec=Codec("fp32", 4, "cafe"), model="toy", precision="bf16") as writer:
        for row in rows:
            writer.add(*row)


def write_and_raise(path: Path, rows: list, error: BaseException) -> None:
    with open_writer(path, codec=Codec("fp32", 4, "cafe"), model="toy", precision="bf16") as writer:
        for row in rows:
            writer.add(*row)
        raise error


@pytest.fixture(params=module.SUFFIXES)
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"vectors{request.param}"


def test_what_was_written_is_read_back(out: Path) -> None:
    write(out)
    read = read_vectors(out)
    assert read.paths == ("a.jpg", "b.jpg", "dir/ç 日本.jpg")
    assert read.errors == (None, "b.jpg: is empty", None)
    assert (read.space, read.model, read.precision) == ("cafe", "toy", "bf16")
    assert read.vectors.dtype == np.float32
    assert np.isnan(read.vectors[1]).all()
    assert (read.vectors[[0, 2]] == np.stack([ROWS[0][1], ROWS[2][1]])).all()


@pytest.mark.parametrize("rows", [[], [ROWS[1]], [ROWS[1], ROWS[0]] * 3000])
def test_no_rows_failures_alone_and_several_row_groups_are_read_back(out: Path, rows: list) -> None:
    write(out, rows)
    read = read_vectors(out)
    assert read.vectors.shape == (len(rows), 4)
    assert np.isnan(read.vectors).any(axis=1).tolist() == [vector is None for _, vector, _ in rows]


def test_parquet_has_the_columns_the_format_says(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "v.parquet", ROWS * 1000)
    parquet = pq.ParquetFile(tmp_path / "v.parquet")
    assert parquet.num_row_groups == 2
    schema = parquet.schema_arrow
    assert schema.names == ["path", "vector", "error"]
    assert schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert (schema.metadata[b"embedding_space"], schema.metadata[b"precision"]) == (b"cafe", b"bf16")
    column = parquet.read().column("vector")
    assert column.null_count == 1000
    parquet.close()


def test_only_the_file_itself_is_left_and_anyone_may_read_it(out: Path) -> None:
    write(out)
    assert list(out.parent.iterdir()) == [out]
    assert out.stat().st_mode & 0o400


def test_an_exception_leaves_nothing(out: Path) -> None:
    with pytest.raises(KeyError):
        write_and_raise(out, ROWS * 2000, KeyError())
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_the_old_file(out: Path, interruption: type[BaseException]) -> None:
    write(out)
    before = out.read_bytes()
    with pytest.raises(interruption):
        write_and_raise(out, ROWS[:1], interruption())
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_a_new_file_replaces_the_old_one(out: Path) -> None:
    write(out)
    write(out, ROWS[:1])
    assert read_vectors(out).paths == ("a.jpg",)


def test_an_unknown_suffix_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"vectors\.csv: the name must end in \.npz or \.parquet"):
        write(tmp_path / "vectors.csv")
    with pytest.raises(OptionError, match="must end in"):
        read_vectors(tmp_path / "vectors")


@pytest.mark.parametrize("folder", ["missing", "file.txt", "/proc"])
def test_a_place_that_cannot_be_written_is_found_out_before_the_block(out: Path, folder: str) -> None:
    (out.parent / "file.txt").touch()
    with (
        pytest.raises(OutputError, match="cannot write"),
        open_writer(out.parent / folder / out.name, codec=Codec("fp32", 4, "s"), model="m", precision="fp32"),
    ):
        pytest.fail("the block was entered")


def test_a_folder_of_that_name_is_refused(out: Path) -> None:
    out.mkdir()
    with pytest.raises(OutputError, match="is a folder; give the name of a file in it"):
        write(out)


def test_a_full_disk_is_an_output_error_and_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module._NpzWriter, "finish", full)
    monkeypatch.setattr(module._ParquetWriter, "finish", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write(out)
    assert list(out.parent.iterdir()) == []


def test_parquet_without_pyarrow_gives_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mimexport\[parquet\]'"):
        write(tmp_path / "v.parquet")
    write(tmp_path / "v.npz")


def test_a_missing_file_is_named(out: Path) -> None:
    with pytest.raises(VectorsError, match="no such file"):
        read_vectors(out)


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_a_cut_file_is_refused(out: Path, kept: float) -> None:
    write(out)
    raw = out.read_bytes()
    out.write_bytes(raw[: int(len(raw) * kept) if 0 < kept < 1 else int(kept)])
    with pytest.raises(VectorsError, match="is not a readable file of vectors"):
        read_vectors(out)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    np.savez(tmp_path / "v.npz", something=np.zeros(3))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "v.parquet")
    for path in tmp_path.iterdir():
        with pytest.raises(VectorsError, match="is not a readable file of vectors"):
            read_vectors(path)


def test_an_npz_that_needs_pickle_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", path=np.array([{}], dtype=object))
    with pytest.raises(VectorsError):
        read_vectors(tmp_path / "v.npz")
