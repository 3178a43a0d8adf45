"""Gains are counted from the stronger of [cls] raw and after the final norm; a weaker one is named or turns it red."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mimeval.baselines import choose, complete, leave_one_out, with_rivals
from mimeval.datasets import Dataset
from mimeval.datasets.pixels import split_of_pixels
from mimeval.deployments import EngineRequest
from mimeval.errors import DataError
from mimeval.evaluation import EvalOptions, evaluate
from mimeval.feature_store import FeatureStore
from mimeval.markdown import as_markdown
from mimeval.models import group_models
from mimeval.report import TORCH, Report
from mimruntime.artifact import Artifact
from mimruntime.engines.opening import open_for
from mimruntime.errors import OptionError


def artifact(toy: Path, name: str, agg: str, *, norm: str = "final", precision: str = "fp32", **more) -> Artifact:
    """The toy artifact under another name, as far as its manifest is read."""
    manifest = Artifact.open(toy).manifest
    replace = msgspec.structs.replace
    changed = replace(
        manifest, name=name, aggregator=replace(manifest.aggregator, name=agg, token_norm=norm),
        backbone=replace(manifest.backbone, prefix_tokens=1), graph=replace(manifest.graph, precision=precision),
        embedding_space=f"{agg} {norm}", **more,
    )  # fmt: skip
    return Artifact(toy, changed)


@pytest.fixture
def models(toy_artifact):
    cls, topk = artifact(toy_artifact, "cls", "cls"), artifact(toy_artifact, "topk", "topk", norm="raw")
    half = artifact(toy_artifact, "topk.h", "topk", norm="raw", precision="fp16")
    return group_models([topk, half], with_rivals([cls]))


def scores(weak: float, strong: float, images: int = 400) -> dict[str, np.ndarray]:
    ranks = np.arange(images) / images
    return {"cls": ranks < weak, "cls raw": ranks < strong}


def chosen(models, weak: float, strong: float, **more):
    return choose(models, scores(weak, strong), metric="k-NN", on="training images", **more)


def test_the_other_norm_is_measured_unless_it_is_there_or_a_whitening_forbids_it(toy_artifact) -> None:
    final, raw = artifact(toy_artifact, "cls", "cls"), artifact(toy_artifact, "raw", "cls", norm="raw")
    rivals = with_rivals([final])[1:]
    assert [(r.manifest.name, r.manifest.aggregator.token_norm, r.manifest.files) for r in rivals] == [
        ("cls raw", "raw", {})
    ]
    embedding = msgspec.structs.replace(final.manifest.embedding, whitening="4 dimensions")
    assert with_rivals([artifact(toy_artifact, "w", "cls", embedding=embedding)])[1:] == []
    half = artifact(toy_artifact, "cls.fp16", "cls", precision="fp16")
    assert [rival.manifest.name for rival in with_rivals([final, half])[2:]] == ["cls raw"], "one for every precision"
    spaces = {rival.manifest.embedding_space for rival in with_rivals([final, raw])}
    assert {"cls final", "cls raw"} <= spaces


def test_others_are_counted_from_the_stronger_and_the_weaker_is_shown_but_not_judged(models) -> None:
    choice = chosen(models, 0.2, 0.3)
    assert [(m.title, m.baseline, m.judged) for m in choice.models] == [
        ("cls raw", None, False), ("cls", "cls raw", False), ("topk", "cls raw", True),
    ]  # fmt: skip
    assert choice.chosen[0].stronger == "cls raw"
    assert "k-NN of cls raw 30.0, of cls 20.0 (+10.0 [" in choice.chosen[0].sentence()
    assert choice.reasons == []
    assert chosen(models, 0.3, 0.3).models[0].title == "cls", "of two equals the one that is there"


def test_a_weaker_baseline_that_was_asked_for_fails_or_is_named(models) -> None:
    fixed = {"cls final"}
    choice = chosen(models, 0.2, 0.3, fixed=fixed)
    assert {m.baseline for m in choice.models if m.judged} == {"cls"}
    assert [kind for kind, _ in choice.reasons] == ["fail"]
    assert "gains are counted from cls, the weaker of two baselines: k-NN of cls raw 30.0" in choice.reasons[0][1]
    close = chosen(models, 0.3, 0.3025, fixed=fixed)
    assert close.reasons == []
    assert "the weaker of two baselines" in close.notes[0]


def test_the_stronger_is_built_in_every_precision_that_is_counted_from_it(models, toy_artifact) -> None:
    built, reasons = [], []

    def build(like: Artifact, norm: str) -> Artifact:
        precision = like.manifest.graph.precision
        built.append((precision, norm))
        if precision == "fp16":
            raise OptionError("no images")
        return dataclasses.replace(
            strongest, manifest=msgspec.structs.replace(strongest.manifest, name="built", files=files)
        )

    (strongest,) = next(model.artifacts for model in models if model.title == "cls raw")
    files = Artifact.open(toy_artifact).manifest.files
    running = complete(chosen(models, 0.2, 0.3).models, build, reasons)
    assert built == [("fp16", "raw"), ("fp32", "raw")]
    assert next((m.title, [a.manifest.name for a in m.artifacts]) for m in running) == ("cls raw", ["built"])
    assert "cls" not in {model.title for model in running}, "the weaker runs on no engine"
    assert reasons == [("undecided", "cls raw, the stronger baseline, is missing in fp16: no images")]


def test_what_was_built_in_another_space_is_no_baseline_and_the_verdict_says_so(models, toy_artifact) -> None:
    """A [cls] of 64 whitened dimensions, for one: what is built for it has all of them."""
    reasons = []
    running = complete(
        chosen(models, 0.3, 0.2).models, lambda like, norm: artifact(toy_artifact, "built", "cls", norm="raw"), reasons
    )
    assert {a.manifest.embedding_space for model in running for a in model.artifacts} == {"cls final", "topk raw"}
    ((kind, text),) = reasons
    assert kind == "undecided"
    assert "cls, the stronger baseline, is missing in fp16: what was built like" in text
    assert "is in space cls raw, expected cls final; give its artifact with --baseline" in text


def test_each_training_image_is_judged_by_the_others() -> None:
    labels = np.repeat([0, 1], 30)
    near = np.eye(2)[labels] + 0.01 * np.random.default_rng(0).standard_normal((60, 2))
    assert leave_one_out(near, labels).all()
    lonely = np.array([0] * 30 + [1])
    assert not leave_one_out(np.eye(2)[lonely], lonely)[-1], "itself has no vote"


def colours() -> Dataset:
    """Three colours as classes, in noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    pixels = np.clip(rng.normal(np.eye(3)[labels][:, None, None] * 120 + 60, 40, (120, 64, 64, 3)), 0, 255).astype(
        np.uint8
    )
    parts = [
        split_of_pixels(name, labels[rows], pixels[rows].__getitem__, name)
        for name, rows in (("train", slice(0, 60)), ("test", slice(60, 120)))
    ]
    return Dataset("colours", ("red", "green", "blue"), parts[1], parts[0])


