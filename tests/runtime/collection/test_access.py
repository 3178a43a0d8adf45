"""A list or a table that someone else wrote reaches nothing that the user did not name, and nothing of any size."""

from __future__ import annotations

import gzip
import http.server
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collection_helpers import mimexport, read_shards

from mimruntime.addresses import is_public
from mimruntime.collection.access import Access, RefusedError
from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.reader import read_images
from mimruntime.errors import ImageError, OptionError

MB = 1_000_000


def read(cells: list[object], tmp_path: Path, access: Access) -> list[object]:
    """Return the images, or the reasons, of a table with these cells."""
    file = tmp_path / f"{uuid.uuid4().hex}.parquet"
    pq.write_table(pa.table({"image": cells}), file)
    return [image for _, image in read_images([Entry(str(file), 0, len(cells))], Columns(), access=access)]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path, and notes what was asked for."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        what, _, rest = self.path.strip("/").partition("/")
        if what in {"to", "uri", "nowhere"}:
            self.send_response(302)
            if what != "nowhere":
                self.send_header("Location" if what == "to" else "URI", f"http://{rest}")
        else:
            self.send_response(200)
        if what == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if what == "packed":
            self.wfile.write(gzip.compress(b"x" * 20 * MB))
        while what == "endless":
            self.wfile.write(b"x" * MB)
        if what == "image":
            self.wfile.write(b"an image")

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def handle_error(self, *_: object) -> None:
        """An answer that is cut off is what is tested."""


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: make test-scale")
    made = [Server(), Server()]
    for server in made:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def test_a_list_that_names_urls_nobody_allowed_stops_before_anything_is_written(
    toy_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, place in [
        ("file:///etc/passwd", "file:///etc"),
        ("http://169.254.169.254/latest/meta-data", "http://169.254.169.254"),
        ("s3://secrets/key.png", "s3://secrets"),
        ("memory://store/x.jpg", "memory://store"),
    ]:
        (tmp_path / "list.txt").write_text(f"{url}\n")
        assert mimexport("embed", toy_artifact, f"@{tmp_path}/list.txt", "--out", tmp_path / "o") == 1
        said = capsys.readouterr().err
        assert f"{url} is not allowed where a list, table or redirect names it" in said
        assert said.endswith(f"to read it: --allow-remote {place}\n")
    assert not (tmp_path / "o").exists()


def test_cells_that_name_urls_nobody_allowed_are_rows_with_an_error(
    toy_artifact: Path, photo: Path, tmp_path: Path
) -> None:
    store = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe(f"{store.removeprefix('memory:/')}/in/a.jpg", photo.read_bytes())
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(photo.read_bytes())
    cells = [str(photo), f"file://{secret}", f"{store}/in/a.jpg", f"{store}/in/../a.jpg", f"{store}/out/a.jpg"]
    pq.write_table(pa.table({"image": cells}), tmp_path / "t.parquet")
    job = ("embed", toy_artifact, tmp_path / "t.parquet", "--allow-remote", f"{store}/in/")
    assert mimexport(*job, "--out", tmp_path / "o") == 0
    errors = read_shards(tmp_path / "o").errors
    assert [error is None for error in errors] == [True, False, True, False, False]
    assert errors[1] == (
        f"file://{secret}: is not allowed where a list, table or redirect names it;"
        f" to read it: --allow-remote file://{tmp_path}"
    )
    assert mimexport(*job, "--allow-remote", f"file://{tmp_path}", "--out", tmp_path / "p") == 0
    assert [error is None for error in read_shards(tmp_path / "p").errors] == [True, True, True, False, False]


def test_a_table_from_elsewhere_names_its_own_store_and_no_file_of_this_machine(photo: Path, tmp_path: Path) -> None:
    store, memory = f"memory://{uuid.uuid4().hex}", fsspec.filesystem("memory")
    memory.pipe(f"{store}/a.jpg", b"an image")
    pq.write_table(pa.table({"image": [f"{store}/a.jpg", str(photo)]}), tmp_path / "t.parquet")
    memory.put(str(tmp_path / "t.parquet"), f"{store}/t.parquet")
    memory.pipe(f"{store}/list.txt", str(photo).encode())
    name = f"{store}/t.parquet"
    own, foreign = read_images([Entry(name, 0, 2)], Columns(), access=Access.of([name]))
    assert own[1] == b"an image"
    assert "is a path of this machine in a list or table from elsewhere" in str(foreign[1])
    with pytest.raises(OptionError, match=f"--allow-remote file://{photo}"):
        list(find_entries([f"@{store}/list.txt"], Columns(), Access.of([f"@{store}/list.txt"])))


@pytest.mark.parametrize(
    ("allowed", "url", "may"),
    [
        ("s3://bucket", "s3://bucket/any/thing", True),
        ("s3://bucket", "s3://bucket-of-another/x", False),
        ("s3://bucket/photos", "s3://bucket/photos/x", True),
        ("s3://bucket/photos", "s3://bucket/photos2/x", False),
        ("s3://bucket/photos", "s3://bucket/photos/../x", False),
        ("https://good.example/a", "https://good.example/a/%2e%2e/x", False),
        ("https://good.example", "http://good.example/x", False),
        ("https://good.example", "HTTPS://GOOD.example/x", True),
        ("https://good.example", "https://good.example@evil.example/x", False),
        ("https://good.example", "https://good.example.evil.example/x", False),
        ("https://good.example", "https://good.example:8443/x", False),
        ("https://good.example", "https://evil.example\\@good.example/x", False),
        ("https://", "https://any.example/x", True),
        ("https://", "https://127.0.0.1/x", False),
        ("https://", "https://[::1]/x", False),
        ("https://", "https://[64:ff9b::7f00:1]/x", False),
        ("https://", "https://[broken/x", False),
        ("https://127.0.0.1", "https://127.0.0.1/x", True),
        ("file:///data", "file:///data/x", True),
        ("file:///data", "file:///etc/passwd", False),
    ],
)
def test_a_url_is_allowed_by_whole_parts_of_its_beginning(allowed: str, url: str, may: bool) -> None:
    access = Access.of([], [allowed])
    if may:
        access.check(url, "list.txt")
    else:
        with pytest.raises(RefusedError, match="to read it: --allow-remote"):
            access.check(url, "list.txt")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("fec0::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::1", False),
        ("2002:7f00:1::", False),
        ("2002:5db8:d70e::", True),
    ],
)
def test_an_address_is_public_by_what_it_carries(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_no_private_address_is_reached_through_a_host_the_user_did_not_name(
    servers: list[Server], tmp_path: Path, host: str
) -> None:
    asked = len(servers[0].asked)
    (image,) = read([f"http://{host}:{servers[0].port}/image"], tmp_path, Access.of([], ["http://"]))
    assert isinstance(image, ImageError)
    assert "not public; to read it: --allow-remote" in str(image) or "not a canonical IPv4 address" in str(image)
    assert len(servers[0].asked) == asked


def test_a_redirect_leads_to_what_is_allowed_only(servers: list[Server], tmp_path: Path) -> None:
    first, other = servers
    within, beyond = (f"{first.url}/to/{one.url.removeprefix('http://')}/image" for one in servers)
    asked = len(other.asked)
    images = read([within, beyond, f"{first.url}/to/169.254.169.254/"], tmp_path, Access.of([f"{first.url}/x"]))
    assert images[0] == b"an image"
    assert str(images[1]).startswith(f"redirects to {other.url}/image, which is not allowed")
    assert "redirects to http://169.254.169.254, which is not allowed" in str(images[2])
    assert len(other.asked) == asked
    assert read([beyond], tmp_path, Access.of([], [first.url, other.url])) == [b"an image"]


def test_a_redirect_by_another_header_is_checked_too(servers: list[Server], tmp_path: Path) -> None:
    first, other = servers
    within, beyond = (f"{first.url}/uri/{one.url.removeprefix('http://')}/image" for one in servers)
    asked = len(other.asked)
    images = read([within, beyond, f"{first.url}/nowhere/"], tmp_path, Access.of([first.url]))
    assert images[0] == b"an image"
    assert str(images[1]).startswith(f"redirects to {other.url}/image, which is not allowed")
    assert str(images[2]) == "redirects to nowhere; expected a header Location"
    assert len(other.asked) == asked


def test_an_address_that_is_not_public_is_refused_at_connecting_too(
    servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = servers
    monkeypatch.setattr(Access, "check_url", lambda *_: None)  # as if a redirect came by yet another way
    asked = len(other.asked)
    (image,) = read([f"{first.url}/to/{other.url.removeprefix('http://')}/image"], tmp_path, Access.of([first.url]))
    assert str(image).startswith("is on a host whose address is not public; to read it: --allow-remote")
    assert len(other.asked) == asked


def test_no_object_is_read_beyond_its_limit(servers: list[Server], tmp_path: Path) -> None:
    memory, store = fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}"
    memory.pipe(f"{store}/large.jpg", b"x" * (MB + 1))
    memory.pipe(f"{store}/right.jpg", b"x" * MB)
    packed = gzip.compress(b"x" * 20 * MB)
    memory.pipe(f"{store}/bomb.gz", packed)
    served = [f"{servers[0].url}/{kind}" for kind in ("endless", "packed")]
    urls = [*(f"{store}/{name}" for name in ("large.jpg", "right.jpg", "bomb.gz")), *served]
    large, right, bomb, endless, unpacked = read(urls, tmp_path, Access.of([], [store, servers[0].url], 1))
    for refused in (large, endless):
        assert str(refused) == "is larger than 1 MB; to read it: --max-object-mb 2"
    assert len(right) == MB
    assert bomb == packed  # as it lies there, which is no image
    assert len(unpacked) < MB


def test_a_cell_has_the_same_limit(tmp_path: Path) -> None:
    large, right = read([b"x" * (MB + 1), b"x" * MB], tmp_path, Access(max_bytes=MB))
    assert str(large) == "is larger than 1 MB; to read it: --max-object-mb 2"
    assert right == b"x" * MB


@pytest.mark.parametrize(
    ("cells", "columns", "large"),
    [
        ({"image": [bytes(50 * MB)]}, Columns(), "image"),
        ({"image": [b"x"], "path": ["n" * 50 * MB]}, Columns(), "path"),
        ({"an.image": [bytes(50 * MB)]}, Columns("an.image"), "an.image"),
        ({"image": [b"x"], "image.more": [bytes(50 * MB)]}, Columns(), "image"),
    ],
)
def test_a_table_that_grows_as_no_images_do_is_not_read(
    tmp_path: Path, cells: dict[str, list], columns: Columns, large: str
) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table(cells), file, compression="zstd")
    before = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
    ((name, error),) = read_images([Entry(str(file), 0, 1)], columns, access=Access(max_bytes=MB))
    assert name == f"{file}#0"
    assert isinstance(error, ImageError)
    assert f"column '{large}' grows from " in str(error)
    assert "as no images or names do; it is not read" in str(error)
    assert (pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()) == before


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_a_value_that_many_rows_share_is_held_once(tmp_path: Path, kind: str) -> None:
    file, cell = tmp_path / "t.parquet", b"x" * MB
    column = [cell] * 64 if kind == "bytes" else [{"bytes": cell, "path": "a"}] * 64
    pq.write_table(pa.table({"image": column}), file, compression="none", dictionary_pagesize_limit=1 << 30)
    before = pa.total_allocated_bytes()
    reading = read_images([Entry(str(file), 0, 64)], Columns(), access=Access())
    assert next(reading)[1] == cell
    assert pa.total_allocated_bytes() - before < 8 * MB  # of 64
    assert [image for _, image in reading] == [cell] * 63


