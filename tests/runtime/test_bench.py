"""A benchmark runs what it names and reports every figure it promises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mimruntime.bench import matrix
from mimruntime.bench.bench import Report, _readable, bench
from mimruntime.bench.formats import as_text, write_json, write_plot
from mimruntime.bench.measure import Figures, Peer, flop_per_image, in_turn, measure
from mimruntime.engines.base import Engine
from mimruntime.errors import EngineError, ImageError, MissingExtraError, UnknownNameError


class Counting(Engine):
    """Counts its runs."""

    name, provider, version, outputs = "counting", "cpu", "1", ("embedding",)
    pixel_shape = (64, 64, 3)

    def __init__(self, *, largest_batch: int | None = None, best_batch: int | None = None) -> None:
        self.largest_batch, self.best_batch = largest_batch, best_batch
        self.batches: list[int] = []
        self.closed = False

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(pixels))
        return {}

    def _close(self) -> None:
        self.closed = True


class Timed(Counting):
    """Takes a known time for every run, on a clock of its own."""

    def __init__(self, clock: list[float], seconds_of: Callable[[int], float]) -> None:
        super().__init__()
        self.clock, self.seconds_of = clock, seconds_of

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.clock[0] += self.seconds_of(len(pixels))
        return super()._run(pixels)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number, the seconds that `time.perf_counter` gives."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def test_every_figure_is_there_and_peers_are_closed(toy_artifact: Path, photos: list[Path], tmp_path: Path) -> None:
    runner = Counting()
    report = bench(
        toy_artifact,
        ["onnxruntime", "openvino"],
        peers=[Peer("idle", lambda _: runner)],
        images=photos,
        batches=(1, 2),
        seconds=0,
        pairs=2,
    )
    assert [one.name for one in report.runners] == ["onnxruntime", "openvino", "idle"]
    for one in report.runners[:2]:
        assert set(one.images_per_second) == {1, 2}
        assert set(one.latency_ms) == {"p50", "p95", "p99"}
        assert None not in {one.with_decoding, one.cold_start_s, one.peak_mib}
    assert runner.closed
    assert len(report.ratios) == 2
    write_json(report, tmp_path / "deep" / "b.json")
    assert json.loads((tmp_path / "deep" / "b.json").read_text())["runners"][2]["name"] == "idle"
    write_plot(report, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert sum(line.startswith("| ") for line in as_text(report)) == 4
    assert sum(", decoding too: engine " in line for line in as_text(report)) == 2


def test_an_engine_that_is_not_there_is_left_out_of_all_and_an_error_alone(
    toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino"):
        bench(toy_artifact, ["openvino"], batches=(1,), seconds=0)
    with pytest.raises(EngineError, match=r"openvino.*; .*tensorrt"):
        bench(toy_artifact, ["openvino", "tensorrt"], batches=(1,), seconds=0)
    report = bench(toy_artifact, ["onnxruntime", "openvino"], batches=(1,), seconds=0, pairs=1)
    assert "pip install" in report.left_out["openvino"]


def test_a_name_that_is_no_engine_is_an_error_among_others_too(toy_artifact: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine 'openvin'"):
        bench(toy_artifact, ["onnxruntime", "openvin"], batches=(1,), seconds=0)


def test_a_peer_that_does_not_open_is_left_out(toy_artifact: Path) -> None:
    def fail(pixels: np.ndarray) -> Counting:
        raise EngineError("no such thing")

    report = bench(toy_artifact, ["onnxruntime"], peers=[Peer("broken", fail)], batches=(1,), seconds=0, pairs=1)
    assert report.left_out == {"broken": "no such thing"}


def test_a_peer_on_hardware_that_no_engine_runs_on_is_not_opened(toy_artifact: Path) -> None:
    runner = Counting()

    def never(pixels: np.ndarray) -> Counting:
        raise AssertionError("opened")

    peers = [Peer("near", lambda _: runner), Peer("on a card", never, on_gpu=True)]
    report = bench(toy_artifact, ["onnxruntime"], provider="cpu", peers=peers, batches=(1,), seconds=0, pairs=1)
    assert [one.name for one in report.runners] == ["onnxruntime", "near"]
    assert report.left_out == {}


def test_an_engine_without_the_provider_is_left_out_of_all_and_an_error_alone(toy_artifact: Path) -> None:
    with pytest.raises(UnknownNameError, match="provider"):
        bench(toy_artifact, ["openvino"], provider="tpu", batches=(1,), seconds=0)
    with pytest.raises(
        EngineError, match=r"provider of the engine 'onnxruntime'.*; .*provider of the engine 'openvino'"
    ):
        bench(toy_artifact, ["onnxruntime", "openvino"], provider="tpu", batches=(1,), seconds=0)


def test_what_runs_is_said_with_precision_threads_and_streams(toy_artifact: Path) -> None:
    report = bench(toy_artifact, ["openvino"], batches=(1,), seconds=0, pairs=1)
    assert re.search(r"^\w+, [\d.]+ on cpu, \d+ threads, 1 streams, not compiled$", report.runners[0].what)
    assert report.matrix_gflops["fp32"] > 0


def test_a_batch_over_what_an_engine_runs_is_cut_and_the_tuned_one_is_measured_too() -> None:
    for engine, sizes in ((Counting(largest_batch=4), {2, 4}), (Counting(best_batch=12), {2, 12, 16})):
        figures = Figures("a", "")
        measure(figures, engine, np.zeros((3, 64, 64, 3), np.uint8), (2, 16), 0)
        assert set(figures.images_per_second) == sizes


def test_throughput_is_images_of_a_second_and_latency_is_in_milliseconds(clock: list[float]) -> None:
    figures, engine = Figures("a", ""), Timed(clock, {1: 0.125, 4: 0.25, 8: 1.0}.__getitem__)
    measure(figures, engine, np.zeros((3, 64, 64, 3), np.uint8), (1, 4, 8), 0)
    assert figures.images_per_second == {1: 8.0, 4: 16.0, 8: 8.0}
    assert figures.latency_ms == {"p50": 125.0, "p95": 125.0, "p99": 125.0}
    assert figures.best_batch == 4


def test_latency_is_that_of_one_image_whatever_the_batches() -> None:
    figures, engine = Figures("a", ""), Counting()
    measure(figures, engine, np.zeros((3, 64, 64, 3), np.uint8), (8,), 0)
    assert (set(figures.images_per_second), set(engine.batches)) == ({8}, {1, 8})
    assert set(figures.latency_ms) == {"p50", "p95", "p99"}


def test_runners_of_different_batches_share_a_table() -> None:
    runners = [Figures(name, "", images_per_second={batch: 1.0}) for name, batch in (("a", 1), ("b", 8))]
    lines = list(as_text(Report("x", "cpu", {"fp32": 1.0}, runners, {}, [])))
    assert sum(line.startswith("| ") for line in lines) == 3


def test_photographs_that_cannot_be_read_are_left_out_and_of_many_only_some_are_read(photo: Path) -> None:
    said: list[str] = []
    gone = Path("gone.jpg")
    assert len(_readable([gone, *[photo] * 70, gone], said.append)) == 64
    assert len(said) == 1
    assert "left out: gone.jpg" in said[0]
    with pytest.raises(ImageError, match=r"none of 1 images can be read; first: gone\.jpg"):
        _readable([gone], said.append)


def test_a_rate_in_bf16_is_measured_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_rate", lambda multiply: 1.0)
    monkeypatch.setattr(matrix, "_openvino_product", lambda precision: None)
    for instructions, expected in ((("avx2",), {"fp32"}), (("amx_bf16",), {"fp32", "bf16"})):
        monkeypatch.setattr("mimruntime.cpus.cpu_instructions", lambda found=instructions: found)
        assert set(matrix.matrix_rates()) == expected


def test_the_product_that_openvino_is_asked_for_is_one() -> None:
    a, b = matrix._factors()
    (product,) = matrix._openvino_product("f32")().values()
    assert np.allclose(product[:3], a[:3] @ b, atol=1e-3)


def test_pairs_alternate_at_each_sides_own_batch() -> None:
    ours, theirs = Counting(), Counting()
    ratios = in_turn(("a", ours, 4), [("b", theirs, 2)], np.zeros((3, 64, 64, 3), np.uint8), 5)
    assert (ours.batches, theirs.batches) == ([4] * 5, [2] * 5)
    assert (ratios[0].ours, ratios[0].theirs, ratios[0].pairs) == ("a", "b", 5)


def test_a_ratio_over_one_says_how_many_times_faster_ours_is(clock: list[float]) -> None:
    ours, theirs = Timed(clock, lambda batch: batch / 16), Timed(clock, lambda batch: batch / 8)
    (ratio,) = in_turn(("a", ours, 4), [("b", theirs, 2)], np.zeros((3, 64, 64, 3), np.uint8), 3)
    assert (ratio.low, ratio.ratio, ratio.high) == (2.0, 2.0, 2.0)


def test_the_best_batch_is_that_of_most_images() -> None:
    assert Figures("a", "", images_per_second={1: 5.0, 4: 9.0, 8: 8.0}).best_batch == 4


def test_vit_b16_takes_about_35_gflop() -> None:
    assert 33e9 < flop_per_image(85.8e6, 197, 768) < 37e9
