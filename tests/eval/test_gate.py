"""The gate is green on a healthy engine, red for every fault planted in one, undecided on few images: real photographs."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import planted_engine
import pytest
from catalogue import built
from onnx import numpy_helper

from mimeval.datasets import Dataset, open_dataset
from mimeval.deployments import EngineRequest
from mimeval.errors import DataError
from mimeval.evaluation import EvalOptions, evaluate
from mimeval.feature_store import FeatureStore
from mimeval.models import find_baselines
from mimeval.regression import compare, read_baseline, write_baseline
from mimeval.report import Report
from mimexport.quantize import quantize_graph
from mimexport.references import References
from mimruntime.artifact import Artifact
from mimruntime.engines import ENGINES
from mimruntime.errors import EngineError, ImageError

IMAGES, MARGIN = 200, 0.05
"""Crops of photographs; top-k gains 15 points of mAP over [cls] on them, of which 5 may be lost."""


@dataclass(frozen=True)
class Bench:
    artifacts: list[Artifact]
    folder: Path
    features: FeatureStore

    def run(
        self,
        dataset: Dataset,
        *,
        engine: str = "planted",
        cache: Path | None = None,
        required: bool = True,
        own: bool = False,
    ) -> Report:
        """Evaluate; torch's features are shared by all runs, those of a planted fault by none."""
        baselines, lacking = find_baselines(self.artifacts)
        assert not lacking
        return evaluate(
            self.artifacts,
            baselines,
            dataset,
            [EngineRequest(engine, None, required=required)],
            open_references=References().open,
            store=self.features if cache is None else FeatureStore(cache),
            options=EvalOptions(margin=MARGIN, own=own),
        )


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    artifacts = [built(model="mae-tiny", agg="cls"), built(model="mae-tiny", agg="topk", with_selection=True)]
    own = tmp_path_factory.mktemp("gate")
    # Torch's features are computed once for all processes of a run, which have folders side by side.
    shared = tmp_path_factory.getbasetemp().parent / "gate" if "PYTEST_XDIST_WORKER" in os.environ else own
    return Bench(artifacts, own, FeatureStore(shared / "features"))


@pytest.fixture(scope="session")
def int8_bench(bench: Bench, calibration_crops: Path) -> Bench:
    """The same two artifacts in int8, calibrated on other crops than those that are judged."""
    common = {"model": "mae-tiny", "precision": "int8", "calibrate": calibration_crops}
    return Bench([built(agg=agg, **common) for agg in ("cls", "topk")], bench.folder, bench.features)


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset("crops", cache=tmp_path_factory.mktemp("data"), limit=IMAGES)


@pytest.fixture
def plant(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    """Make the engine 'planted' wrong."""
    monkeypatch.setitem(ENGINES, "planted", "planted_engine")
    monkeypatch.setattr("mimeval.deployments.code_digest", lambda: "same code")
    return lambda **faults: monkeypatch.setattr(planted_engine, "FAULTS", faults)


def graph_changed(bench: Bench, change, only: str = "topk"):
    """Return a function path -> path of the changed graph, for the artifact `only`."""

    def replaced(graph: Path) -> Path:
        if graph.parent.name != only:
            return graph
        model = onnx.load(graph)
        change(model)
        path = bench.folder / f"{uuid.uuid4()}.onnx"
        onnx.save(model, path)
        return path

    return replaced


def zero_a_weight(model: onnx.ModelProto) -> None:
    """Zero the matrix of the last MLP, as a lost tensor would be."""
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) >= 192]
    weights[-1].CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weights[-1])), weights[-1].name))


def wrong_mean_and_std(model: onnx.ModelProto) -> None:
    """Give the graph the pixel statistics of Inception, mean and std 0.5, for ImageNet's."""
    found = 0
    for tensor in model.graph.initializer:
        if tensor.name in {"mean", "std"}:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, 127.5), tensor.name))
            found += 1
    assert found == 2


def keep_the_worst(model: onnx.ModelProto) -> None:
    """Turn the choices of patches in the encoder round; the last one is the aggregator's."""
    choices = [node for node in model.graph.node if node.op_type == "TopK"]
    assert len(choices) == 3
    for node in choices[:-1]:
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("largest", 0))


def narrow_the_ranges(graph: Path, target: Path) -> None:
    """Write a graph whose activations are cut off at a quarter of their range."""
    model = onnx.load(graph)
    ranges = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in ranges:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 4, tensor.name))
    onnx.save(model, target)


