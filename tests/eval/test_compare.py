"""Of two ways to describe the same images the better one is named, and by how much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mimeval.comparison import Comparison, compare_artifacts
from mimeval.comparison_page import as_comparison_page
from mimeval.datasets import Dataset, Split
from mimeval.feature_comparison import compare_features
from mimeval.feature_store import Table
from mimeval.statistics import Interval
from mimexport.errors import WeightsError
from mimruntime.artifact import Artifact
from mimruntime.engines.opening import open_for
from mimruntime.manifest import embedding_space

TRAIN_LABELS, TEST_LABELS = np.arange(2).repeat(10), np.array([0, 1, 0, 1])
TRAIN = np.eye(2, dtype=np.float32)[TRAIN_LABELS]
TEST = {
    "A": np.eye(2, dtype=np.float32)[[0, 0, 1, 0]],  # the first image is right
    "B": np.eye(2, dtype=np.float32)[[0, 1, 0, 0]],  # the first three are
}


class HandMade:
    """A store that holds the features above, by the names of artifacts; those of the second token norm say nothing."""

    def tables(self, models, _images, rows, name):
        if name == "token norms of [cls]":
            blind = np.ones((len(rows), 2), np.float32)
            return [Table(table, None, {}, None) for table in (blind, TRAIN[rows])][: len(models)]
        table = TRAIN if name.endswith("training") else TEST[name[0]]
        return [Table(table[rows], None, {}, None)]


def named(path: Path, name: str, agg: str = "mean", norm: str = "raw") -> Artifact:
    opened = Artifact.open(path)
    aggregator = msgspec.structs.replace(opened.manifest.aggregator, name=agg, token_norm=norm)
    backbone = msgspec.structs.replace(opened.manifest.backbone, has_cls=True)
    manifest = msgspec.structs.replace(opened.manifest, name=name, backbone=backbone, aggregator=aggregator)
    space = embedding_space(backbone, aggregator, manifest.embedding, manifest.preprocess, manifest.keep)
    return replace(opened, manifest=msgspec.structs.replace(manifest, embedding_space=space))


def compared(first: Artifact, second: Artifact, **more) -> Comparison:
    test, train = (
        Split(tuple(map(str, range(len(labels)))), labels, lambda row: b"", "d")
        for labels in (TEST_LABELS, TRAIN_LABELS)
    )
    dataset = Dataset("made up", ("0", "1"), test, train)
    return compare_artifacts(first, second, dataset, engine="onnxruntime", metrics=("knn",), store=HandMade(), **more)


def test_the_difference_of_two_artifacts_is_that_of_the_second_from_the_first(toy_artifact) -> None:
    found = compared(named(toy_artifact, "A"), named(toy_artifact, "B"))
    row = found.rows[0]
    assert (row.metric, row.first.value, row.second.value, row.difference.value) == ("k-NN", 0.25, 0.75, 0.5)
    assert (row.mcnemar.only_first, row.mcnemar.only_second) == (0, 2)
    assert found.verdict().startswith(
        "No difference is shown. B finds the right class for 75.0 of 100 images, A for 25.0: +50.0 ["
    )
    assert found.verdict().endswith("images would decide it; 4 were seen.")
    clear = replace(found, rows=(replace(row, difference=Interval(-0.5, -0.6, -0.4)),))
    assert clear.verdict().startswith("A is better. A finds the right class for 25.0 of 100 images, B for 75.0")
    page = as_comparison_page(found)
    assert page.index("No difference is shown.") < page.index("<svg") < page.index("<dt>k-NN</dt>")
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_a_cls_that_the_other_token_norm_makes_stronger_is_named_in_the_verdict(toy_artifact) -> None:
    asked: list[list[str]] = []

    def open_references(artifacts):
        asked.append([artifact.manifest.aggregator.token_norm for artifact in artifacts])
        return [open_for(Artifact.open(toy_artifact), "onnxruntime") for _ in artifacts]

    cls, mean = named(toy_artifact, "A", "cls"), named(toy_artifact, "B")
    found = compared(cls, mean, open_references=open_references)
    assert asked == [["raw", "final"]]
    assert found.verdict().endswith(
        "But A reads the weaker token norm: k-NN of A final 100.0, of A 0.0 (+100.0 [+100.0, +100.0])"
        " on 20 training images, each left out in turn."
    )
    both = compared(cls, named(toy_artifact, "B", "cls", "final"), open_references=open_references)
    assert len(asked) == 1  # the two are compared already
    assert both.stronger == ()

    def lost(artifacts):
        raise WeightsError("no weights")

    assert compared(cls, mean, open_references=lost).notes == (
        "the other token norm of [cls] was not tried: no weights",
    )


@pytest.mark.parametrize("score", ["k-NN", "linear probe"])
def test_differences_are_counted_from_the_first_features(score) -> None:
    scores = compare_features({name: (TRAIN, table) for name, table in TEST.items()}, TRAIN_LABELS, TEST_LABELS)
    first, second = (found for found in scores if found.score == score)
    assert (first.features, first.accuracy.value, first.difference) == ("A", 0.25, None)
    assert (second.features, second.accuracy.value, second.difference.value) == ("B", 0.75, 0.5)
