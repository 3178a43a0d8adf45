"""The adversary of `make attack`, small; and that it sees faults, which are planted here."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from attack.bodies import Target
from attack.cases import Case, Manner, chance, hostile_case
from attack.client import Client, Tally
from attack.correct import wrong_vectors
from attack.replay import explain
from attack.shrinking import shrink
from attack.targets import read_target
from attack.verdict import Figures, broken_promises
from attack.watch import Seen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service import Service

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def target(toy_artifact: Path, photos: list[Path]) -> Target:
    return read_target(toy_artifact, photos)


def test_one_in_four_is_hostile_and_every_correct_vector_is_right(toy: Service, target: Target) -> None:
    tally = Client(toy.port, target, seed=1, hostile=0.25).run(range(200))
    assert not tally.findings
    assert tally.counts.total() == 200
    assert tally.counts["correct 200"] > 120
    assert tally.counts["hostile 400"] > 5


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(draw=st.randoms(use_true_random=False))
def test_no_case_that_hypothesis_finds_is_an_error_of_ours(toy: Service, target: Target, draw: random.Random) -> None:
    client = Client(toy.port, target, seed=0, hostile=1.0)
    case = hostile_case(draw, target)
    try:
        assert client.ask(case)[1] is None, case
    finally:
        client.close()


def test_a_seed_and_a_number_give_the_same_case_again(target: Target) -> None:
    cases = [hostile_case(chance(3, number), target) for number in range(50)]
    assert cases == [hostile_case(chance(3, number), target) for number in range(50)]
    assert len({case.kind for case in cases}) > 10


class Faulty(BaseHTTPRequestHandler):
    """A service with three faults: a byte that is a 500, a third request that is one, and vectors of nothing."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status = 500 if b"\xfe" in body else 200
        self.send_response(status)
        answer = json.dumps({"data": [{"index": 0, "embedding": [0.0] * 16}]}).encode()
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def faulty() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_planted_500_is_found_and_shrunk(faulty: int, target: Target, monkeypatch, tmp_path: Path) -> None:
    def planted(draw: random.Random, _: Target) -> Case:
        bad = b"\xfe" if draw.random() < 0.2 else b""
        return Case("planted", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n" + bad + b"x" * 9, Manner.HALF_CLOSE)

    for module in ("client", "replay"):
        monkeypatch.setattr(f"attack.{module}.hostile_case", planted)
    found = Client(faulty, target, seed=0, hostile=1.0).run(range(30)).findings
    assert 0 < len(found) < 20
    (line,) = explain(found, faulty, target, 0, 1.0, tmp_path)
    assert line.startswith(f"{len(found)} of: hostile, planted: 500")
    (file,) = tmp_path.iterdir()
    assert b"\xfe" in file.read_bytes()
    assert len(file.read_bytes()) < 46


def test_wrong_vectors_are_found(faulty: int, target: Target) -> None:
    findings = Client(faulty, target, seed=0, hostile=0.0).run(range(20)).findings
    assert len(findings) == 20
    assert any("is not its image's" in finding.what for finding in findings)


def test_what_is_compared_is_every_vector_of_the_right_image(target: Target) -> None:
    first, second = target.vectors[:2]
    answer = json.dumps({"data": [{"index": 1, "embedding": second}, {"index": 0, "embedding": first}]}).encode()
    assert wrong_vectors(answer, None, [first, second]) is None
    assert "vector 0 of 2" in str(wrong_vectors(answer, None, [second, first]))
    assert "2 vectors for 1" in str(wrong_vectors(answer, None, [first]))
    assert "cannot be read" in str(wrong_vectors(b"{", None, [first]))
    assert "vector 1 of 2" in str(wrong_vectors(answer, None, [first, [float("nan")] * 16]))


def test_what_fails_is_made_small() -> None:
    assert shrink(b"abcXdefYghi" * 9, lambda part: b"X" in part and b"Y" in part) in {b"XY", b"YX"}
    assert shrink(list(range(100)), lambda part: {7, 70} <= set(part)) == [7, 70]
    assert shrink(b"x", lambda _: False) == b"x"


BROKEN = {
    "/live": {"seen": Seen(live_wrong=["503"])},
    "memory grew": {"memory_peak": 10**9},
    "kept at the end": {"memory_end": 10**9},
    "descriptors": {"descriptors_end": 20},
    "/metrics": {"metrics_end": 10**6},
    "lines of log": {"log": "x\n" * 200},
    "traceback": {"log": "Traceback (most recent call last)"},
    "requests were done": {"requests": 11},
    "no correct request": {"tally": Tally(Counter({"hostile 400": 10}))},
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_promise_that_is_broken_is_said(promise: str) -> None:
    held = Figures(10, 0.1, 10, 10**8, descriptors_end=10, tally=Tally(Counter({"correct 200": 10})))
    assert broken_promises(held) == []
    (line,) = broken_promises(dataclasses.replace(held, **BROKEN[promise]))
    assert promise in line


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_limited_service_holds_its_promises_and_kills_lose_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "attack",
        "--requests",
        "3000",
        "--hostile",
        "0.3",
        "--kills",
        "20",
        "--out",
        tmp_path,
    ]
    path = os.pathsep.join([str(ROOT / "tools"), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "attack.json").read_text())["broken"] == []
