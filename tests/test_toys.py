"""Adding an aggregator, an engine, a metric or a family of backbones is one file, here in `toys/`, and a line in a table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from toys import aggregator, family, metric

import mimexport
from mimeval import metrics
from mimeval.metrics import Task, TrainingSet, decisive, find_metrics
from mimexport.aggregators import AGGREGATORS
from mimexport.families import FAMILIES
from mimexport.references import References
from mimruntime import Embedder, MimError, compile_engine, verify
from mimruntime.engines import ENGINES


@pytest.fixture(scope="module")
def mixer_artifact(tmp_path_factory):
    """A backbone that timm does not have, with an aggregator that this package does not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, family.Mixer, family.FAMILY)
        yield mimexport.build(
            family.load_mixer(), agg=aggregator.LengthWeighted(power=2.0), out=tmp_path_factory.mktemp("toys") / "mixer",
            with_selection=True,
        )  # fmt: skip


def test_a_backbone_and_an_aggregator_of_ones_own_become_an_artifact(mixer_artifact):
    record = mixer_artifact.manifest
    assert (record.aggregator.name, record.aggregator.params) == ("LengthWeighted", {"power": 2.0})
    assert (record.backbone.timm_name, record.backbone.source, record.backbone.license) == ("mixer", "memory", "mit")
    assert record.parity.worst_cosine > 0.99999
    with Embedder.open(mixer_artifact) as embedder:
        images = [np.full((40, 60, 3), 40 * value, np.uint8) for value in range(3)]
        assert embedder.embed(images).shape == (3, 24)
        assert embedder.select(images).sum(axis=(1, 2)) == pytest.approx(1, abs=1e-5)


def test_their_torch_model_is_found_again_by_what_was_given(mixer_artifact):
    with pytest.raises(MimError, match=r"References\(models=\[model\]\)"):
        References().open([mixer_artifact])
    mixer = family.load_mixer()
    with pytest.raises(MimError, match="'LengthWeighted' of mixer is not in this package and not among those given"):
        References(models=(mixer,), aggregators=(aggregator.LengthWeighted(power=3.0),)).open([mixer_artifact])
    (reference,) = References(models=(mixer,), aggregators=(aggregator.LengthWeighted(power=2.0),)).open(
        [mixer_artifact]
    )
    assert reference.run(np.zeros((1, 32, 32, 3), np.uint8))["embedding"].shape == (1, 24)


def test_an_aggregator_in_the_table_is_a_name(monkeypatch, tmp_path):
    monkeypatch.setitem(FAMILIES, family.Mixer, family.FAMILY)
    monkeypatch.setitem(AGGREGATORS, "length-weighted", aggregator.LengthWeighted)
    artifact = mimexport.build(
        family.load_mixer(), agg="length-weighted", agg_options={"power": 0.5}, out=tmp_path / "a"
    )
    assert (artifact.manifest.aggregator.name, artifact.manifest.aggregator.params) == (
        "length-weighted",
        {"power": 0.5},
    )


def test_an_engine_in_the_table_compiles_opens_and_is_verified(monkeypatch, toy_copy):
    monkeypatch.setitem(ENGINES, "numpy", "toys.numpy_engine")
    assert verify(toy_copy, engine="numpy").parity.worst_cosine > 0.99999
    compiled = compile_engine(toy_copy, "numpy")
    with Embedder.open(toy_copy, engine="numpy") as embedder:
        assert embedder.describe().compiled == compiled.folder.name


def test_a_metric_in_the_table_is_measured_and_may_decide(monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "centre", metric.METRIC)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 5)
    features = np.eye(8, dtype=np.float32)[labels] + 0.1 * rng.standard_normal((20, 8)).astype(np.float32)
    (found,) = find_metrics(("centre",), SimpleNamespace(train=labels, name="made")).values()
    scores = found.score(Task(labels, {}), TrainingSet(features, labels), None, features)
    assert scores["nearest centre"].all()
    assert decisive(scores, {"centre": found}) == ("nearest centre", found)


@pytest.mark.parametrize(
    "toy", sorted((Path(__file__).with_name("support") / "toys").glob("*.py")), ids=lambda path: path.stem
)
def test_no_toy_is_longer_than_sixty_lines(toy):
    assert len(toy.read_text().splitlines()) <= 60
