"""Nothing that is named makes `embed` wait for ever, and SIGTERM ends it whatever waits."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from collection_helpers import START, mimexport, read_shards

from mimruntime.collection.inputs import Columns, find_entries
from mimruntime.errors import ImageError

STUCK = """
import os, sys, threading
from mimruntime import termination
from mimruntime.collection import reader, worker
termination.GRACE_S = 0

def wait_for_ever(*_, **__):
    os.write(1, b"stuck\\n")  # at once: two threads may come here
    threading.Event().wait()
"""
"""A process in which something never comes back; no one is waited for longer than it takes to see that."""
WHERE = {
    "a fetch": "reader._fetch = wait_for_ever",
    "decoding": "from mimruntime import decoders; decoders.prepare = wait_for_ever",
    # Asleep in a library, where Python's own handler never has its turn.
    "the main thread": """
def sleep_in_c(*_):
    import ctypes, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in this thread; another takes it
    os.write(1, b"stuck\\n")
    while True:
        ctypes.CDLL(None).sleep(1000)

worker.shard = sleep_in_c
""",
}


@pytest.fixture
def specials(gallery: Path, tmp_path: Path) -> Path:
    """A photograph, a pipe nobody writes to, a socket, and links to a device without end and to nothing."""
    folder = tmp_path / "named"
    folder.mkdir()
    shutil.copy(gallery / "000.jpg", folder / "a.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "gone.jpg").symlink_to("nothing")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
    return folder


@pytest.mark.parametrize("named", ["in a list", "by a pattern"])
def test_pipes_and_devices_are_rows_with_an_error(
    toy_artifact: Path, specials: Path, tmp_path: Path, named: str
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in sorted(specials.iterdir())))
    source = f"@{tmp_path}/list.txt" if named == "in a list" else f"{specials}/*.jpg"
    assert mimexport("embed", toy_artifact, source, "--out", tmp_path / "o") == 0
    stored = read_shards(tmp_path / "o")
    errors = {Path(path).name: error for path, error in zip(stored.paths, stored.errors, strict=True)}
    assert errors == {
        "a.jpg": None,
        "device.jpg": f"{specials}/device.jpg: is a device; expected a regular file",
        "gone.jpg": f"{specials}/gone.jpg: cannot be read (No such file or directory)",
        "pipe.jpg": f"{specials}/pipe.jpg: is a pipe; expected a regular file",
        "socket.jpg": f"{specials}/socket.jpg: is a socket; expected a regular file",
    }


def test_a_pipe_that_is_called_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.parquet")
    with pytest.raises(ImageError, match=r"t\.parquet: cannot be read as Parquet \(is a pipe; expected a regular file"):
        list(find_entries([f"{tmp_path}/*.parquet"], Columns()))


@pytest.mark.parametrize(("what", "out"), [("a fetch", "o"), ("decoding", "v.npz"), ("the main thread", "o")])
def test_sigterm_ends_embed_whatever_waits(
    toy_artifact: Path, gallery: Path, tmp_path: Path, what: str, out: str
) -> None:
    (tmp_path / "list.txt").write_text(f"{gallery}/000.jpg\nfile://{gallery}/001.jpg\n")
    command = [sys.executable, "-c", f"{STUCK}\n{WHERE[what]}\n{START}", "embed", toy_artifact, f"@{tmp_path}/list.txt"]
    command += ["--allow-remote", "file://", "--out", out]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"stuck\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        finally:
            process.kill()
    assert not list(tmp_path.rglob("part-*"))
