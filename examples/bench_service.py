"""Measure a service on this machine: cold start, throughput against `Embedder.embed`, latency against load.

python examples/bench_service.py artifacts/vit-b reports/serve photos/
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from PIL import Image

from mimruntime import Embedder
from mimruntime.decode import decode
from mimruntime.errors import ImageError
from mimruntime.image_paths import find_images

CLIENTS = 8
PAIRS = 3
LOADS = (0.25, 0.5, 0.75, 0.9, 1.0)
EDGE = 500
SECONDS_A_LOAD = 12.0
LEAST_REQUESTS = 50
PAIR_SECONDS = 5.0


class Row(NamedTuple):
    """Latency at one load: requests/s offered and answered, milliseconds, and requests refused."""

    offered: float
    answered: float
    p50_ms: float
    p99_ms: float
    refused: int


def photographs(folders: list[str]) -> list[bytes]:
    """Return the images as JPEG files of at most 500 px, as photographs on the web are."""
    files = []
    for path in find_images(folders):
        try:
            picture = decode(path)
        except ImageError:  # folders of photographs hold other things too
            continue
        picture.thumbnail((EDGE, EDGE), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


@contextlib.contextmanager
def service(artifact: str) -> Iterator[tuple[int, float]]:
    """Start `mimexport serve` and yield its port and the seconds until it was ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = [sys.executable, "-c", "from mimexport.cli import main; main()", "serve", artifact, "--port", str(port)]
    started = time.perf_counter()
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    try:
        while not _is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"the service ended with {process.returncode}")
            time.sleep(0.01)
        yield port, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Client(threading.local):
    """One kept connection per thread."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def embed(self, file: bytes) -> int:
        """Upload one file and return the status; 0 where the service closed the connection without one."""
        try:
            # A refusal comes before the body was read: sending breaks off, the answer is there all the same.
            with contextlib.suppress(BrokenPipeError):
                self.connection.request("POST", "/v1/embeddings/image?encoding_format=base64", file)
            answer = self.connection.getresponse()
            answer.read()
        except (ConnectionError, http.client.HTTPException):
            self.connection.close()
            return 0
        return answer.status


def throughput(port: int, embedder: Embedder, files: list[bytes]) -> tuple[float, float, float]:
    """Measure in turn; return median images/s of the embedder, of HTTP, and the median of their ratios."""
    client = Client(port)
    embedder.embed(files[:8])
    pairs = []
    for _ in range(PAIRS):
        started = time.perf_counter()
        embedder.embed(files)
        direct = len(files) / (time.perf_counter() - started)
        started = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            statuses = list(pool.map(client.embed, files))
        http_rate = statuses.count(200) / (time.perf_counter() - started)
        pairs.append((direct, http_rate, http_rate / direct))
    direct, over_http, ratio = (statistics.median(column) for column in zip(*pairs, strict=True))
    return direct, over_http, ratio


def latency(port: int, files: list[bytes], rate: float) -> Row:
    """Send at `rate` requests/s, whatever comes back; latency counts from when a request was due."""
    client = Client(port)
    count = max(LEAST_REQUESTS, int(rate * SECONDS_A_LOAD))
    begin = time.perf_counter() + 0.1
    # Poisson arrivals: clients do not agree on a rhythm.
    due = begin + np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))

    def send(number: int) -> tuple[int, float, float]:
        time.sleep(max(0.0, due[number] - time.perf_counter()))
        status = client.embed(files[number % len(files)])
        end = time.perf_counter()
        return status, end - due[number], end

    with ThreadPoolExecutor(128) as pool:
        done = list(pool.map(send, range(count)))
    good = [seconds * 1000 for status, seconds, _ in done if status == 200]
    answered = len(good) / (max(end for *_, end in done) - begin)
    p50, p99 = np.percentile(good, [50, 99])
    return Row(rate, answered, float(p50), float(p99), count - len(good))


def report(folder: Path, title: str, lines: list[str], rows: list[Row]) -> str:
    """Write table and plot, and return the table."""
    table = [
        "| offered req/s | answered req/s | p50 ms | p99 ms | refused |",
        "|---|---|---|---|---|",
        *(f"| {r.offered:.1f} | {r.answered:.1f} | {r.p50_ms:.0f} | {r.p99_ms:.0f} | {r.refused} |" for r in rows),
    ]
    text = "\n".join([f"# {title}", "", *lines, "", *table, ""])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latency.md").write_text(text)
    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    figure, axes = plt.subplots()
    for name, values in (("p50", [row.p50_ms for row in rows]), ("p99", [row.p99_ms for row in rows])):
        axes.plot([row.offered for row in rows], values, "o-", label=name)
    axes.set(xlabel="offered requests/s", ylabel="ms", yscale="log", title=title)
    axes.legend()
    figure.savefig(folder / "latency.png", dpi=150)
    return text


def main(artifact: str, out: str, *folders: str) -> None:
    """Measure one artifact."""
    files = photographs(list(folders))
    with service(artifact) as (port, ready_s), Embedder.open(artifact) as embedder:
        about = embedder.describe()
        started = time.perf_counter()
        embedder.embed(files)
        once = time.perf_counter() - started
        direct, over_http, ratio = throughput(port, embedder, files * max(1, round(PAIR_SECONDS / once)))
        lines = [
            f"{about.engine} on {about.provider}, {about.precision}, batches of {about.batch_sizes[0]} at most",
            "",
            f"- start to ready: {ready_s:.2f} s",
            f"- `Embedder.embed`: {direct:.1f} images/s; HTTP, {CLIENTS} clients: {over_http:.1f} images/s",
            f"- ratio, median of {PAIRS} pairs in turn: {ratio:.3f}",
        ]
        rows = [latency(port, files, share * over_http) for share in LOADS]
    print(report(Path(out), f"{about.name} over HTTP", lines, rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
