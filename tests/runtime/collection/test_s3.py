"""A real S3 protocol over HTTP: images are listed and fetched, shards put, a job resumed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from collection_helpers import START, mimexport, read_shards
from service import free_port

pytestmark = pytest.mark.slow
SETTINGS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server on loopback with an empty bucket; yields its address."""
    pytest.importorskip("moto.server", reason="moto is not installed: make test-scale")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            put(f"{url}/bucket", b"")
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield url
    server.terminate()
    server.wait(30)


def put(url: str, content: bytes) -> None:
    with urllib.request.urlopen(
        urllib.request.Request(url, content, {"Content-Type": "image/jpeg"}, method="PUT"), timeout=30
    ) as answer:
        assert answer.status == 200


def test_a_bucket_is_embedded_into_a_bucket_and_goes_on(
    s3: str, toy_artifact: Path, gallery: Path, tmp_path: Path
) -> None:
    for path in gallery.iterdir():
        put(f"{s3}/bucket/photos/{path.name}", path.read_bytes())
    put(f"{s3}/bucket/photos/050b.jpg", b"broken")
    environment = {**os.environ, **SETTINGS, "AWS_ENDPOINT_URL": s3}
    job = [sys.executable, "-c", START, "embed", toy_artifact, "s3://bucket/photos", "--shard-size", "25"]
    done = subprocess.run(
        [*job, "--out", "s3://bucket/vectors"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "60 of 61 images embedded" in done.stdout
    again = subprocess.run(
        [*job, "--out", "s3://bucket/vectors/"], env=environment, capture_output=True, text=True, check=False
    )
    assert "3 of 3 shards already existed" in again.stdout, again.stderr
    (tmp_path / "s3").mkdir()
    listing = urllib.request.urlopen(f"{s3}/bucket?list-type=2&prefix=vectors/part-").read().decode()
    for key in [part.split("<")[0] for part in listing.split("<Key>")[1:]]:
        (tmp_path / "s3" / Path(key).name).write_bytes(urllib.request.urlopen(f"{s3}/bucket/{key}").read())
    stored = read_shards(tmp_path / "s3")
    assert mimexport("embed", toy_artifact, gallery, "--out", tmp_path / "here", "--shard-size", 25) == 0
    here = read_shards(tmp_path / "here")
    good = {path.rpartition("/")[2]: vector for path, vector in stored.by_path().items() if vector}
    wanted = {Path(path).name: vector for path, vector in here.by_path().items()}
    assert good.keys() == wanted.keys()
    assert max(np.abs(np.array(good[name]) - np.array(wanted[name])).max() for name in wanted) < 1e-6
    failed = [error for error in stored.errors if error]
    assert len(failed) == 1
    assert failed[0].startswith("s3://bucket/photos/050b.jpg: is not an image")


def test_a_store_that_does_not_answer_is_one_line(s3: str, toy_artifact: Path, gallery: Path) -> None:
    environment = {**os.environ, **SETTINGS, "AWS_ENDPOINT_URL": s3}
    command = [sys.executable, "-c", START, "embed", toy_artifact]
    for arguments, says in [
        (["s3://none/photos", "--out", "s3://bucket/v"], "s3://none/photos: cannot be listed"),
        ([gallery, "--out", "s3://none/v"], "cannot write s3://none/v"),
    ]:
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
