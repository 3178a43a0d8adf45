"""Failure and the end: engines that fail, processes that are killed, SIGTERM under load, too much load."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import uvicorn
from fastapi import FastAPI
from service import FAULTY, Service, running

from mimruntime import Embedder
from mimruntime.artifact import Artifact, seal
from mimruntime.errors import ArtifactError
from mimruntime.serve.app import create_app
from mimruntime.serve.listening import make_config
from mimruntime.serve.settings import Served, Settings


def post(service: Service, body: bytes) -> int:
    """The status of one upload, or 0 where the connection was never taken."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        connection.connect()
    except OSError:
        return 0
    with contextlib.closing(connection):
        connection.request("POST", "/v1/embeddings/image", body)
        return connection.getresponse().status


class TestEngineFailure:
    def test_one_failure_is_not_seen_and_a_lasting_one_is_503_then_healthy(
        self, toy_artifact: Path, tmp_path: Path, photo: Path
    ) -> None:
        fault = tmp_path / "fault"
        with running(toy_artifact, log=tmp_path / "log", program=FAULTY, env={"FAULT_FILE": str(fault)}) as service:
            inject(fault, 1)
            assert post(service, photo.read_bytes()) == 200
            assert service.metric("mimexport_engine_rebuilds_total") == 0
            inject(fault, "all")
            answer = service.call("/v1/embeddings/image", photo.read_bytes())
            assert (answer.status, answer.json["error"]["code"]) == (503, "engine_failed")
            assert answer.headers["Retry-After"]
            assert service.call("/ready").status == 503
            assert service.call("/live").status == 200
            fault.unlink()
            service.wait_until_ready(10)
            assert post(service, photo.read_bytes()) == 200
            assert service.metric("mimexport_engine_rebuilds_total") >= 1
        assert "injected" in (tmp_path / "log").read_text()

    def test_the_watchdog_finds_a_broken_engine_while_nobody_asks(self, toy_artifact: Path, tmp_path: Path) -> None:
        fault = tmp_path / "fault"
        with running(
            toy_artifact, "--watchdog", 0.2, log=tmp_path / "log", program=FAULTY, env={"FAULT_FILE": str(fault)}
        ) as service:
            inject(fault, 1)
            deadline = time.monotonic() + 10
            while service.metric("mimexport_engine_rebuilds_total") == 0:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            service.wait_until_ready()

    def test_a_run_that_does_not_come_back_makes_the_process_not_live(
        self, toy_artifact: Path, tmp_path: Path, photo: Path
    ) -> None:
        options = ("--watchdog", 0.3, "--max-batch", 1, "--deadline", 1)
        with running(toy_artifact, *options, log=tmp_path / "log", program=FAULTY, env={"FAULT_SLEEP": "0"}) as service:
            assert service.call("/live").status == 200
        with running(
            toy_artifact, *options, log=tmp_path / "log", program=FAULTY, env={"FAULT_SLEEP": "60"}, wait=False
        ) as service:
            statuses = set()
            deadline = time.monotonic() + 10
            while 503 not in statuses and time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    statuses.add(service.call("/live").status)
                time.sleep(0.05)
            assert 503 in statuses
            while service.process.poll() is None:  # drain; no, end; no, at once
                service.process.send_signal(signal.SIGINT)
                time.sleep(0.05)
            assert service.process.returncode == 130
        assert "Traceback" not in (tmp_path / "log").read_text()


def inject(fault: Path, failures: int | str) -> None:
    staged = fault.with_suffix(".new")
    staged.write_text(str(failures))
    staged.rename(fault)


class TestDeadlineAndCancellation:
    @pytest.fixture
    def slow(self, toy_artifact: Path, tmp_path: Path):
        with running(
            toy_artifact,
            "--deadline", 0.5, "--max-batch", 1, "--grace", 3,
            log=tmp_path / "log", program=FAULTY, env={"FAULT_SLEEP": "0.3"},
        ) as service:  # fmt: skip
            yield service

    def test_what_is_not_done_in_time_is_504(self, slow: Service, photo: Path) -> None:
        with ThreadPoolExecutor(4) as pool:
            statuses = Counter(pool.map(lambda _: post(slow, photo.read_bytes()), range(4)))
        assert statuses[504] >= 1
        assert set(statuses) <= {200, 429, 504}
        assert post(slow, photo.read_bytes()) in {200, 429}

    def test_the_images_of_a_client_that_hung_up_are_not_run(self, slow: Service, photo: Path) -> None:
        before = slow.metric("mimexport_images_total")
        body = photo.read_bytes()
        head = f"POST /v1/embeddings/image HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", slow.port)) as connection:
                connection.sendall(head + body)
        closed = 'mimexport_failures_total{reason="client_closed"} 6.0'
        wait_for(lambda: closed in slow.call("/metrics").body.decode())
        wait_for(lambda: slow.metric("mimexport_images_in_flight") == 0)
        assert slow.metric("mimexport_images_total") - before < 6  # some were running already


