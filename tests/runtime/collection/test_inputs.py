"""Whatever a user names becomes the same ordered entries, here and in object storage."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.job import cut
from mimruntime.collection.reader import read_images
from mimruntime.errors import ImageError, OptionError


def entries(*names: object, columns: Columns = Columns()) -> list[Entry]:  # noqa: B008 - frozen
    return list(find_entries(map(str, names), columns))


def images(*names: object, columns: Columns = Columns()) -> list[tuple]:  # noqa: B008
    return list(read_images(entries(*names, columns=columns), columns))


@pytest.fixture
def folder(tmp_path: Path, photo: Path) -> Path:
    for name in ("b.jpg", "a/x.JPG", "a/.hidden.jpg", ".git/y.jpg", "a.jpg", "notes.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(photo, path)
    return tmp_path / "photos"


@pytest.fixture
def bucket(folder: Path) -> str:
    """The same folder in the memory of fsspec."""
    name = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("memory").put(str(folder), f"/{name}", recursive=True)
    return f"memory://{name}"


def test_a_folder_is_the_same_on_disk_by_url_and_in_an_object_store(folder: Path, bucket: str) -> None:
    wanted = ["a/x.JPG", "a.jpg", "b.jpg"]
    assert [entry.source for entry in entries(folder)] == [str(folder / name) for name in wanted]
    assert [entry.source for entry in entries(f"file://{folder}")] == [f"file://{folder}/{name}" for name in wanted]
    assert [entry.source for entry in entries(f"{bucket}/")] == [f"{bucket}/{name}" for name in wanted]
    assert [image for _, image in images(bucket)] == [(folder / name).read_bytes() for name in wanted]


def test_patterns_stay_inside_a_folder_and_two_stars_do_not(folder: Path, bucket: str) -> None:
    for place in (folder, bucket):
        assert [entry.source for entry in entries(f"{place}/*.jpg")] == [f"{place}/a.jpg", f"{place}/b.jpg"]
        assert [entry.source for entry in entries(f"{place}/a/*")][-1] == f"{place}/a/x.JPG"
        found = {entry.source for entry in entries(f"{place}/**/*.[jJ][pP][gG]")}
        assert found >= {f"{place}/a.jpg", f"{place}/b.jpg", f"{place}/a/x.JPG"}
    assert entries(f"{bucket}/notes.txt") == [Entry(f"{bucket}/notes.txt")]


def test_a_list_is_taken_as_it_stands(folder: Path, bucket: str, tmp_path: Path) -> None:
    text = f"{folder}/b.jpg\r\n\n{bucket}/a.jpg\n{folder}/gone.jpg\n{bucket}/gone.jpg\n"
    (tmp_path / "list.txt").write_text(text)
    read = images(f"@{tmp_path}/list.txt")
    assert [name for name, _ in read] == text.split()
    assert read[1][1] == (folder / "a.jpg").read_bytes()
    assert isinstance(read[3][1], ImageError)
    fsspec.filesystem("memory").pipe("/lists/list.txt", text.encode())
    assert images("@memory://lists/list.txt")[0][0] == f"{folder}/b.jpg"


def table(path: Path, columns: dict, rows_a_group: int = 3) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return path


def test_parquet_holds_bytes_paths_or_both(folder: Path, tmp_path: Path) -> None:
    raw, path = (folder / "a.jpg").read_bytes(), str(folder / "a.jpg")
    file = table(tmp_path / "bytes.parquet", {"image": [raw, None, raw], "path": ["x", "y", "z"]})
    read = images(file)
    assert [name for name, _ in read] == ["x", "y", "z"]
    assert read[0][1] == raw
    assert "holds nothing" in str(read[1][1])
    assert images(table(tmp_path / "paths.parquet", {"path": [path]})) == [(path, path)]
    both = pa.array([{"bytes": raw, "path": "n.jpg"}, {"bytes": None, "path": path}])
    assert images(table(tmp_path / "both.parquet", {"image": both})) == [("n.jpg", raw), (path, path)]
    named = table(tmp_path / "named.parquet", {"data": [raw], "id": ["7"]})
    assert images(named, columns=Columns("data", "id")) == [("7", raw)]
    assert images(named, columns=Columns("data")) == [(f"{named}#0", raw)]
    assert images(f"file://{named}", columns=Columns("data")) == [(f"file://{named}#0", raw)]


@pytest.mark.parametrize("rows", [(0, 7), (2, 4), (3, 6), (5, 6), (6, 7)])
def test_a_range_of_rows_is_read_across_row_groups(tmp_path: Path, rows: tuple[int, int]) -> None:
    file = table(tmp_path / "t.parquet", {"image": [bytes([65 + row]) for row in range(7)]})
    read = list(read_images([Entry(str(file), *rows)], Columns()))
    assert read == [(f"{file}#{row}", bytes([65 + row])) for row in range(*rows)]


def test_a_table_that_goes_away_gives_each_of_its_rows_an_error(tmp_path: Path) -> None:
    read = list(read_images([Entry(str(tmp_path / "t.parquet"), 3, 5)], Columns()))
    assert [name for name, _ in read] == [f"{tmp_path}/t.parquet#3", f"{tmp_path}/t.parquet#4"]
    assert all("No such file" in str(error) for _, error in read)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("{folder}/gone", ImageError, "gone: no such file or folder"),
        ("memory://nowhere/photos", ImageError, "memory://nowhere/photos: cannot be listed"),
        ("{folder}/.git/*.png", ImageError, "no such file or folder"),
        ("@{folder}/gone.txt", ImageError, "gone.txt: list cannot be read"),
        ("what://bucket/x", ImageError, "what:// is no storage that pyarrow or fsspec knows"),
        ("{folder}/notes.parquet", ImageError, "notes.parquet: cannot be read as Parquet"),
        ("{folder}/other.parquet", OptionError, "has none of the columns image, bytes, path, it has x"),
    ],
)
def test_what_is_not_there_is_one_line(folder: Path, name: str, kind: type, says: str) -> None:
    (folder / "notes.parquet").write_text("no")
    table(folder / "other.parquet", {"x": [1]})
    with pytest.raises(kind, match=says) as error:
        entries(name.format(folder=folder))
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = table(tmp_path / "t.parquet", {"image": [b""]})
    for columns in (Columns("picture"), Columns("image", "picture")):
        with pytest.raises(OptionError, match="has no column 'picture', it has image"):
            entries(file, columns=columns)


@given(
    st.lists(st.one_of(st.none(), st.integers(1, 30)), max_size=20),
    st.integers(1, 12),
)
def test_a_cut_list_is_the_list(tables: list[int | None], size: int) -> None:
    given_entries = [Entry(f"{number}", *(() if rows is None else (0, rows))) for number, rows in enumerate(tables)]
    groups = list(cut(given_entries, size))

    def flat(some: list[Entry]) -> list[tuple[str, int]]:
        return [(entry.source, row) for entry in some for row in range(entry.start, max(entry.stop, entry.start + 1))]

    assert flat([entry for group in groups for entry in group]) == flat(given_entries)
    counts = [sum(entry.images for entry in group) for group in groups]
    assert all(count == size for count in counts[:-1])
    assert not counts or 0 < counts[-1] <= size