@pytest.fixture
def run(toy_without_selection, tmp_path):
    """Evaluate top-k on the toy; torch's vectors are the mean colour, those of `blind` say nothing."""
    toy = toy_without_selection
    manifest = Artifact.open(toy).manifest

    def run(blind: str, **more) -> Report:
        noise = np.random.default_rng(0)

        def vectors(name: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
            embedding = np.zeros((len(pixels), manifest.embedding.dim), np.float32)
            mean = pixels.mean((1, 2)) - 100
            embedding[:, :3] = noise.standard_normal(mean.shape) if name == blind else mean
            return {"embedding": embedding}

        def open_references(artifacts):
            engines = [open_for(dataclasses.replace(one, manifest=manifest), "onnxruntime") for one in artifacts]
            for one, engine in zip(artifacts, engines, strict=True):
                engine.version += one.manifest.name
                engine.run = partial(vectors, one.manifest.name)
            return engines

        return evaluate(
            [artifact(toy, "topk", "topk", norm="raw")],
            [artifact(toy, "cls", "cls")],
            colours(),
            [EngineRequest("onnxruntime", None, required=True)],
            open_references=open_references,
            store=FeatureStore(tmp_path),
            options=EvalOptions(metrics=more.pop("metrics", ("knn",)), own=False, stored=more.pop("stored", ())),
            **more,
        )

    return run


def test_planted_as_the_baseline_the_weaker_turns_an_evaluation_red(run) -> None:
    report = run("cls", fixed={"cls final"})
    assert report.verdict == "fail"
    assert any("gains are counted from cls, the weaker of two baselines" in reason for reason in report.reasons), (
        report.baselines
    )
    assert {score.model for score in report.scores} == {"cls", "cls raw", "topk"}, "both are shown"
    assert "counted from the stronger" not in as_markdown(report)


def test_an_evaluation_counts_from_the_stronger_by_itself(run, toy_without_selection) -> None:
    def build(like: Artifact, norm: str) -> Artifact:
        (_, rival) = with_rivals([artifact(toy_without_selection, "cls", "cls")])
        assert rival.manifest.aggregator.token_norm == norm
        files = Artifact.open(toy_without_selection).manifest.files
        return dataclasses.replace(rival, manifest=msgspec.structs.replace(rival.manifest, files=files))

    report = run("cls", build_baseline=build)
    assert {gain.baseline for gain in report.gains if gain.decides} == {"cls raw"}
    assert "gains are counted from the stronger baseline: k-NN of [cls] (raw)" in as_markdown(report)
    assert "cls raw" not in {gain.baseline for gain in run("cls raw").gains}


def test_a_stored_precision_is_judged_like_an_engine(run) -> None:
    report = run("cls raw", stored=("fp16", "int8", "bits"))
    stored = {
        score.deployment: score for score in report.scores if score.model == "topk" and "stored" in score.deployment
    }
    assert set(stored) == {"stored fp16", "stored int8", "stored bits"}
    torch = next(score for score in report.scores if (score.model, score.deployment) == ("topk", TORCH))
    assert (stored["stored fp16"].scores() == torch.scores()).all()
    assert {gain.deployment for gain in report.gains if gain.decides} == {"onnxruntime fp32", *stored}
    assert {gain.model for gain in report.gains} == {"topk"}, "the weaker [cls] is not judged"
    with pytest.raises(DataError, match="judged by k-NN"):
        run("cls raw", stored=("int8",), metrics=("retrieval",))
