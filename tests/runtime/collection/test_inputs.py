"""Whatever a user names becomes the same ordered entries, here and in object storage."""

from __future__ import annotations

import http.server
import shutil
import threading
import uuid
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimruntime.collection.access import Access
from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.job import cut
from mimruntime.collection.reader import read_images
from mimruntime.collection.urls import locate
from mimruntime.errors import ImageError, OptionError


def entries(*names: object, columns: Columns = Columns(), allow: tuple[str, ...] = ()) -> list[Entry]:  # noqa: B008 - frozen
    return list(find_entries(map(str, names), columns, Access.of(map(str, names), allow)))


def images(*names: object, columns: Columns = Columns(), allow: tuple[str, ...] = ()) -> list[tuple]:  # noqa: B008
    access = Access.of(map(str, names), allow)
    return list(read_images(entries(*names, columns=columns, allow=allow), columns, access=access))


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


@pytest.mark.parametrize("pattern", ["*", "**", "[ab]*", "**/*", "a*", "?", "**/.h*"])
def test_a_pattern_means_by_url_what_it_means_locally(folder: Path, bucket: str, pattern: str) -> None:
    local = [entry.source.removeprefix(str(folder)) for entry in entries(f"{folder}/{pattern}")]
    assert [entry.source.removeprefix(bucket) for entry in entries(f"{bucket}/{pattern}")] == local
    assert len(local) == len(set(local)) > 0


def test_an_object_with_brackets_in_its_name_is_no_pattern(bucket: str) -> None:
    memory = fsspec.filesystem("memory")
    names = [f"{bucket}/x[1].jpg", f"{bucket}/y[1]/z.jpg"]
    for name in names:
        memory.pipe(name, b"x")
    assert entries(names[0], f"{bucket}/y[1]") == [Entry(name) for name in names]


@pytest.mark.parametrize(
    "url",
    [
        "s3://b?endpoint_override=127.0.0.1:1&scheme=http/k.jpg",
        "s3://key:secret@b/k.jpg",
        "gs://b?endpoint_override=127.0.0.1:1/k.jpg",
        "abfs://c@evil.example/k.jpg",
        "abfs://c@a.dfs.core.windows.net?enable_tls=false/k.jpg",
        "hdfs://host:1?user=root/k.jpg",
        "file://host/k.jpg",
        "simplecache::memory://b/k.jpg",
    ],
)
def test_a_list_cannot_say_where_keys_are_sent(tmp_path: Path, url: str) -> None:
    (tmp_path / "list.txt").write_text(f"{url}\n")
    allowed = f"{url.partition('://')[0]}://"
    ((name, image),) = images(f"@{tmp_path}/list.txt", allow=(allowed,))
    assert name == url
    assert "refused; expected" in str(image) or "chained by :: are not opened" in str(image)


def test_an_account_is_the_file_system_and_its_container_the_path() -> None:
    filesystem, path = locate("abfss://cont@acct.dfs.core.windows.net/a b/x?[1].jpg")
    assert filesystem.type_name == "abfs"
    assert path == "cont/a b/x?[1].jpg"


def test_images_come_by_http(folder: Path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: make test-scale")
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        read = images(f"{url}/a.jpg", f"{url}/b.jpg?x=1")
        server.shutdown()
    assert read == [(f"{url}/{name}", (folder / "a.jpg").read_bytes()) for name in ("a.jpg", "b.jpg?x=1")]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_list_is_taken_as_it_stands(folder: Path, bucket: str, tmp_path: Path) -> None:
    text = f"{folder}/b.jpg\r\n\n{bucket}/a.jpg\n{folder}/gone.jpg\n{bucket}/gone.jpg\n"
    (tmp_path / "list.txt").write_text(text)
    read = images(f"@{tmp_path}/list.txt", allow=(bucket,))
    assert [name for name, _ in read] == text.split()
    assert read[1][1] == (folder / "a.jpg").read_bytes()
    assert isinstance(read[3][1], ImageError)
    fsspec.filesystem("memory").pipe("/lists/list.txt", text.encode())
    assert images("@memory://lists/list.txt", allow=(bucket, f"file://{folder}"))[0][0] == f"{folder}/b.jpg"


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


def test_a_table_that_has_lost_rows_says_so_for_each(folder: Path, tmp_path: Path) -> None:
    file = table(tmp_path / "t.parquet", {"path": [str(folder / "a.jpg")] * 2})
    read = list(read_images([Entry(str(file), 0, 4)], Columns()))
    assert [name for name, _ in read] == [str(folder / "a.jpg")] * 2 + [f"{file}#2", f"{file}#3"]
    assert all("the file ends at row 2" in str(error) for _, error in read[2:])


def test_a_row_whose_name_is_the_number_0_is_called_0(tmp_path: Path) -> None:
    file = table(tmp_path / "t.parquet", {"image": [b"x", b"y", b"z"], "id": [0, 1, None]})
    assert [name for name, _ in images(file, columns=Columns(path="id"))] == ["0", "1", f"{file}#2"]


def test_a_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [row.to_bytes(2, "big") * 10_000 for row in range(2000)]
    file = tmp_path / "t.parquet"
    # Pages, the least that can be read, of ten rows; one row group.
    pq.write_table(pa.table({"image": rows}), file, use_dictionary=False, compression="none", write_batch_size=10)
    for source in (str(file), f"file://{file}", f"local://{file}"):
        before = pa.total_allocated_bytes()
        reading = read_images([Entry(source, 0, 2000)], Columns())
        assert next(reading)[1] == rows[0]
        assert pa.total_allocated_bytes() - before < file.stat().st_size / 4


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