def overload(service: Service, body: bytes, seconds: float, clients: int) -> tuple[Counter[int], list[float], int]:
    """Send as fast as `clients` can; return statuses, seconds of the accepted, and resident bytes at the middle."""
    statuses: Counter[int] = Counter()
    accepted: list[float] = []
    middle: list[int] = []
    end = time.monotonic() + seconds
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        while time.monotonic() < end:
            started = time.monotonic()
            connection.request("POST", "/v1/embeddings/image", body)
            answer = connection.getresponse()
            answer.read()
            with lock:
                statuses[answer.status] += 1
                if answer.status == 200:
                    accepted.append(time.monotonic() - started)
            if answer.status == 429:
                assert int(answer.headers["Retry-After"]) >= 1
                time.sleep(0.05)  # less patient than asked, or there would be no overload
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    middle.append(service.resident_bytes())
    for thread in threads:
        thread.join()
    return statuses, accepted, middle[0]


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_four_times_the_load_is_answered_or_refused(
    toy_artifact: Path, tmp_path: Path, photo: Path, record_property: Callable[..., None], seconds: float
) -> None:
    # 20 ms an image: 50 images/s can be sustained; 40 clients that wait 50 ms after a refusal send over 200.
    options = ("--max-queue", 20, "--deadline", 5)
    with running(toy_artifact, *options, log=tmp_path / "log", program=FAULTY, env={"FAULT_SLEEP": "0.02"}) as service:
        statuses, accepted, middle = overload(service, photo.read_bytes(), seconds, clients=40)
        rate = sum(statuses.values()) / seconds
        record_property(
            "figures", f"{rate:.0f} req/s, {statuses}, slowest {max(accepted):.2f} s, {middle / 1e6:.0f} MB"
        )
        assert set(statuses) == {200, 429}
        assert max(accepted) < 5
        if seconds > 30:
            assert rate > 4 * statuses[200] / seconds
            assert service.resident_bytes() < 1.05 * middle
        assert service.metric("mimexport_images_total") == statuses[200]
        assert service.metric("mimexport_images_in_flight") == 0


def test_a_batch_call_and_a_single_call_are_refused_alike(toy_artifact: Path, tmp_path: Path, photo: Path) -> None:
    options = ("--max-queue", 4, "--max-batch", 1)
    body = photo.read_bytes()
    with running(toy_artifact, *options, log=tmp_path / "log", program=FAULTY, env={"FAULT_SLEEP": "0.5"}) as service:
        with ThreadPoolExecutor(4) as pool:
            running_now = [pool.submit(post, service, body) for _ in range(4)]
            time.sleep(0.3)
            form = b"".join(
                b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + body + b"\r\n"
                for _ in range(8)
            )
            several = service.call(
                "/v1/embeddings/image", form + b"--b--\r\n", Content_Type="multipart/form-data; boundary=b"
            )
            single = service.call("/v1/embeddings/image", body)
            assert [future.result() for future in running_now] == [200] * 4
        assert (single.status, several.status) == (429, 429)
        assert int(single.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("engine", "stop", "status"), [("onnxruntime", signal.SIGTERM, 0), ("openvino", signal.SIGINT, 130)]
)
def test_a_signal_under_load_answers_what_was_accepted_and_ends(
    toy_artifact: Path, tmp_path: Path, photo: Path, engine: str, stop: signal.Signals, status: int
) -> None:
    options = ("--engine", engine)
    with running(toy_artifact, *options, log=tmp_path / "log", program=FAULTY, env={"FAULT_SLEEP": "0.05"}) as service:
        with ThreadPoolExecutor(12) as pool:
            sent = [pool.submit(post, service, photo.read_bytes()) for _ in range(12)]
            while service.metric("mimexport_images_in_flight") < 12 and not all(future.done() for future in sent):
                time.sleep(0.01)
            service.process.send_signal(stop)
            time.sleep(0.05)
            late = post(service, photo.read_bytes())
            statuses = Counter(future.result() for future in sent)
        assert statuses == {200: 12}
        assert late in {0, 503}
        assert service.process.wait(10) == status
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_while_it_drains_no_balancer_sends_more_and_after_the_grace_it_ends(
    toy_artifact: Path, tmp_path: Path, photo: Path
) -> None:
    hold = tmp_path / "hold"
    env = {"FAULT_HOLD": str(hold)}
    with running(toy_artifact, "--grace", 2, "--max-batch", 1, log=tmp_path / "log", program=FAULTY, env=env) as s:
        hold.touch()
        with ThreadPoolExecutor(1) as pool:
            cut_off = pool.submit(post, s, photo.read_bytes())
            wait_for(lambda: s.metric("mimexport_images_in_flight") == 1)
            s.process.send_signal(signal.SIGTERM)
            wait_for(lambda: s.call("/ready").status == 503)
            for path in ("/ready", "/health", "/v2/health/ready", "/v2"):
                answer = s.call(path)
                assert (path, answer.status, answer.headers["Retry-After"]) == (path, 503, "1")
            assert s.call("/v2/health/live").status == 200
            assert cut_off.exception() is not None or cut_off.result() in {0, 500, 503}
            hold.unlink()  # else leaving would wait for the thread, for a while
            assert s.process.wait(20) == 0


