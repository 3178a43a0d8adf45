"""The parts of the flow: models and their baselines, images that are left out, chance, and one verdict from many."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mimeval.datasets import Dataset, Relevance, Split, open_dataset
from mimeval.datasets.subset import balanced_order
from mimeval.deployments import EngineRequest
from mimeval.errors import DataError
from mimeval.evaluation import EvalOptions, evaluate
from mimeval.feature_store import FeatureStore, Table
from mimeval.images import choose_images
from mimeval.metrics import METRICS, Task, find_metrics, suited
from mimeval.models import find_baselines, group_models
from mimeval.report import Gain, Report
from mimeval.retrieval import guessed_precision, retrieve
from mimeval.statistics import judge_gain
from mimeval.verdict import EXIT, at_chance, conclude, explain, worst
from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder
from mimruntime.engines.opening import open_for
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import Keep, KeepStage


def split_of(labels: np.ndarray, digest: str = "d") -> Split:
    return Split(tuple(f"image {row}" for row in range(len(labels))), labels, lambda row: b"", digest)


def dataset_of(test: np.ndarray, train: np.ndarray | None = None, **more) -> Dataset:
    classes = tuple(str(label) for label in range(int(test.max()) + 1))
    return Dataset("made up", classes, split_of(test), None if train is None else split_of(train), **more)


def table_of(count: int, *bad: int) -> Table:
    return Table(np.ones((count, 4), np.float32), None, {row: f"image {row}: broken" for row in bad}, None)


def artifact_like(toy: Path, name: str, agg: str, *, precision: str = "fp32", space: str | None = None) -> Artifact:
    """The toy artifact under another name, as far as its manifest is read."""
    manifest = Artifact.open(toy).manifest
    replace = msgspec.structs.replace
    return Artifact(
        toy / name,
        replace(
            manifest,
            name=name,
            aggregator=replace(manifest.aggregator, name=agg),
            backbone=replace(manifest.backbone, prefix_tokens=1),
            graph=replace(manifest.graph, precision=precision),
            embedding_space=space or agg,
        ),
    )


class TestModels:
    def test_precisions_of_one_space_are_one_model_under_its_shortest_name(self, toy_artifact) -> None:
        cls = [artifact_like(toy_artifact, "cls", "cls"), artifact_like(toy_artifact, "cls.h", "cls", precision="fp16")]
        topk = [artifact_like(toy_artifact, "t.h", "topk", precision="fp16"), artifact_like(toy_artifact, "t", "topk")]
        models = group_models(topk, cls)
        assert [(model.title, model.baseline, len(model.artifacts)) for model in models] == [
            ("cls", None, 2),
            ("t", "cls", 2),
        ]

    def test_models_of_one_name_are_told_apart_by_their_paths(self, toy_artifact) -> None:
        cls = artifact_like(toy_artifact, "m", "cls")
        twins = [Artifact(Path(agg), artifact_like(toy_artifact, "m", agg).manifest) for agg in ("topk", "mean")]
        models = group_models(twins, [cls])
        assert [model.title for model in models] == [str(cls.path), "topk", "mean"]
        assert {model.baseline for model in models[1:]} == {str(cls.path)}

    def test_the_same_space_and_precision_twice_is_refused(self, toy_artifact) -> None:
        cls = artifact_like(toy_artifact, "cls", "cls")
        twice = [artifact_like(toy_artifact, name, "topk") for name in ("a", "b")]
        with pytest.raises(OptionError, match="same space in the same precision"):
            group_models(twice, [cls])

    def test_of_two_baselines_none_is_dropped_unseen(self, toy_artifact) -> None:
        topk = artifact_like(toy_artifact, "topk", "topk")
        twins = [Artifact(Path(name), artifact_like(toy_artifact, name, "cls").manifest) for name in ("cls", "cls2")]
        with pytest.raises(OptionError, match="same space in the same precision"):
            group_models([topk, *twins], find_baselines([topk, *twins])[0])
        with pytest.raises(OptionError, match="a second baseline of its backbone"):
            group_models([topk], [artifact_like(toy_artifact, name, name) for name in ("cls", "mean")])

    def test_an_artifact_without_a_baseline_of_its_precision_lacks_one(self, toy_artifact) -> None:
        cls = artifact_like(toy_artifact, "cls", "cls")
        half = artifact_like(toy_artifact, "t.h", "topk", precision="fp16")
        found, lacking = find_baselines([cls, artifact_like(toy_artifact, "t", "topk"), half])
        assert found == [cls]
        assert lacking == [half]
        with pytest.raises(OptionError, match="give the artifact of"):
            group_models([half], [])

    def test_a_cls_of_fewer_patches_is_no_baseline(self, toy_artifact) -> None:
        """It would be the weaker, and gains would look larger."""
        whole = artifact_like(toy_artifact, "cls", "cls")
        keep = Keep(stages=(KeepStage(block=0, patches=4),), by="center")
        part = Artifact(Path("part"), msgspec.structs.replace(whole.manifest, name="part", keep=keep))
        assert find_baselines([part, whole]) == ([whole], [])
        assert find_baselines([part]) == ([], [part])

    def test_a_given_baseline_is_what_gains_are_counted_from(self, toy_artifact) -> None:
        cls, mean, topk = (artifact_like(toy_artifact, name, name) for name in ("cls", "mean", "topk"))
        found, lacking = find_baselines([cls, topk], [mean])
        assert (found, lacking) == ([mean], [])
        titles = {model.title: model.baseline for model in group_models([cls, topk], found)}
        assert titles == {"mean": None, "cls": "mean", "topk": "mean"}
        with pytest.raises(OptionError, match="give one in that precision too"):
            find_baselines([artifact_like(toy_artifact, "t.h", "topk", precision="fp16")], [mean])


class TestImages:
    def test_every_beginning_of_the_order_has_its_classes_in_balance(self) -> None:
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 8))
        order = balanced_order(split_of(labels), 0)
        assert sorted(order) == list(range(40))
        for count in range(1, 41):
            sizes = np.bincount(labels[order[:count]], minlength=5)
            assert sizes.max() - sizes.min() <= 1

    def test_unreadable_images_are_left_out_and_noted(self) -> None:
        labels = np.repeat(np.arange(3), 4)
        images = choose_images(dataset_of(labels, labels), 6, seed=0)
        images.drop_unreadable(table_of(12, 1, 7), table_of(12, 5))
        assert 1 not in images.test_rows(deployed=False)
        assert len(images.test_rows(deployed=False)) == 10
        assert len(images.test_rows(deployed=True)) == 5
        assert images.training == 11
        assert len(images.task(images.test_rows(deployed=True)).test_labels) == 5
        assert "2 of 12 test images could not be read" in images.notes[0]

    def test_few_shot_is_left_out_where_unreadable_images_leave_too_few(self) -> None:
        labels = np.repeat(np.arange(2), 5)
        images = choose_images(dataset_of(labels, labels), None, seed=0)
        images.drop_unreadable(table_of(10), table_of(10, 7))
        metrics = find_metrics((), images.dataset)
        images.drop_unsuited(metrics, ())
        assert set(metrics) == {"knn", "linear", "retrieval"}
        assert "few-shot is left out: too few images of '1'" in images.notes[-1]

    def test_classes_count_alike_against_guessing_however_large_one_is(self) -> None:
        labels = np.repeat([0, 1], [900, 100])
        images = choose_images(dataset_of(labels, labels), 200, seed=0)
        seen = labels[images.order]
        weights, chance = images.weights(METRICS["knn"]), images.chance(METRICS["knn"], "k-NN")
        assert chance == 0.5
        assert (weights * (seen == 0)).mean() == pytest.approx(0.5)  # always the largest class
        knows = (seen == 0) | (np.arange(1000) % 5 < 3)  # nine in ten, and three of five of the small class
        assert at_chance(weights * knows, chance, weights.max()) == []
        guesses = np.random.default_rng(0).permutation(seen) == seen
        assert guesses.mean() > 0.75
        assert at_chance(weights * guesses, chance, weights.max())

    def test_any_class_that_was_learned_may_be_guessed(self) -> None:
        images = choose_images(dataset_of(np.arange(2).repeat(5), np.arange(10).repeat(5)), None, seed=0)
        assert images.chance(METRICS["knn"], "k-NN") == 1 / 10

    def test_what_could_not_be_read_is_part_of_the_digest(self) -> None:
        labels = np.repeat(np.arange(3), 4)
        digests = set()
        for test, train in ((), ()), ((3,), ()), ((4,), ()), ((), (4,)):
            images = choose_images(dataset_of(labels, labels), None, seed=0)
            images.drop_unreadable(table_of(12, *test), table_of(12, *train))
            digests.add(images.digest)
        assert len(digests) == 4

    def test_what_is_learned_from_is_part_of_the_digest(self) -> None:
        labels = np.repeat(np.arange(3), 4)
        dataset = dataset_of(labels, labels)
        other = dataclasses.replace(dataset, train=split_of(labels, digest="another"))
        assert choose_images(dataset, None, seed=0).digest != choose_images(other, None, seed=0).digest

    def test_none_readable_is_an_error(self) -> None:
        images = choose_images(dataset_of(np.arange(2), np.arange(2)), None, seed=0)
        with pytest.raises(DataError, match="2 of 2 test images could not be read"):
            images.drop_unreadable(table_of(2, 0, 1), None)

    def test_classes_with_nothing_to_learn_from_are_noted(self) -> None:
        images = choose_images(dataset_of(np.array([0, 1, 2]), np.array([0, 1, 1])), None, seed=0)
        assert "1 classes have test images but no training images (2)" in images.notes[0]

    def test_what_queries_find_is_renumbered_around_unreadable_images(self) -> None:
        relevance = Relevance(
            np.arange(4),
            (np.array([1, 2]), np.array([0]), np.array([0, 3]), np.array([2])),
            tuple(np.array([row]) for row in range(4)),
        )
        images = choose_images(dataset_of(np.zeros(4, int), relevance={"": relevance}), None, seed=0)
        images.drop_unreadable(table_of(4, 0), None)
        left = images.task(images.test_rows(deployed=True)).relevance[""]
        assert left.queries.tolist() == [1, 2]  # the old 2 and 3; 1 had only 0 to find
        assert [rows.tolist() for rows in left.matches] == [[2], [1]]
        assert [rows.tolist() for rows in left.ignored] == [[1], [2]]


class TestMetrics:
    def test_what_a_data_set_allows(self) -> None:
        labels = np.repeat(np.arange(3), 6)
        assert suited(dataset_of(labels)) == ("retrieval",)
        assert suited(dataset_of(labels, labels)) == ("knn", "linear", "few-shot", "retrieval")
        assert "few-shot" not in suited(dataset_of(labels, labels[:-4]))
        assert suited(dataset_of(labels, labels[:1])) == ("knn", "retrieval")

    def test_classifiers_without_training_images_are_refused(self) -> None:
        with pytest.raises(OptionError, match="use --metric retrieval"):
            find_metrics(("knn",), dataset_of(np.arange(3)))
        with pytest.raises(UnknownNameError):
            find_metrics(("nn",), dataset_of(np.arange(3)))

    def test_images_that_are_all_alone_in_their_class_ask_nothing(self) -> None:
        task = Task(np.arange(3), {})
        assert METRICS["retrieval"].score(task, None, None, np.eye(3)) == {}

    @pytest.mark.parametrize(("matches", "gallery"), [(1, 10), (5, 100), (40, 50)])
    def test_guessing_has_the_precision_of_random_rankings(self, matches, gallery) -> None:
        rng = np.random.default_rng(0)
        queries, table = rng.standard_normal((4000, 8)), rng.standard_normal((gallery, 8))
        right = [rng.choice(gallery, matches, replace=False) for _ in range(4000)]
        measured = retrieve(queries, table, right).average_precision.mean()
        assert guessed_precision(matches, gallery) == pytest.approx(measured, rel=0.05)


class TestVerdict:
    def test_every_verdict_has_its_exit_status(self) -> None:
        assert EXIT == {"pass": 0, "fail": 1, "undecided": 3}

    def test_labels_that_say_nothing_fail_when_there_are_enough_images(self) -> None:
        rng = np.random.default_rng(0)
        assert at_chance(rng.random(1000) < 0.2, 0.005) == []
        assert at_chance(rng.random(5000) < 0.005, 0.005)[0][0] == "fail"
        assert at_chance(rng.random(1000) < 0.1, 0.1)[0][0] == "fail"
        assert at_chance(np.zeros(40, bool), 0.005)[0][0] == "undecided"

    def test_why_a_gain_failed_has_its_own_figure(self) -> None:
        rng = np.random.default_rng(0)
        cls, head = rng.random(2000) < 0.5, rng.random(2000) < 0.5
        shrunk = judge_gain(head, cls, head & (rng.random(2000) < 0.8), cls)
        lost = judge_gain(head & (rng.random(2000) < 0.8), cls, head, cls)
        for judged, figure in ((shrunk, shrunk.change), (lost, lost.reference)):
            assert judged.verdict == "fail"
            gain = Gain(
                model="m",
                baseline="cls",
                deployment="d",
                metric="k-NN",
                fitted="torch",
                found=judged,
                mcnemar=None,
                decides=True,
            )
            assert f"({100 * figure.value:+.1f} points" in explain(gain)

    def test_a_weak_baseline_of_many_classes_is_not_taken_for_guessing(self) -> None:
        assert at_chance(np.arange(200) < 5, 0.005)[0][0] == "undecided"

    def test_one_failure_fails_and_one_open_question_leaves_it_open(self) -> None:
        assert conclude([], [], [("fail", "a"), ("undecided", "b")])[0] == "fail"
        assert conclude([], [], [])[0] == "undecided"
        assert worst("pass", ["every gain carried over"], [("fail", "x")]) == ("fail", ["x"])
        assert worst("pass", ["fine"], []) == ("pass", ["fine"])

    def test_a_gain_may_be_established_on_more_images_than_its_change(self) -> None:
        difficulty = np.random.default_rng(0).random(5000)
        better, base = difficulty < 0.34, difficulty < 0.3
        few = slice(0, 400)
        alone = judge_gain(better[few], base[few], better[few], base[few], margin=0.01)
        more = judge_gain(better[few], base[few], better[few], base[few], margin=0.01, established_on=(better, base))
        assert more.verdict == "pass"
        assert more.reference.value == pytest.approx((better ^ base).mean())
        assert more.change == alone.change


@pytest.fixture(scope="module")
def flow(toy_without_selection, tmp_path_factory) -> tuple[Report, list[int]]:
    """A model and its baseline on one engine that sees 20 of 30 images; how many gains each gain was judged with."""
    toy, folder = Artifact.open(toy_without_selection).path, tmp_path_factory.mktemp("flow")
    cls, topk = (dataclasses.replace(artifact_like(toy, name, name), path=toy) for name in ("cls", "topk"))
    judged = []

    def noted(*scores, rows, **options):
        judged.append(rows)
        return judge_gain(*scores, rows=rows, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mimeval.gains.judge_gain", noted)
        report = evaluate(
            [topk],
            [cls],
            open_dataset("drawn", cache=folder, limit=30, train_limit=30),
            [EngineRequest("onnxruntime", None, required=True)],
            open_references=lambda artifacts: [open_for(Artifact.open(one.path), "onnxruntime") for one in artifacts],
            store=FeatureStore(folder),
            options=EvalOptions(metrics=("knn",), deployed=20),
        )
    return report, judged


class TestFlow:
    def test_a_gain_in_torch_is_established_on_more_images_than_engines_see(self, flow) -> None:
        report, _ = flow
        assert report.images == {"torch": 30, "engines": 20, "training": 30}
        assert {(gain.found.reference_images, gain.found.images) for gain in report.gains} == {(30, 20)}

    def test_classification_is_decided_by_k_nn(self, flow) -> None:
        report, _ = flow
        assert report.metric == "k-NN"
        assert {gain.metric for gain in report.gains if gain.decides} == {"k-NN"}

    def test_a_deciding_gain_is_judged_together_with_all_that_decide(self, flow) -> None:
        report, judged = flow
        together = dict(zip([(gain.metric, gain.fitted) for gain in report.gains], judged, strict=True))
        assert together == {("k-NN", "torch"): 2, ("k-NN", "own"): 2, ("1-NN", "torch"): 1, ("1-NN", "own"): 1}


def test_an_embedder_gives_all_outputs_of_a_batch(toy_artifact, toy_without_selection) -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    with Embedder.open(toy_artifact) as embedder:
        assert embedder.has_selection
        assert embedder.outputs(pixels)["selection"].shape == (2, 8, 8)
    with Embedder.open(toy_without_selection) as embedder:
        assert not embedder.has_selection
        assert list(embedder.outputs(pixels)) == ["embedding"]
