"""The default token norm of an aggregator is decided for each backbone, and who takes the weaker one is told."""

import msgspec
import pytest

from mimexport.aliases import ALIASES
from mimexport.known_losses import BackboneFigures
from mimexport.norms import default_norm, known_norm, weaker_norm
from mimruntime import manifest as m
from mimruntime.artifact import Artifact

OURS = "a" * 64
MEASURED = [
    BackboneFigures(
        model="ours", weights_sha256=OURS, training=100, images=50, rows=[],
        norms={"cls": {"raw": 7.25, "final": 7.18}, "gem": {"raw": 11.0, "final": 12.0}},
    )
]  # fmt: skip


@pytest.mark.parametrize("model", ["mae-b16", "mae-l16"])
def test_on_published_backbones_raw_cls_is_the_default(model):
    assert default_norm("cls", ALIASES[model].timm_name, "") == "raw"
    assert default_norm("topk", ALIASES[model].timm_name, "") == "raw"
    assert known_norm("cls", ALIASES[model].timm_name, "", []).source == "published, ImageNet-1k"


def test_what_is_made_of_two_parts_takes_the_norm_both_are_better_with():
    assert default_norm("cls+mean", "vit_base_patch16_224.mae", "") == "raw"


def test_elsewhere_measurement_decides_and_without_any_the_aggregator():
    assert known_norm("gem", "vit_x", OURS, MEASURED).norm == "final"
    assert known_norm("cls", "vit_x", OURS, MEASURED).norm == "raw"
    assert known_norm("cls", "vit_x", "b" * 64, MEASURED) is None
    assert (default_norm("cls", "vit_x", "b" * 64), default_norm("mean", "vit_x", "b" * 64)) == ("final", "raw")


def test_the_weaker_norm_is_named_with_both_figures_and_their_source(toy_artifact):
    toy_manifest = Artifact.open(toy_artifact).manifest

    def manifest(agg: str, norm: str, **embedding) -> m.Manifest:
        replace = msgspec.structs.replace
        return replace(
            toy_manifest,
            backbone=replace(toy_manifest.backbone, model="ours", weights_sha256=OURS),
            aggregator=replace(toy_manifest.aggregator, name=agg, token_norm=norm),
            embedding=replace(toy_manifest.embedding, **embedding),
        )

    assert weaker_norm(manifest("cls", "final"), MEASURED) == (
        "--token-norm final is weaker for cls on ours: k-NN 7.2 %, with raw 7.2 % (measured on ours, 100 training images of"
        " Tiny ImageNet)"
    )
    assert "k-NN 11.0 %, with final 12.0 %" in weaker_norm(manifest("gem", "raw"), MEASURED)
    assert weaker_norm(manifest("cls", "raw"), MEASURED) is None
    assert weaker_norm(manifest("cls", "final", whitening="8 dimensions"), MEASURED) is None
    assert weaker_norm(manifest("topk", "final"), MEASURED) is None
