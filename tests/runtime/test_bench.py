"""A benchmark runs what it names and reports every figure it promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mimruntime.bench.bench import bench
from mimruntime.bench.measure import Figures, Peer, flop_per_image, in_turn
from mimruntime.bench.report import as_text, write_json, write_plot
from mimruntime.errors import EngineError, MissingExtraError


class Counting:
    """A runner that counts its runs."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.closed = False

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.batches.append(len(pixels))
        return {}

    def close(self) -> None:
        self.closed = True


def test_every_figure_is_there_and_peers_are_closed(toy_artifact: Path, photos: list[Path], tmp_path: Path) -> None:
    runner = Counting()
    report = bench(
        toy_artifact,
        ["onnxruntime", "openvino"],
        peers=[Peer("idle", lambda: runner)],
        images=photos,
        batches=(1, 2),
        seconds=0,
        pairs=2,
    )
    assert [one.name for one in report.runners] == ["onnxruntime", "openvino", "idle"]
    for one in report.runners[:2]:
        assert set(one.images_per_second) == {1, 2}
        assert set(one.latency_ms) == {"p50", "p95", "p99"}
        assert None not in {one.with_decoding, one.cold_start_s, one.peak_mib, one.share}
    assert runner.closed
    assert len(report.ratios) == 2
    write_json(report, tmp_path / "deep" / "b.json")
    assert json.loads((tmp_path / "deep" / "b.json").read_text())["runners"][2]["name"] == "idle"
    write_plot(report, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert sum(line.startswith("| ") for line in as_text(report)) == 4


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


def test_a_peer_that_does_not_open_is_left_out(toy_artifact: Path) -> None:
    def fail() -> Counting:
        raise EngineError("no such thing")

    report = bench(toy_artifact, ["onnxruntime"], peers=[Peer("broken", fail)], batches=(1,), seconds=0, pairs=1)
    assert report.left_out == {"broken": "no such thing"}


def test_pairs_alternate_at_each_sides_own_batch() -> None:
    ours, theirs = Counting(), Counting()
    ratios = in_turn(("a", ours, 4), [("b", theirs, 2)], np.zeros((3, 2, 2, 3), np.uint8), 5)
    assert (ours.batches, theirs.batches) == ([4] * 5, [2] * 5)
    assert (ratios[0].ours, ratios[0].theirs, ratios[0].pairs) == ("a", "b", 5)


def test_the_best_batch_is_that_of_most_images() -> None:
    assert Figures("a", "", images_per_second={1: 5.0, 4: 9.0, 8: 8.0}).best_batch == 4


def test_vit_b16_takes_about_35_gflop() -> None:
    assert 33e9 < flop_per_image(85.8e6, 197, 768) < 37e9
