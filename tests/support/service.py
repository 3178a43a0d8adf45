"""A real server process on loopback, started by the command and stopped by its process id."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coverage import Coverage

START = "from mimexport.cli import main; main()"
FAULTY = Path(__file__).parent / "faulty_service.py"
_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True)
class Service:
    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    context: ssl.SSLContext | None = None

    def call(
        self, path: str, body: object = None, *, method: str | None = None, timeout: float = 60, **headers: str
    ) -> Answer:
        """Send a request: GET without a body, else POST, unless `method` is given; a dict is sent as JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, named = json.dumps(body).encode(), {"Content-Type": "application/json"} | named
        request = urllib.request.Request(self.url + path, data=body, headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self.context) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def wait_until_ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                if self.call("/ready").status == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"not ready in {seconds} s: {self.log.read_text()}"
            time.sleep(0.02)

    def resident_bytes(self, *, peak: bool = False) -> int:
        """Return the resident memory of the process, current or peak since `reset_peak`, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) * 1024

    @property
    def grpc(self) -> str:
        """HOST:PORT of gRPC."""
        said = re.search(r"gRPC on (127.0.0.1:\d+)", self.log.read_text())
        assert said is not None, self.log.read_text()
        return said[1]

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.call("/metrics").body.decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@contextlib.contextmanager
def running(
    *arguments: object,
    log: Path,
    program: str | Path = START,
    env: dict[str, str] | None = None,
    wait: bool = True,
    covered: bool = False,
    tls: Path | None = None,
) -> Iterator[Service]:
    """Run `mimexport serve` with `arguments` on a free port.

    Args:
        arguments: of the command.
        log: file for what it says.
        program: what has the command.
        env: more of its environment.
        wait: until it is ready; without, it may end before it listens.
        covered: what it runs counts as covered, where coverage is measured; it starts more slowly.
        tls: folder of cert.pem and key.pem for https.
    """
    if covered and Coverage.current() is not None:
        env = {"COVERAGE_PROCESS_START": str(_ROOT / "pyproject.toml"), **(env or {})}
    start = ["-c", program] if isinstance(program, str) else [str(program)]
    https = [] if tls is None else ["--tls-cert", str(tls / "cert.pem"), "--tls-key", str(tls / "key.pem")]
    command = [sys.executable, *start, "serve", *map(str, arguments), *https, "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(env or {})})
    try:
        port = _port(process, log)
        service = Service(f"http://127.0.0.1:{port}", port, process, log)
        if tls is not None:
            context = ssl.create_default_context(cafile=tls / "cert.pem")
            service = Service(f"https://localhost:{port}", port, process, log, context)
        if wait:
            service.wait_until_ready()
        yield service
    finally:
        stop(process)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port in the log, or 0 if the process ends before."""
    while not (said := re.search(r"listen(?:ing)? on https?://[^:]+:(\d+)", log.read_text())):
        if process.poll() is not None:
            return 0
        time.sleep(0.02)
    return int(said[1])


def stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def data_uri(path: Path) -> str:
    kind = {".jpg": "jpeg"}.get(path.suffix, path.suffix[1:])
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
