"""A download survives cuts, servers without ranges and full disks, and is never taken for whole when it is not."""

import contextlib
import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path

import pytest

from mimeval.datasets import fetch as fetch_module
from mimeval.datasets.fetch import Archive, fetch, unpacked
from mimeval.errors import DataError
from mimruntime.errors import OutputError

BODY = bytes(range(256)) * 4000
MD5 = hashlib.md5(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; every connection is cut after `cut` bytes, ranges are obeyed unless `ranges` is off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cut, self.ranges, self.status, self.asked = BODY, None, True, None, []

    def archive(self, name="data.bin", md5=MD5):
        return Archive(f"http://127.0.0.1:{self.server_address[1]}/{name}", md5, len(self.body))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            self.send_error(server.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start >= len(server.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = None if server.cut is None else start + server.cut
        with contextlib.suppress(ConnectionError):  # the reader may go away
            self.wfile.write(server.body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch_module, "PAUSE", 0.0)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_once(server, tmp_path):
    seen = []
    file = fetch(server.archive(), tmp_path / "cache", lambda *progress: seen.append(progress))
    assert file.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    fetch(server.archive(), tmp_path / "cache")
    assert len(server.asked) == 1
    assert [path.name for path in file.parent.iterdir()] == ["data.bin"]


def test_a_connection_that_is_cut_again_and_again_is_taken_up_where_it_stopped(server, tmp_path):
    server.cut = 300_000
    assert fetch(server.archive(), tmp_path).read_bytes() == BODY
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_killed_download_goes_on_in_the_next_call(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(BODY[:700_000])
    assert fetch(server.archive(), tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=700000-"]


def test_a_partial_file_that_is_whole_already_is_only_renamed(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(BODY)
    assert fetch(server.archive(), tmp_path).read_bytes() == BODY


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    server.ranges = False
    (tmp_path / ".data.bin.partial").write_bytes(b"x" * 2_000_000)
    assert fetch(server.archive(), tmp_path).read_bytes() == BODY


def test_a_partial_file_of_something_else_is_fetched_once_more_from_nothing(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(b"x" * 500_000)
    assert fetch(server.archive(), tmp_path).read_bytes() == BODY
    assert server.asked == ["bytes=500000-", None]


def test_a_wrong_checksum_is_said_and_nothing_is_kept(server, tmp_path):
    with pytest.raises(DataError, match=f"md5 {MD5}, expected {'0' * 32}; the wrong file was deleted"):
        fetch(server.archive(md5="0" * 32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_brings_nothing_is_given_up_and_what_is_there_is_kept(server, tmp_path):
    (tmp_path / ".data.bin.partial").write_bytes(BODY[:1000])
    server.cut = 0
    with pytest.raises(DataError, match=r"cannot be fetched \(the connection was cut\); try again later"):
        fetch(server.archive(), tmp_path)
    assert len(server.asked) == fetch_module.ATTEMPTS
    assert (tmp_path / ".data.bin.partial").stat().st_size == 1000


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, fetch_module.ATTEMPTS)])
def test_a_refusal_is_one_line_and_only_a_busy_server_is_asked_again(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(DataError, match=f"HTTP {status} .* or put the file .* into "):
        fetch(server.archive(), tmp_path)
    assert len(server.asked) == requests


def test_no_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch_module, "PAUSE", 0.0)
    closed = Archive("http://127.0.0.1:1/data.bin", MD5, 10)
    with pytest.raises(DataError, match=r"data\.bin cannot be fetched \(.*refused.*\); try again later") as caught:
        fetch(closed, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_what_is_there_is_kept(server, tmp_path, monkeypatch):
    real = Path.open

    def open_on_a_small_disk(self, mode="r", *rest, **options):
        stream = real(self, mode, *rest, **options)
        return SmallDisk(stream) if self.name.endswith(".partial") and "+" in mode else stream

    class SmallDisk(io.BufferedRandom):
        def __init__(self, stream):
            super().__init__(stream.detach())

        def write(self, data):
            if self.tell() + len(data) > 400_000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", open_on_a_small_disk)
    with pytest.raises(OutputError, match=r"\.data\.bin\.partial cannot be written: No space left on device"):
        fetch(server.archive(), tmp_path)
    monkeypatch.undo()
    kept = (tmp_path / ".data.bin.partial").read_bytes()
    assert BODY.startswith(kept)
    assert not (tmp_path / "data.bin").exists()
    assert fetch(server.archive(), tmp_path).read_bytes() == BODY


def test_a_cache_that_is_a_file_is_one_line(server, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        fetch(server.archive(), tmp_path / "cache")


def packed(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_an_archive_is_unpacked_once_without_what_is_not_wanted(server, tmp_path):
    server.body = packed({"set/a.bin": b"a", "set/large.bin": b"b"})
    archive = server.archive("set.tar.gz", hashlib.md5(server.body).hexdigest())
    folder = unpacked(archive, tmp_path, wanted=lambda name: "large" not in name)
    assert [path.name for path in (folder / "set").iterdir()] == ["a.bin"]
    assert unpacked(archive, tmp_path) == folder
    assert len(server.asked) == 1


def test_an_archive_that_would_write_outside_its_folder_is_refused(server, tmp_path):
    server.body = packed({"../outside.bin": b"a"})
    archive = server.archive("set.tgz", hashlib.md5(server.body).hexdigest())
    with pytest.raises(DataError, match="not a readable archive"):
        unpacked(archive, tmp_path / "cache")
    assert not (tmp_path / "outside.bin").exists()
    assert not (tmp_path / "cache" / "set").exists()


def test_a_truncated_archive_is_refused_and_leaves_no_folder(server, tmp_path):
    server.body = packed({"set/a.bin": BODY})[:-200]
    archive = server.archive("set.tgz", hashlib.md5(server.body).hexdigest())
    with pytest.raises(DataError, match=r"set\.tgz is not a readable archive .*; delete it to download it again"):
        unpacked(archive, tmp_path)
    assert not (tmp_path / "set").exists()