def test_a_name_and_a_line_have_a_length(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "path": ["n" * 70_000]}), tmp_path / "t.parquet")
    ((name, error),) = read_images([Entry(f"{tmp_path}/t.parquet", 0, 1)], Columns())
    assert name == f"{tmp_path}/t.parquet#0"
    assert str(error) == "has a name or path of 70,000 bytes; at most 65,536 are read"
    with pytest.raises(ImageError, match="/dev/zero: a line is longer than 65,536 bytes"):
        list(find_entries(["@/dev/zero"], Columns()))


@pytest.mark.parametrize(
    "cells",
    [
        {"image": [b"x"], "path": ["n" * 20 * MB]},
        {"image": [b"x"], "path": [b"n" * 20 * MB]},
        {"image": ["n" * 20 * MB], "path": ["short"]},
        {"image": [{"bytes": b"x", "path": "n" * 20 * MB}]},
    ],
)
def test_a_name_that_is_too_long_is_not_copied(tmp_path: Path, cells: dict[str, list]) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table(cells), file, compression="none")
    tracemalloc.start()
    ((name, error),) = read_images([Entry(str(file), 0, 1)], Columns())
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert name == f"{file}#0"
    assert str(error) == "has a name or path of 20,000,000 bytes; at most 65,536 are read"
    assert most < 10 * MB


def test_a_beginning_that_is_no_url_is_one_line(
    toy_artifact: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mimexport("embed", toy_artifact, photo, "--out", tmp_path / "o", "--allow-remote", "bucket") == 1
    assert "--allow-remote bucket is no URL; expected s3://BUCKET, https://HOST/FOLDER …" in capsys.readouterr().err
