"""On Ray: the shards of the local command, and every image once whatever is killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from collection_helpers import START, mimexport, read_shards

from mimruntime.collection import on_ray
from mimruntime.collection.inputs import Columns
from mimruntime.collection.on_ray import Pool, pool
from mimruntime.collection.run import embed_collection
from mimruntime.errors import EngineError, ImageError, OptionError

RAY = pytest.mark.slow
CLUSTER = """
import ray, sys
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("nodes", "asked", "made"),
    [
        ([{"CPU": 2}], {}, Pool(2, 1)),
        ([{"CPU": 1}], {}, Pool(1, 1)),
        ([{"CPU": 64}], {}, Pool(16, 4)),
        ([{"CPU": 64}], {"actors": 8}, Pool(8, 8)),
        ([{"CPU": 64}], {"threads": 1}, Pool(64, 1)),
        ([{"CPU": 64, "GPU": 4}], {"gpu": True}, Pool(4, 8, 1)),
        ([{"CPU": 8, "GPU": 4}], {"gpu": True, "actors": 2}, Pool(2, 4, 1)),
        # An actor has its CPUs and its GPU on one node.
        ([{"CPU": 2}] * 16, {}, Pool(16, 2)),
        ([{"CPU": 6}] * 2, {}, Pool(4, 3)),
        ([{"CPU": 6}] * 2, {"threads": 5}, Pool(2, 5)),
        ([{"CPU": 6}] * 2, {"actors": 3}, Pool(3, 3)),
        ([{"CPU": 6}] * 2, {"actors": 1}, Pool(1, 6)),
        ([{"CPU": 4, "GPU": 1}, {"CPU": 64}], {"gpu": True}, Pool(1, 4, 1)),
    ],
)
def test_actors_and_threads_use_each_cpu_once(nodes: list, asked: dict, made: Pool) -> None:
    assert pool(nodes, **{"actors": None, "threads": None, "gpu": False, **asked}) == made


@pytest.mark.parametrize(
    ("nodes", "asked", "says"),
    [
        ([{"CPU": 2}], {"actors": 3}, "3 workers of 1 threads do not fit: the cluster has 2 CPUs, its largest node 2"),
        (
            [{"CPU": 2}] * 4,
            {"threads": 4},
            "1 workers of 4 threads do not fit: the cluster has 8 CPUs, its largest node 2",
        ),
        ([{"CPU": 6}] * 2, {"threads": 4, "actors": 3}, "3 workers of 4 threads do not fit"),
        ([{"CPU": 2}], {"gpu": True}, "1 workers with a GPU each were asked for, the cluster has 0 GPUs"),
        ([{"GPU": 1}, {"CPU": 8}], {"gpu": True}, "lower --workers or --threads"),
        ([], {}, "the cluster has 0 CPUs"),
    ],
)
def test_what_would_wait_for_ever_is_refused(nodes: list, asked: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        pool(nodes, **{"actors": None, "threads": None, "gpu": False, **asked})


@pytest.mark.parametrize(
    ("options", "threads", "gpus"),
    [
        ({"engine": "tensorrt"}, None, 1),
        ({"engine": "onnxruntime", "provider": "cuda"}, 4, 1),
        ({"engine": "onnxruntime"}, 4, 0),
        ({"engine": "openvino", "provider": "cpu"}, 4, 0),
    ],
)
def test_an_engine_gets_the_threads_it_takes_and_the_gpu_it_runs_on(
    toy_artifact: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    threads: int | None,
    gpus: int,
) -> None:
    seen = []
    monkeypatch.setattr(on_ray, "connect", lambda _: [{"CPU": 4, "GPU": 1}])
    monkeypatch.setattr(
        on_ray, "run", lambda worker, shards, using: seen.append((worker.embedder.settings, using)) or ()
    )
    asked = {"ray": "auto", "workers": 1, "path": toy_artifact, **options}
    with pytest.raises(ImageError, match="none of 1 images could be read"):  # what stands in for Ray reads nothing
        embed_collection([str(photo)], str(tmp_path / "o"), Columns(), **asked)
    ((settings, using),) = seen
    assert (settings["engine"], settings["threads"], settings["workers"]) == (options["engine"], threads, 4)
    assert using == Pool(1, 4, gpus)


def test_a_cluster_that_says_nothing_is_still_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise ConnectionError

    fake = types.ModuleType("ray")
    fake.is_initialized, fake.init, fake.data = lambda: False, silent, types.ModuleType("ray.data")
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.data", fake.data)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(EngineError, match=r"no Ray cluster at ray://x:1 \(ConnectionError\)"):
        on_ray.connect("ray://x:1")


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


class Cluster(NamedTuple):
    """A cluster of two CPUs that outlives the jobs that use it."""

    address: str
    pid: int
    """Of the process that started it."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
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
    yield Cluster(holder.stdout.readline().strip(), holder.pid)
    holder.stdin.close()
    holder.wait(60)
    holder.stdout.close()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def job(artifact: Path, images: list[Path], out: Path, cluster: Cluster, size: int, *options: str) -> list[str]:
    command = [sys.executable, "-c", START, "embed", artifact, *images, "--out", out, "--shard-size", size]
    return [str(part) for part in (*command, "--ray", cluster.address, "--workers", 2, *options)]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def actors(cluster: Cluster) -> list[int]:
    """The processes of the cluster's embedders, by the name Ray gives them; other clusters are let alone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
                if name.startswith(b"ray::") and b"ShardActor" in name and cluster.pid in ancestors(int(entry.name)):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


@RAY
def test_the_shards_are_those_of_the_local_command(
    cluster: Cluster, toy_artifact: Path, gallery: Path, tmp_path: Path
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
    assert "6 of 9 shards already existed" in done.stdout
    assert read_shards(tmp_path / "here").paths == ray.paths


@RAY
def test_what_cannot_be_read_is_a_row_and_strict_stops(
    cluster: Cluster, toy_artifact: Path, gallery: Path, tmp_path: Path
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
    cluster: Cluster, toy_artifact: Path, gallery: Path, tmp_path: Path
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
        running = actors(cluster)
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
def test_a_job_killed_five_times_goes_on(cluster: Cluster, toy_artifact: Path, gallery: Path, tmp_path: Path) -> None:
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
