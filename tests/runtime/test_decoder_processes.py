"""Decoding in processes gives the pixels and errors of decoding in threads, survives crashes and leaves nothing behind."""

from __future__ import annotations

import gc
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mimruntime.decoder_processes import pool as pool_module
from mimruntime.decoder_processes.pool import DecoderProcesses
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import ImageError, ImageFormatError, ImageSizeError
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

SPEC = Preprocess(size=64, resize=72, mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
SHAPE = (4, 64, 64, 3)
DEADLY = b"deadly"
_DYING = f"""
import os
from mimruntime.decoder_processes import worker
decode = worker.prepare
worker.prepare = lambda source, *rest, **named: os._exit(9) if source == {DEADLY!r} else decode(source, *rest, **named)
worker.main()
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[DecoderProcesses]:
    opened = DecoderProcesses(1, SPEC, MemoryBudget(40))
    yield opened
    opened.close()


def encoded(kind: str, width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(stream, kind)
    return stream.getvalue()


def by_thread(source: object) -> np.ndarray:
    return prepare(source, SPEC, MemoryBudget(40))  # type: ignore[arg-type]


def test_pixels_equal_those_of_a_thread(processes: DecoderProcesses, photo: Path) -> None:
    pixels = np.asarray(Image.open(photo).convert("RGB"))
    sources = [photo, str(photo), pixels, photo.read_bytes()]
    rows = processes.allocate(SHAPE)
    assert processes.prepare(sources, rows) == [None] * 4
    np.testing.assert_array_equal(rows, [by_thread(source) for source in sources])


@pytest.mark.parametrize(
    "source", [b"", b"not an image", "/none.jpg", "too large"], ids=["empty", "text", "none", "large"]
)
def test_errors_equal_those_of_a_thread(processes: DecoderProcesses, source: object) -> None:
    if source == "too large":
        source = encoded("PNG", 4000, 3000)
    with pytest.raises(ImageError) as theirs:
        by_thread(source)
    (ours,) = processes.prepare([source], processes.allocate(SHAPE)[:1])  # type: ignore[list-item]
    assert (type(ours), str(ours)) == (type(theirs.value), str(theirs.value))


def test_an_error_does_not_touch_the_images_beside_it(processes: DecoderProcesses, photo: Path) -> None:
    rows = processes.allocate(SHAPE)
    sources = [photo, b"not an image", np.zeros((9, 9)), photo.read_bytes()]
    errors = processes.prepare(sources, rows)
    assert [type(error) for error in errors] == [type(None), ImageFormatError, ImageError, type(None)]
    for row in rows[[0, 3]]:
        np.testing.assert_array_equal(row, by_thread(photo))


@given(lengths=st.lists(st.one_of(st.none(), st.just("path"), st.integers(0, 3 << 20)), max_size=20))
def test_a_message_holds_a_megabyte_or_one_image(lengths: list[int | str | None]) -> None:
    pixels = np.zeros((1, 1), np.uint8)
    kinds = {None: pixels, "path": "a.jpg"}
    sources = [bytes(length) if isinstance(length, int) else kinds[length] for length in lengths]
    parts = [sources[part] for part in pool_module._messages(sources)]
    assert [source for part in parts for source in part] == sources
    for part in parts:
        assert len(part) == 1 or all(source is not pixels for source in part)
        assert len(part) == 1 or sum(len(source) for source in part if isinstance(source, bytes)) <= 1 << 20


def test_memory_for_a_picture_comes_from_the_one_budget_and_goes_back(photo: Path) -> None:
    budget, large = MemoryBudget(40), encoded("JPEG", 2000, 1500)
    opened = DecoderProcesses(1, SPEC, budget)
    try:
        rows = opened.allocate(SHAPE)
        # Four need more than the budget, so memory must come back between two of one message, and between messages.
        for _ in range(2):
            assert opened.prepare([large] * 4, rows) == [None] * 4
        np.testing.assert_array_equal(rows, [by_thread(large)] * 4)
        assert budget._free == budget._total
    finally:
        opened.close()


def test_a_process_that_was_killed_is_replaced_and_its_image_decoded(processes: DecoderProcesses, photo: Path) -> None:
    (decoder,) = processes._all
    os.kill(decoder._process.pid, signal.SIGKILL)
    rows = processes.allocate(SHAPE)
    assert processes.prepare([photo] * 4, rows) == [None] * 4
    np.testing.assert_array_equal(rows, [by_thread(photo)] * 4)


def test_an_image_that_ends_its_process_is_one_error_and_the_next_is_decoded(
    monkeypatch: pytest.MonkeyPatch, photo: Path
) -> None:
    monkeypatch.setattr(pool_module, "_PROGRAM", _DYING)
    opened = DecoderProcesses(1, SPEC, MemoryBudget())
    try:
        rows = opened.allocate(SHAPE)
        errors = opened.prepare([photo, DEADLY, photo, DEADLY], rows)
        reason = "6 bytes: cannot be read (the process that decodes it ended, twice)"
        assert [error and str(error) for error in errors] == [None, reason, None, reason]
        for row in rows[[0, 2]]:
            np.testing.assert_array_equal(row, by_thread(photo))
    finally:
        opened.close()


def test_a_budget_below_what_processes_take_unasked_is_kept() -> None:
    opened = DecoderProcesses(2, SPEC, MemoryBudget(3))
    try:
        rows = opened.allocate(SHAPE)
        refused, taken = opened.prepare([encoded("JPEG", 1000, 800), encoded("JPEG", 200, 150)], rows[:2])
        assert isinstance(refused, ImageSizeError)
        assert "at most 3 MB are given to decoding" in str(refused)
        assert taken is None
    finally:
        opened.close()


def test_a_relative_path_is_that_of_the_folder_at_the_call(
    processes: DecoderProcesses, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.jpg").write_bytes(photo.read_bytes())
    monkeypatch.chdir(tmp_path)
    rows = processes.allocate(SHAPE)
    found, missing = processes.prepare(["here.jpg", Path("none.jpg")], rows[:2])
    assert found is None
    np.testing.assert_array_equal(rows[0], by_thread(photo))
    with pytest.raises(ImageError) as theirs:
        by_thread(Path("none.jpg"))
    assert str(missing) == str(theirs.value)


def test_code_in_the_current_folder_is_not_run(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tempfile.py").write_text("raise SystemExit('this ran')")
    monkeypatch.chdir(tmp_path)
    opened = DecoderProcesses(1, SPEC, MemoryBudget())
    try:
        assert opened.prepare([photo], opened.allocate(SHAPE)[:1]) == [None]
    finally:
        opened.close()


def test_warnings_of_damaged_metadata_are_not_printed(photo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = io.BytesIO()
    Image.open(photo).convert("RGB").save(damaged, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01")
    opened = DecoderProcesses(1, SPEC, MemoryBudget())
    try:
        opened.prepare([damaged.getvalue()], opened.allocate(SHAPE)[:1])
    finally:
        opened.close()
    assert capfd.readouterr().err == ""


def test_buffers_are_used_again_and_grow_only_when_more_are_held(processes: DecoderProcesses, photo: Path) -> None:
    descriptor = processes._buffers.descriptor
    gc.collect()
    first = processes.allocate((32, 64, 64, 3))
    length = os.fstat(descriptor).st_size
    del first
    for _ in range(5):
        processes.allocate((32, 64, 64, 3))
    assert os.fstat(descriptor).st_size == length
    held = [processes.allocate((32, 64, 64, 3)) for _ in range(3)]
    assert os.fstat(descriptor).st_size > length
    for array in held:
        assert processes.prepare([photo], array[-1:]) == [None]
        np.testing.assert_array_equal(array[-1], by_thread(photo))


def test_an_array_that_goes_while_the_buffers_are_locked_waits_for_nothing(processes: DecoderProcesses) -> None:
    array = processes.allocate(SHAPE)
    with processes._buffers._lock:  # as when the garbage collector runs in the middle of `allocate`
        del array
    assert processes.allocate(SHAPE).shape == SHAPE


def test_closing_ends_the_processes(photo: Path) -> None:
    opened = DecoderProcesses(1, SPEC, MemoryBudget())
    (decoder,) = opened._all
    opened.close()
    opened.close()
    assert decoder._process.returncode is not None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_keep_the_processes_alive() -> None:
    opened = DecoderProcesses(1, SPEC, MemoryBudget())
    (decoder,) = opened._all
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the test ends
        os._exit(0)
    try:
        opened.close()
        assert decoder._process.returncode == 0  # it ended by itself
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(child, 0)


def test_processes_end_when_the_one_that_waits_is_killed() -> None:
    program = (
        "from mimruntime.decoder_processes.pool import DecoderProcesses\n"
        "from mimruntime.decoding.budget import MemoryBudget\n"
        "from mimruntime.manifest import Preprocess\n"
        f"spec = {SPEC!r}\n"
        "pool = DecoderProcesses(1, spec, MemoryBudget())\n"
        "print(pool._all[0]._process.pid, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while _alive(child):
        assert time.monotonic() < deadline, "the process outlives the one that it decodes for"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody collects an orphan's exit status in a container without init