def held_against_healthy(bench: Bench, crops: Dataset, plant, folder: Path, harm) -> Report:
    """Return the verdict on graphs that `harm` wrote, held against the unharmed ones, which pass."""
    plant()
    healthy = bench.run(crops)
    assert healthy.verdict == "pass", healthy.reasons
    write_baseline(healthy, folder / "baseline.json")
    assert compare(healthy, read_baseline(folder / "baseline.json")).verdict == "pass"
    harmed = {artifact.graph: folder / f"{artifact.path.name}.onnx" for artifact in bench.artifacts}
    for graph, target in harmed.items():
        harm(graph, target)
    plant(graph=lambda graph: harmed[graph])
    return compare(bench.run(crops), read_baseline(folder / "baseline.json"))


class TestHealthy:
    def test_a_healthy_engine_passes(self, bench, crops, plant) -> None:
        plant()
        report = bench.run(crops)
        assert report.verdict == "pass", report.reasons
        gain = next(gain for gain in report.gains if gain.decides and gain.fitted == "torch")
        assert gain.found.reference.low > 0.05
        assert abs(gain.found.change.value) < 0.001

    def test_fifty_images_are_undecided_and_the_images_needed_are_said(self, bench, plant, tmp_path) -> None:
        plant()
        report = bench.run(open_dataset("crops", cache=tmp_path, limit=50))
        assert report.verdict == "undecided"
        assert any("images would decide" in reason for reason in report.reasons)

    def test_fifty_images_stay_undecided_when_they_are_made_the_baseline(self, bench, plant, tmp_path) -> None:
        plant()
        report = bench.run(open_dataset("crops", cache=tmp_path, limit=50))
        write_baseline(report, tmp_path / "baseline.json")
        assert compare(report, read_baseline(tmp_path / "baseline.json")).verdict == "undecided"

    def test_an_artifact_that_ran_nowhere_is_undecided(self, bench, crops, plant) -> None:
        def refuse(graph: Path) -> Path:
            if graph.parent.name == "topk":
                raise EngineError("no kernel")
            return graph

        plant(graph=refuse)
        report = bench.run(crops, required=False)
        assert report.verdict == "undecided"
        assert "topk was judged on no engine" in report.reasons

    def test_an_image_that_only_the_engine_could_not_read_is_no_score(self, bench, crops, plant) -> None:
        def load(row: int) -> bytes:
            if row == 7:
                raise ImageError("the disk is away")
            return crops.test.load(row)

        plant(embedding=lambda rows: rows)  # has features of its own
        bench.run(crops)  # torch has read them all
        plant(embedding=lambda rows: rows)
        with pytest.raises(
            DataError, match=r"1 images that torch has read could not be read, .*the disk is away; run it"
        ):
            bench.run(replace(crops, test=replace(crops.test, load=load)))

    @pytest.mark.parametrize("fault", ["unread", pytest.param("nan", marks=pytest.mark.slow)])
    def test_training_images_are_no_zeros_either(self, bench, plant, tmp_path, fault) -> None:
        drawn = open_dataset("drawn", cache=tmp_path, limit=100, train_limit=100)
        count = 0

        def load(row: int) -> bytes:
            if row == 7:
                raise ImageError("the disk is away")
            return drawn.train.load(row)

        def broken_later(rows: np.ndarray) -> np.ndarray:
            nonlocal count
            count += len(rows)
            if fault == "nan" and count > 100:  # the test images come first
                rows[0, 0] = np.nan
            return rows

        plant(embedding=lambda rows: rows)
        bench.run(drawn)  # torch has read them all
        plant(embedding=broken_later)
        if fault == "unread":
            with pytest.raises(DataError, match="1 images that torch has read could not be read"):
                bench.run(replace(drawn, train=replace(drawn.train, load=load)), own=True)
        else:
            report = bench.run(drawn, own=True)
            assert report.verdict == "fail"
            assert any("planted fp32, training: vectors of" in reason for reason in report.reasons)

    def test_a_baseline_alone_is_undecided(self, bench, crops, plant) -> None:
        plant()
        report = replace(bench, artifacts=bench.artifacts[:1]).run(crops)
        assert report.verdict == "undecided"


