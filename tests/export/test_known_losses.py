"""A build says where its choice is known to lose, and keeps silent otherwise."""

import msgspec
import pytest

from mimexport.aliases import ALIASES
from mimexport.known_losses import AggregatorFigures, BackboneFigures, describe_losses, read_measured
from mimruntime.artifact import Artifact
from mimruntime.manifest import Keep, KeepStage

OWN, ELSEWHERE = "own", "elsewhere"


def known(model, sha, *rows):
    return BackboneFigures(model=model, weights_sha256=sha, training=1, images=1, norms={}, rows=list(rows))


MEAN = AggregatorFigures(
    agg="mean", params={}, share=None, differences={"k-NN": (2.6, 1.9, 3.2), "linear probe": (-1.0, -1.8, -0.2)}
)
TABLE = [
    known(
        "mae-tiny",
        ELSEWHERE,
        MEAN,
        AggregatorFigures(agg="topk", params={"score": "norm"}, share=0.5, differences={"k-NN": (3.0, 2.4, 3.7)}),
        AggregatorFigures(agg="topk", params={"score": "norm"}, share=0.25, differences={"k-NN": (-2.0, -2.4, -1.7)}),
    )
]


@pytest.fixture
def manifest(toy_artifact):
    """Half of the 64 patches of the toy, by their norm."""
    return with_aggregator(Artifact.open(toy_artifact).manifest, "topk", score="norm", k=32)


def with_aggregator(manifest, name, **params):
    aggregator = msgspec.structs.replace(manifest.aggregator, name=name, params=params)
    return msgspec.structs.replace(manifest, aggregator=aggregator)


def test_a_loss_is_told_with_its_interval(manifest):
    line = describe_losses(with_aggregator(manifest, "mean"), TABLE)
    assert line == "this choice lost to [cls] when measured: linear probe -1.0 [-1.8, -0.2] on mae-tiny"


def test_what_was_measured_on_the_backbone_itself_is_what_counts(manifest):
    own = msgspec.structs.replace(with_aggregator(manifest, "mean").backbone, weights_sha256=OWN)
    chosen = msgspec.structs.replace(with_aggregator(manifest, "mean"), backbone=own)
    better = msgspec.structs.replace(MEAN, differences={"k-NN": (7.0, 6.2, 7.7)})
    assert describe_losses(chosen, [*TABLE, known("mae-small", OWN, better)]) is None
    both = [*TABLE, known("mae-small", OWN, MEAN)]
    assert describe_losses(chosen, both).endswith("linear probe -1.0 [-1.8, -0.2] on mae-small")
    assert describe_losses(with_aggregator(manifest, "mean"), both).endswith(
        "on mae-tiny; linear probe -1.0 [-1.8, -0.2] on mae-small"
    )


def test_the_same_score_is_told_apart_by_its_share_of_patches(manifest):
    assert describe_losses(manifest, TABLE) is None
    assert "k-NN -2.0" in describe_losses(with_aggregator(manifest, "topk", score="norm", k=16), TABLE)


def test_what_was_not_measured_or_is_whitened_is_not_judged(manifest):
    assert describe_losses(with_aggregator(manifest, "gem"), TABLE) is None
    whitened = msgspec.structs.replace(manifest.embedding, whitening="32 dimensions")
    assert (
        describe_losses(msgspec.structs.replace(with_aggregator(manifest, "mean"), embedding=whitened), TABLE) is None
    )


def test_figures_of_all_patches_are_not_told_of_an_encoder_that_drops_some(manifest):
    losing = next(
        row.agg for table in TABLE for row in table.rows if any(high < 0 for _, _, high in row.differences.values())
    )
    whole = with_aggregator(manifest, losing)
    kept = msgspec.structs.replace(whole, keep=Keep(stages=(KeepStage(block=0, patches=8),), by="center"))
    assert describe_losses(whole, TABLE)
    assert describe_losses(kept, TABLE) is None


@pytest.mark.parametrize("table", read_measured(), ids=lambda table: table.model)
def test_the_shipped_table_knows_the_poor_choices(table):
    poor = {row.agg for row in table.rows if any(high < 0 for _, _, high in row.differences.values())}
    assert "attn-min-entropy" in poor
    assert table.norms["cls"].keys() == {"raw", "final"}
    assert table.weights_sha256 == ALIASES[table.model].sha256
