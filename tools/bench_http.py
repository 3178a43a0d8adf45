"""Images/s over HTTP against the pipeline in process: by clients, and by images of a request; client and service share the CPUs.

python tools/bench_http.py ARTIFACT [FOLDER|ZIP] [--images 512]
"""

from __future__ import annotations

import http.client
import itertools
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from photographs import encoded, load

from mimruntime import Embedder
from mimruntime.cpus import describe_cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from bench_service import service

EDGE = 500
PAIRS = 3
CLIENTS = (1, 8, 64)
PER_REQUEST = (1, 64)
_BOUNDARY = "x" * 40


def form(files: Sequence[bytes]) -> bytes:
    """Return a form that holds `files`."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{_BOUNDARY}--\r\n".encode()


def over_http(port: int, bodies: Sequence[bytes], per_request: int, clients: int) -> float:
    """Return images/s of so many clients, each with a connection of its own."""
    own = threading.local()
    kind = "image/jpeg" if per_request == 1 else f"multipart/form-data; boundary={_BOUNDARY}"

    def send(body: bytes) -> int:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        own.connection.request("POST", "/v1/embeddings/image?encoding_format=base64", body, {"Content-Type": kind})
        answer = own.connection.getresponse()
        answer.read()
        return int(answer.status)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        statuses = list(pool.map(send, bodies))
    seconds = time.perf_counter() - started
    if set(statuses) != {200}:
        raise SystemExit(f"answers of {sorted(set(statuses))}; expected 200 alone")
    return len(bodies) * per_request / seconds


@click.command()
@click.argument("artifact")
@click.argument("place", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--provider", help="Of the engine in process; the service reads MIMEXPORT_PROVIDER.")
@click.option("--images", default=512, show_default=True, help="Of one measurement.")
def main(artifact: str, place: Path | None, provider: str | None, images: int) -> None:
    """Print a table."""
    pictures = [encoded(picture, EDGE, "JPEG", quality=90) for picture in load(place, 64)]
    files = list(itertools.islice(itertools.cycle(pictures), images))
    print(f"{describe_cpu()}; photographs of {EDGE} px; medians of {PAIRS} pairs in turn\n")
    print("| clients | images a request | in process, images/s | over HTTP | ratio |\n|---|---|---|---|---|")
    # 64 requests of 64 images are more than a service lets in, which is not what is measured.
    os.environ |= {"MIMEXPORT_MAX_QUEUE": "100000", "MIMEXPORT_DEADLINE": "600"}
    with service(artifact) as (port, _), Embedder.open(artifact, provider=provider) as embedder:
        embedder.embed(files)
        for per_request, clients in itertools.product(PER_REQUEST, CLIENTS):
            bodies = files if per_request == 1 else [form(files[:per_request])] * max(2, images // per_request)
            pairs = []
            for _ in range(PAIRS):
                started = time.perf_counter()
                embedder.embed(files)
                direct = images / (time.perf_counter() - started)
                rate = over_http(port, bodies, per_request, clients)
                pairs.append((direct, rate, rate / direct))
            direct, rate, ratio = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"| {clients} | {per_request} | {direct:.0f} | {rate:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
