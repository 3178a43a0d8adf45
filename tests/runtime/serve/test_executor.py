"""The one thread that runs an engine: what ends it is seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mimruntime import Embedder
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import EngineError, ImageError
from mimruntime.serve.admission.queue import AdmissionQueue, Item
from mimruntime.serve.execution import executor as module
from mimruntime.serve.execution.decoders import Decoders
from mimruntime.serve.execution.executor import Executor
from mimruntime.serve.execution.model import Model
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.problems import Problem
from mimruntime.serve.settings import Served, Settings


@pytest.fixture
def queue() -> AdmissionQueue:
    return AdmissionQueue(64, 30)


@pytest.fixture
def executor(toy_artifact: Path, queue: AdmissionQueue) -> Iterator[Executor]:
    reopen = partial(opened, toy_artifact)
    made = Executor("toy", reopen(), reopen, queue, Metrics("1"), patience_s=0.001, watchdog_s=30)
    made.start()
    wait_for(lambda: made.ready)
    yield made
    made.stop()
    made.join(30)


def opened(artifact: Path) -> Embedder:
    return Embedder.open(artifact, workers=1)


def wait_for(true: object) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sent(queue: AdmissionQueue) -> Item:
    (item,) = queue.admit(1)
    item.pixels = np.full((64, 64, 3), 7, np.uint8)
    queue.put(item)
    return item


def test_no_memory_for_a_batch_is_the_engine_s_failure_and_passes(
    executor: Executor, queue: AdmissionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        for name in ("zeros", "stack", "concatenate"):
            patched.setattr(module.np, name, full)
        item = sent(queue)
        wait_for(item.future.done)
    with pytest.raises(EngineError, match="MemoryError"):
        item.future.result()
    wait_for(lambda: executor.ready)
    assert sent(queue).future.result(20).vector.shape == (16,)


def test_elsewhere_than_on_a_cpu_a_batch_is_filled_up_and_each_image_has_its_own_vector(
    toy_artifact: Path, queue: AdmissionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe, right, sizes = Embedder.describe, Embedder.outputs, []

    def outputs(self: Embedder, pixels: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(pixels))
        return right(self, pixels)

    monkeypatch.setattr(Embedder, "describe", lambda self: replace(describe(self), provider="cuda"))
    monkeypatch.setattr(Embedder, "outputs", outputs)
    executor = Executor(
        "toy", opened(toy_artifact), partial(opened, toy_artifact), queue, Metrics("1"), patience_s=9, watchdog_s=30
    )
    executor.start()
    wait_for(lambda: executor.ready)
    sizes.clear()
    items = queue.admit(3)
    for shade, item in zip((7, 90, 200), items, strict=True):
        item.pixels = np.random.default_rng(shade).integers(0, 256, (64, 64, 3), np.uint8)
        queue.put(item)
    vectors = [item.future.result(20).vector for item in items]
    executor.stop()
    executor.join(30)
    assert sizes == [4]
    with opened(toy_artifact) as embedder:
        expected = right(embedder, np.stack([item.pixels for item in items]))["embedding"]
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_an_engine_that_was_opened_anew_and_answers_something_else_is_not_ready(
    toy_artifact: Path, queue: AdmissionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = Embedder.outputs, threading.Event()

    def outputs(self: Embedder, pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = right(self, pixels)
        return found | {"embedding": np.roll(found["embedding"], 1, axis=1)} if wrong.is_set() else found

    monkeypatch.setattr(Embedder, "outputs", outputs)
    monkeypatch.setattr(module, "_PAUSES_S", (0.01,))
    metrics = Metrics("1")
    executor = Executor(
        "toy", opened(toy_artifact), partial(opened, toy_artifact), queue, metrics, patience_s=0, watchdog_s=0.05
    )
    executor.start()
    wait_for(lambda: executor.ready)
    said, set_ready = [], executor._set_ready
    monkeypatch.setattr(executor, "_set_ready", lambda ready: (said.append(ready), set_ready(ready)))
    wrong.set()
    wait_for(lambda: b'engine_rebuilds_total{model="toy"} 3.0' in metrics.text())
    assert set(said) == {False}
    wrong.clear()
    wait_for(lambda: executor.ready)
    executor.stop()
    executor.join(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_neither_ready_nor_alive(
    executor: Executor, queue: AdmissionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(executor, "_record", None)
    assert not executor.stuck
    sent(queue)
    wait_for(lambda: not executor.is_alive())
    assert not executor.ready
    assert executor.stuck


def test_an_image_that_fails_while_its_client_hangs_up_is_no_line_in_the_log(toy_artifact: Path) -> None:
    reported: list[object] = []

    async def hang_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["message"]))
        item = Item()
        waiting = asyncio.create_task(model._gather([item], "input"))
        await asyncio.sleep(0)
        item.future.set_exception(ImageError("no image"))
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        del waiting, item
        await asyncio.sleep(0)
        gc.collect()

    settings = Settings(artifacts=(Served(toy_artifact),))
    model = Model("toy", opened(toy_artifact), settings, Metrics("1"), Decoders(1), MemoryBudget(64))
    asyncio.run(hang_up())
    assert not reported


@pytest.mark.parametrize(("ahead", "header"), [(0, None), (2, "6")])
def test_what_was_late_behind_others_is_told_when_to_ask_again(
    toy_artifact: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, header: str | None
) -> None:
    settings = Settings(artifacts=(Served(toy_artifact),), deadline_s=7)
    model = Model("toy", opened(toy_artifact), settings, Metrics("1"), Decoders(0), MemoryBudget(64))
    monkeypatch.setattr(model, "check_ready", lambda: None)
    model.queue.observe(3, 1)  # seconds an image
    model.queue.admit(ahead)
    monkeypatch.setattr(model, "_settings", replace(settings, deadline_s=0.01))
    with pytest.raises(Problem) as caught:
        asyncio.run(model.embed([b"never decoded"]))
    assert (caught.value.status_code, caught.value.headers.get("Retry-After")) == (504, header)
    model.executor.stop()
