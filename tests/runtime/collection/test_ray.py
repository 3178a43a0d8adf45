"""On Ray: the shards of the local command, and every image once whatever is killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from collection_helpers import START, mimexport, read_shards

from mimruntime.collection.on_ray import Pool, pool
from mimruntime.errors import OptionError

RAY = pytest.mark.slow
CLUSTER = """
import ray, sys
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("cluster", "asked", "made"),
    [
        ({"CPU": 2}, {}, Pool(2, 1)),
        ({"CPU": 1}, {}, Pool(1, 1)),
        ({"CPU": 64}, {}, Pool(16, 4)),
        ({"CPU": 64}, {"actors": 8}, Pool(8, 8)),
        ({"CPU": 64}, {"threads": 1}, Pool(64, 1)),
        ({"CPU": 64, "GPU": 4}, {"gpu": True}, Pool(4, 8, 1)),
        ({"CPU": 8, "GPU": 4}, {"gpu": True, "actors": 2}, Pool(2, 4, 1)),
    ],
)
def test_actors_and_threads_use_each_cpu_once(cluster: dict, asked: dict, made: Pool) -> None:
    assert pool(cluster, **{"actors": None, "threads": None, "gpu": False, **asked}) == made


@pytest.mark.parametrize(
    ("cluster", "asked", "says"),
    [
        ({"CPU": 2}, {"actors": 3}, "3 workers of 1 threads need 3 CPUs, the cluster has 2; lower --workers"),
        ({"CPU": 2}, {"threads": 4}, "1 workers of 4 threads need 4 CPUs"),
        ({"CPU": 2}, {"gpu": True}, "1 workers with a GPU each were asked for, the cluster has 0 GPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused(cluster: dict, asked: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        pool(cluster, **{"actors": None, "threads": None, "gpu": False, **asked})


def test_without_ray_the_line_to_install_it_is_given(
    toy_artifact: Path,
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert mimexport("embed", toy_artifact, gallery, "--out", tmp_path / "o", "--ray", "auto") == 1
    assert "pip install 'mimexport[ray]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of two CPUs that outlives the jobs that use it; yields its address."""
    pytest.importorskip("ray", reason="Ray is not installed: make test-scale")
    # A token of its own, as Ray documents it: authentication stays on (Ray listens on the
    # machine's own address, whatever it is asked), and no token kept on this machine is used.
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    holder = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    yield holder.stdout.readline().strip()
    holder.stdin.close()
    holder.wait(60)
    holder.stdout.close()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def job(artifact: Path, images: list[Path], out: Path, cluster: str, size: int, *options: str) -> list[str]:
    command = [sys.executable, "-c", START, "embed", artifact, *images, "--out", out, "--shard-size", size]
    return [str(part) for part in (*command, "--ray", cluster, "--workers", 2, *options)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def actors() -> list[int]:
    """The processes of the embedders, by the name Ray gives them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::") and b"ShardActor" in name:
                found.append(int(entry.name))
    return found


@RAY
def test_the_shards_are_those_of_the_local_command(
    cluster: str, toy_artifact: Path, gallery: Path, tmp_path: Path
) -> None:
    done = run(job(toy_artifact, [gallery], tmp_path / "ray", cluster, 7))
    assert done.returncode == 0, done.stderr
    assert "60 of 60 images embedded" in done.stdout
    assert "Ray, 2 workers of 1 threads" in done.stdout
    assert mimexport("embed", toy_artifact, gallery, "--out", tmp_path / "here", "--shard-size", 7) == 0
    ray, here = read_shards(tmp_path / "ray"), read_shards(tmp_path / "here")
    assert ray.paths == here.paths
    assert ray.spaces == here.spaces
    assert np.abs(np.array(ray.vectors) - np.array(here.vectors)).max() < 1e-6
    names = [sorted(path.name for path in (tmp_path / side).rglob("*")) for side in ("ray", "here")]
    assert names[0] == names[1]
    # Either goes on where the other was stopped.
    for path in list((tmp_path / "here").glob("part-*"))[:3]:
        path.unlink()
    done = run(job(toy_artifact, [gallery], tmp_path / "here", cluster, 7))
    assert "6 of 9 shards were there already" in done.stdout
    assert read_shards(tmp_path / "here").paths == ray.paths


@RAY
def test_what_cannot_be_read_is_a_row_and_strict_stops(
    cluster: str, toy_artifact: Path, gallery: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "list.txt").write_text(f"{gallery}/000.jpg\n{tmp_path}/empty.jpg\n{tmp_path}/gone.jpg\n")
    command = job(toy_artifact, [Path(f"@{tmp_path}/list.txt")], tmp_path / "o", cluster, 1)
    stopped = run([*command, "--strict"])
    assert stopped.returncode == 1
    assert "--strict stops here, finished shards stay in" in stopped.stderr
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "2 could not be read" in done.stderr
    errors = read_shards(tmp_path / "o").errors
    assert [error is None for error in errors] == [True, False, False]
    assert "is empty, 0 bytes" in errors[1]
    assert "No such file or directory" in errors[2]


@RAY
def test_an_embedder_killed_five_times_is_replaced(
    cluster: str, toy_artifact: Path, gallery: Path, tmp_path: Path
) -> None:
    images, out = [gallery] * 60, tmp_path / "o"
    process = subprocess.Popen(
        job(toy_artifact, images, out, cluster, 20), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    chance = np.random.default_rng(1)
    killed = 0
    deadline = time.monotonic() + 240
    while killed < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        written = len(list(out.glob("part-*")))
        running = actors()
        if written >= 10 + 20 * killed and running:
            os.kill(running[int(chance.integers(len(running)))], signal.SIGKILL)
            killed += 1
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert killed == 5
    stored = read_shards(out)
    assert stored.paths == [str(path) for path in sorted(gallery.iterdir())] * 60
    assert stored.errors == [None] * 3600
    assert not list(out.rglob("*.partial"))


@RAY
def test_a_job_killed_five_times_goes_on(cluster: str, toy_artifact: Path, gallery: Path, tmp_path: Path) -> None:
    images, out = [gallery] * 60, tmp_path / "o"
    command = job(toy_artifact, images, out, cluster, 20)
    chance = np.random.default_rng(2)
    kills = 0
    for kill in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = 30 * kill + int(chance.integers(2, 25))
        deadline = time.monotonic() + 120
        while len(list(out.glob("part-*"))) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 5
    done = run(command)
    assert done.returncode == 0, done.stderr
    stored = read_shards(out)
    assert stored.paths == [str(path) for path in sorted(gallery.iterdir())] * 60
    assert stored.errors == [None] * 3600
