"""Known answers: a figure that is met says so, one that is not turns the command red, other data are refused."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from mimeval import known_answers
from mimeval.cli.known_answers import known_answers_command as command
from mimeval.datasets import Dataset
from mimeval.datasets.pixels import split_of_pixels
from mimeval.errors import DataError
from mimeval.feature_store import FeatureStore
from mimeval.known_answers import Answer, AnswerCheck, KnownAnswers, check, find, lines
from mimexport.aliases import ALIASES
from mimruntime.artifact import Artifact
from mimruntime.engines.opening import open_for
from mimruntime.errors import UnknownNameError

KNOWN = KnownAnswers(
    model="toy", data="colours", classes=2, training=40, images=40, source="here",
    answers=[
        Answer(agg="cls", token_norm="raw", percent=100, tolerance=0.5),
        Answer(agg="cls", token_norm="final", percent=100, tolerance=0.5),
    ],
)  # fmt: skip


def colours(images: int = 40) -> Dataset:
    labels = np.arange(images) % 2
    noise = np.random.default_rng(0).integers(0, 60, (images, 64, 64, 3), np.uint8)
    pixels = noise + (180 * labels).astype(np.uint8)[:, None, None, None]
    parts = [split_of_pixels(name, labels, pixels.__getitem__, name) for name in ("test", "train")]
    return Dataset("colours", ("dark", "light"), *parts)


@pytest.fixture
def build(toy_without_selection):
    def build(agg: str) -> Artifact:
        artifact = Artifact.open(toy_without_selection)
        aggregator = msgspec.structs.replace(artifact.manifest.aggregator, name=agg, token_norm="raw")
        return dataclasses.replace(artifact, manifest=msgspec.structs.replace(artifact.manifest, aggregator=aggregator))

    return build


@pytest.fixture
def open_references(toy_without_selection):
    """The mean colour as the vector of raw [cls], noise as that after the norm."""
    manifest, noise = Artifact.open(toy_without_selection).manifest, np.random.default_rng(0)

    def open_references(artifacts):
        engines = []
        for one in artifacts:
            engine = open_for(dataclasses.replace(one, manifest=manifest), "onnxruntime")
            raw = one.manifest.aggregator.token_norm == "raw"

            def run(pixels: np.ndarray, raw: bool = raw) -> dict[str, np.ndarray]:
                embedding = noise.standard_normal((len(pixels), manifest.embedding.dim)).astype(np.float32)
                if raw:
                    embedding[:, 0] = 100 * (pixels.mean((1, 2, 3)) - 120)
                return {"embedding": embedding}

            engine.run = run
            engines.append(engine)
        return engines

    return open_references


def test_each_norm_is_checked_in_its_own_right(build, open_references, tmp_path) -> None:
    found = list(check(KNOWN, colours(), build, open_references, FeatureStore(tmp_path)))
    assert [one.met for one in found] == [True, False]
    assert found[0].percent == 100
    assert lines(KNOWN, found)[0].endswith("met")
    assert lines(KNOWN, found)[1].endswith("NOT MET")


def test_other_data_than_the_answers_are_of_are_refused(build, open_references, tmp_path) -> None:
    with pytest.raises(
        DataError, match=r"40 training images and 40 test images, but colours has 2, 20 and 20; give colours"
    ):
        next(check(KNOWN, colours(20), build, open_references, FeatureStore(tmp_path)))


@pytest.mark.parametrize("part", ["test", "train"])
def test_an_image_that_cannot_be_read_is_named_since_answers_are_for_all(
    build, open_references, tmp_path, part
) -> None:
    dataset = colours()
    split = getattr(dataset, part)
    broken = dataclasses.replace(split, load=lambda row: b"" if row in {3, 7} else split.load(row))
    with pytest.raises(
        DataError, match=rf"2 images could not be read, for one {split.names[3]}: .* are for all 40, so repair"
    ):
        next(
            check(KNOWN, dataclasses.replace(dataset, **{part: broken}), build, open_references, FeatureStore(tmp_path))
        )


def test_what_is_known_is_of_backbones_there_are() -> None:
    table = json.loads((known_answers.resources.files("mimeval") / "known_answers.json").read_text())
    assert {row["model"] for row in table} >= {"mae-b16", "mae-l16", "mae-tiny"}
    assert {row["model"] for row in table} <= ALIASES.keys()
    assert find("mae-b16").answers[0].percent == 35.57
    with pytest.raises(UnknownNameError, match="unknown backbone with known answers 'mae-b'; did you mean mae-b16"):
        find("mae-b")


@pytest.mark.parametrize(("percent", "status"), [(35.2, 0), (16.1, 1)])
def test_the_exit_status_says_whether_all_are_met(monkeypatch, tmp_path, percent, status) -> None:
    answer = Answer(agg="cls", token_norm="raw", percent=35.57, tolerance=1)
    monkeypatch.setattr(known_answers, "check", lambda *_: [AnswerCheck(answer, percent)])
    workshop = SimpleNamespace(open=None, build_plain=None, device_text="cpu", accelerator=None)
    arguments = ["mae-tiny", "--data", "drawn", "--cache", str(tmp_path)]
    done = CliRunner().invoke(command, arguments, obj=lambda weights, heads, device: workshop, standalone_mode=False)
    assert done.return_value == status
    assert "cls raw" in done.output