class TestPlanted:
    def test_the_engine_of_cls_under_another_name(self, bench, crops, plant) -> None:
        plant(graph=lambda _: bench.artifacts[0].graph)
        report = bench.run(crops)
        assert report.verdict == "fail"
        assert any("the gain shrank" in reason for reason in report.reasons)

    def test_wrong_mean_and_std(self, bench, crops, plant) -> None:
        plant(graph=graph_changed(bench, wrong_mean_and_std))
        assert bench.run(crops).verdict == "fail"

    def test_rgb_for_bgr(self, bench, crops, plant) -> None:
        plant(pixels=lambda pixels: np.ascontiguousarray(pixels[..., ::-1]))
        assert bench.run(crops).verdict == "fail"

    def test_a_crop_that_is_off_by_one_patch(self, bench, crops, plant) -> None:
        plant(pixels=lambda pixels: np.roll(pixels, 8, axis=2))
        assert bench.run(crops).verdict == "fail"

    def test_a_weight_tensor_zeroed(self, bench, crops, plant) -> None:
        plant(graph=graph_changed(bench, zero_a_weight))
        assert bench.run(crops).verdict == "fail"

    @pytest.mark.slow
    def test_raw_tokens_for_final_ones(self, bench, crops, plant) -> None:
        other = built(model="mae-tiny", agg="topk", token_norm="final", with_selection=True)
        plant(graph=lambda graph: other.graph if graph.parent.name == "topk" else graph)
        assert bench.run(crops).verdict == "fail"

    def test_the_worst_patches_kept_instead_of_the_best(self, bench, crops, plant) -> None:
        common = {"keep": "75%@0,50%@2", "keep_by": "center-norm", "with_selection": True}
        kept = built(model="mae-tiny", agg="topk", **common)
        early = Bench([bench.artifacts[0], kept], bench.folder, bench.features)
        plant()
        healthy = early.run(crops)
        assert healthy.verdict == "pass", healthy.reasons
        plant(graph=graph_changed(bench, keep_the_worst))
        report = early.run(crops)
        assert report.verdict == "fail"
        assert any("topk on planted fp32: vectors are not torch's" in reason for reason in report.reasons)
        assert any("the gain shrank" in reason for reason in report.reasons), report.reasons

    def test_int8_calibrated_on_a_constant_image(self, bench, int8_bench, crops, plant, tmp_path) -> None:
        """Magenta, whose activations are far larger than a photograph's; on black, white or grey they are not."""
        magenta = np.broadcast_to(np.array([255, 0, 255], np.uint8), (1, 64, 64, 3))

        def calibrate_again(_: Path, target: Path) -> None:
            shutil.copyfile(next(one.graph for one in bench.artifacts if one.path.name == target.stem), target)
            quantize_graph(target, magenta)

        report = held_against_healthy(int8_bench, crops, plant, tmp_path, calibrate_again)
        assert report.verdict == "fail"
        assert any("cosine" in reason for reason in report.reasons), report.reasons

    def test_int8_whose_calibration_missed_the_ranges(self, int8_bench, crops, plant, tmp_path) -> None:
        report = held_against_healthy(int8_bench, crops, plant, tmp_path, narrow_the_ranges)
        assert report.verdict == "fail"
        assert any("cosine" in reason for reason in report.reasons), report.reasons

    def test_rows_of_a_batch_swapped(self, bench, crops, plant) -> None:
        plant(embedding=lambda rows: rows[::-1].copy())
        assert bench.run(crops).verdict == "fail"

    def test_vectors_that_hold_nan(self, bench, crops, plant) -> None:
        def broken(rows: np.ndarray) -> np.ndarray:
            rows[0, 0] = np.nan
            return rows

        plant(embedding=broken)
        report = bench.run(crops)
        assert report.verdict == "fail"
        assert any("topk on planted fp32: vectors of" in reason for reason in report.reasons)

    def test_labels_of_classes_shuffled(self, bench, plant, tmp_path) -> None:
        plant()
        drawn = open_dataset("drawn", cache=tmp_path, limit=100, train_limit=100)
        assert not [reason for reason in bench.run(drawn).reasons if "labels" in reason]
        labels = np.random.default_rng(0).permutation(drawn.test.labels)
        report = bench.run(replace(drawn, test=replace(drawn.test, labels=labels)))
        assert report.verdict == "fail"
        assert "the labels do not match the images" in report.reasons[0]

    def test_labels_shuffled(self, bench, crops, plant) -> None:
        plant()
        relevance = crops.relevance[""]
        order = np.random.default_rng(0).permutation(len(crops.test))
        place = np.argsort(order)
        shuffled = replace(
            relevance,
            matches=tuple(order[rows] for rows in (relevance.matches[place[query]] for query in relevance.queries)),
        )
        report = bench.run(replace(crops, relevance={"": shuffled}))
        assert report.verdict == "fail"
        assert "the labels do not match the images" in report.reasons[0]