def test_a_thread_that_never_ends_does_not_keep_the_process() -> None:
    work = (
        "import threading; from mimruntime import exit; exit._WAIT_S = 0.1;"
        " threading.Thread(target=threading.Event().wait, name='stuck').start(); exit.leave(7)"
    )
    done = subprocess.run([sys.executable, "-c", work], check=False, capture_output=True, text=True)
    assert done.returncode == 7
    assert "without waiting for threads that did not stop within 0.1 s: stuck" in done.stderr


def test_a_service_that_cannot_start_closes_the_engines_it_had_opened(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Embedder] = []
    monkeypatch.setattr(Embedder, "close", lambda self: closed.append(self))  # noqa: PLW0108 - a method is bound
    with pytest.raises(ArtifactError, match="no artifact at"):
        create_app(Settings(artifacts=(Served(toy_artifact), Served(tmp_path / "none"))))
    assert len(closed) == 1


def test_decoding_that_does_not_come_back_is_known_to_ready_and_does_not_keep_the_process(
    toy_artifact: Path, tmp_path: Path, photo: Path
) -> None:
    options = ("--decode-threads", 1, "--deadline", 0.5, "--watchdog", 0.5, "--grace", 1)
    log, env = tmp_path / "log", {"FAULT_DECODE": "1000"}
    with running(toy_artifact, *options, log=log, program=FAULTY, env=env) as service:
        assert post(service, photo.read_bytes()) == 200
        assert post(service, bytes(1000)) == 504
        while (ready := service.call("/ready")).status == 200:
            time.sleep(0.05)
        assert (ready.status, ready.json["error"]["code"]) == (503, "decoding_stuck")
        assert "busy with one image for more than 0.5 s" in ready.json["error"]["message"]
        assert service.call("/v1/embeddings/image", photo.read_bytes()).json["error"]["code"] == "decoding_stuck"
        while service.call("/live").status == 200:  # only a restart helps
            time.sleep(0.05)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(25) == 0


def test_what_still_runs_a_second_after_the_grace_ends_with_the_process() -> None:
    script = """
import asyncio, os, signal, threading
from mimruntime.serve.admission.lifecycle import Lifecycle
async def main():
    lifecycle = Lifecycle(0.1)
    lifecycle.install()
    with lifecycle.request():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(3600)
signal.signal(signal.SIGTERM, lambda *_: None)
threading.Thread(target=threading.Event().wait).start()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "the grace is over; the process ends whatever still runs in it" in done.stderr


def test_the_grace_is_spent_once() -> None:
    """uvicorn waits after draining has; what is open then is only to be cancelled."""
    settings = Settings(artifacts=(Served(Path("a")),), grace_s=30)
    assert make_config(settings, FastAPI()).timeout_graceful_shutdown == 1


def test_a_connection_may_be_idle_for_longer_than_uvicorn_would_keep_it() -> None:
    config = make_config(Settings(artifacts=(Path("a"),)), FastAPI())
    assert config.timeout_keep_alive > 10 * uvicorn.Config(FastAPI()).timeout_keep_alive


@pytest.fixture(scope="module")
def pair(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service of two workers, and its artifact, which a test may change."""
    folder = tmp_path_factory.mktemp("pair")
    artifact = Path(shutil.copytree(toy_artifact, folder / "toy"))
    with running(artifact, "--workers", 2, log=folder / "log", covered=True) as service:
        wait_for(lambda: len(workers(service)) == 2)
        yield service, artifact


def test_a_worker_that_is_killed_comes_back_within_seconds(
    pair: tuple[Service, Path], photo: Path, record_property: Callable[..., None]
) -> None:
    service, _ = pair
    first = workers(service)
    os.kill(min(first), signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: len(now := workers(service)) == 2 and min(first) not in now)
    service.wait_until_ready(20)
    record_property("back after", f"{time.monotonic() - killed:.1f} s")
    assert post(service, photo.read_bytes()) == 200
    assert service.metric("mimexport_images_total") >= 1  # of both workers together


def test_a_worker_that_would_embed_into_another_space_does_not_serve(pair: tuple[Service, Path], space: str) -> None:
    service, artifact = pair
    seal(artifact, msgspec.structs.replace(Artifact.open(artifact).manifest, embedding_space="another"))
    os.kill(max(workers(service)), signal.SIGKILL)  # the other is ready for sure
    wait_for(lambda: "the others keep serving; it restarts in 10 s" in service.log.read_text())
    assert f"embeds into space another, expected {space}" in service.log.read_text()
    assert {service.call("/ready").headers["X-Embedding-Space"] for _ in range(5)} == {space}
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(60) == 130


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(service: Service) -> set[int]:
    """Processes below the server that listen, by the kernel's own list."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    return {int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


def test_a_worker_that_cannot_start_ends_the_service(toy_artifact: Path, tmp_path: Path) -> None:
    options = ("--workers", 2, "--provider", "cuda")
    with running(toy_artifact, *options, log=tmp_path / "log", wait=False) as service:
        assert service.process.wait(30) == 1
    assert "provider 'cuda' is not part of" in (tmp_path / "log").read_text()
