"""The backbones people name, each with every aggregator it can have, equal torch."""

import itertools

import numpy as np
import pytest
import timm
import torch
from small_models import BACKBONES

from mimexport.aggregators import AGGREGATORS, make_aggregator
from mimexport.aliases import ALIASES, Alias
from mimexport.backbone import Backbone
from mimexport.heads import Head, save_head
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.weights import load_model
from mimruntime.engines import open_engine
from mimruntime.errors import OptionError
from mimruntime.reference import load_reference

WITHOUT_CLS = ("ijepa", "hiera", "siglip")
WORST = {"fp32": 0.99999, "fp16": 0.999}
MATRIX = [
    (backbone, agg)
    for backbone, agg in itertools.product(BACKBONES, AGGREGATORS)
    if not (AGGREGATORS[agg].needs_cls and any(part in backbone for part in WITHOUT_CLS))
]


def random_head(model, agg, folder):
    """Return a head file of random numbers, or None where the aggregator learns nothing."""
    if not AGGREGATORS[agg].needs_head:
        return None
    loaded = load_model(model, random_seed=0)
    shape = Backbone(loaded.model).shape
    aggregator = make_aggregator(agg, shape, {})
    generator = torch.Generator().manual_seed(0)
    # As large as in a fitted head: small scores would make every selection the mean.
    tensors = {
        name: torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5
        for name, value in aggregator.state_dict().items()
    }
    head = Head(
        agg=agg, params=aggregator.params, token_norm=aggregator.token_norm, dim=shape.dim, grid=shape.grid,
        model=loaded.name, backbone_sha256=loaded.sha256, tensors=tensors, whitening=None, recipe={}, figures={},
    )  # fmt: skip
    save_head(head, folder / "head.safetensors")
    return str(folder / "head.safetensors")


def shallow(monkeypatch, name, **narrower):
    """Register `name` with few blocks, so that a build takes seconds."""
    cfg = timm.models.get_pretrained_cfg(name)
    kwargs = BACKBONES[name] | narrower
    monkeypatch.setitem(ALIASES, "shallow", Alias(name, cfg.input_size[-1], 0, 0, 0, cfg.license, kwargs=kwargs))
    return "shallow"


def check(artifact, precision):
    parity = artifact.manifest.parity
    assert parity.worst_cosine >= WORST[precision]
    assert parity.deterministic
    # Vectors of a random network lie close together; the differences between images must survive too.
    _, reference = load_reference(artifact)
    spread = np.abs(reference - reference.mean(0)).max()
    if precision == "fp32":
        assert parity.worst_abs_diff < 0.02 * spread


LIKE_ANOTHER = ("vit_base_patch16_224.mae", "vit_huge_patch14_gap_224.in22k_ijepa")
"""Those of `BACKBONES` that the graph tells from another by size alone, or by the missing [cls]."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_ANOTHER else [])
        for name in BACKBONES
        if "large" not in name  # narrow, it is the base again
    ],
)
def test_every_class_builds_with_the_default_aggregator(name, tmp_path, monkeypatch):
    """At a tenth of its width, its grid and all that sets the classes apart as they are."""
    torch.manual_seed(0)
    narrow = {"embed_dim": 24} if "hiera" in name else {"embed_dim": 96, "num_heads": 3}
    model = shallow(monkeypatch, name, **narrow)
    artifact = build(BuildOptions(model=model, agg="topk", out=tmp_path / "a", random_seed=0))
    check(artifact, "fp32")
    assert artifact.manifest.graph.last_block == "reduced"


@pytest.mark.slow
@pytest.mark.parametrize("precision", WORST)
@pytest.mark.parametrize(("name", "agg"), MATRIX)
def test_every_class_builds_with_every_aggregator(name, agg, precision, tmp_path, monkeypatch):
    model = shallow(monkeypatch, name)
    options = BuildOptions(
        model=model,
        agg=agg,
        out=tmp_path / "a",
        random_seed=0,
        precision=precision,
        head=random_head(model, agg, tmp_path),
    )
    check(build(options), precision)


@pytest.mark.slow
@pytest.mark.parametrize("precision", WORST)
@pytest.mark.parametrize(("keep", "by"), [("50%", "center-checkerboard"), ("75%@0,50%@1", "center-norm")])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_class_builds_with_fewer_patches_or_says_that_it_cannot(name, keep, by, precision, tmp_path, monkeypatch):
    options = BuildOptions(
        model=shallow(monkeypatch, name), agg="topk", out=tmp_path / "a", random_seed=0, precision=precision,
        keep=keep, keep_by=by,
    )  # fmt: skip
    if "hiera" in name:
        with pytest.raises(OptionError, match="Hiera pools neighbouring patches"):
            build(options)
        return
    artifact = build(options)
    check(artifact, precision)
    images, reference = load_reference(artifact)
    with open_engine("openvino", artifact.graph) as engine:
        cosines = (engine.run(images)["embedding"] * reference).sum(1)
    assert cosines.min() >= WORST[precision]
    rows, columns = artifact.manifest.backbone.grid
    assert artifact.manifest.aggregator.params["k"] == round(0.75 * round(0.5 * rows * columns))


@pytest.mark.slow
@pytest.mark.parametrize("precision", WORST)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_class_builds_at_full_depth(name, precision, tmp_path):
    check(
        build(BuildOptions(model=name, agg="topk", out=tmp_path / "a", random_seed=0, precision=precision)), precision
    )
