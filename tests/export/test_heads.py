"""Heads are stored whole, read strictly, and refused where they do not fit."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from catalogue import built, exported_as

from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone, Shape
from mimexport.composition import choose_head, compose
from mimexport.errors import HeadError
from mimexport.heads import Head, check_fit, embedded_heads, load_head, save_head
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.published_heads import fetch_ep_head, load_published_head
from mimexport.weights import load_model
from mimruntime.errors import OptionError, OutputError, UnknownNameError

SHAPE = Shape(dim=48, grid=(4, 4), prefix=1, has_cls=True)


pytestmark = pytest.mark.usefixtures("small_alias")


@pytest.fixture
def loaded():
    return load_model("small", random_seed=0)


def head_for(loaded, **changes):
    torch.manual_seed(0)
    values = {
        "agg": "abmilp", "params": {"depth": 1, "activation": "tanh", "prior": "none"}, "token_norm": "raw", "dim": 48,
        "grid": (4, 4), "model": "small", "backbone_sha256": loaded.sha256,
        "tensors": {"scorer.0.weight": torch.randn(1, 48), "scorer.0.bias": torch.zeros(1)},
        "whitening": (torch.randn(48), torch.randn(48, 48)), "recipe": {"seed": 0}, "figures": {"knn": 1.5},
    }  # fmt: skip
    return Head(**values | changes)


def options(tmp_path, **changes):
    return BuildOptions(
        **{"model": "small", "agg": "abmilp", "out": tmp_path / "a", "random_seed": 0, "force": True} | changes
    )


def test_a_head_comes_back_as_it_was_saved(tmp_path, loaded):
    head = head_for(loaded)
    save_head(head, tmp_path / "deep" / "h.safetensors")
    again = load_head(tmp_path / "deep" / "h.safetensors")
    assert (again.params, again.token_norm, again.recipe, again.figures) == (
        head.params,
        "raw",
        {"seed": 0},
        {"knn": 1.5},
    )
    assert again.sha256(whitened=True) == head.sha256(whitened=True) != head.sha256(whitened=False)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["h.safetensors"]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path, loaded):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_head(head_for(loaded), tmp_path / "file" / "h.safetensors")


def test_a_head_that_is_not_shipped_is_answered_with_those_that_are():
    loaded = load_model("mae-tiny")
    options = BuildOptions(model="mae-tiny", agg="abmilp", out=Path("unused"), head="abmilp-unlabeled")
    with pytest.raises(
        UnknownNameError, match="unknown head of mae-tiny 'abmilp-unlabeled'; did you mean abmilp-unlabelled"
    ):
        choose_head(loaded, Backbone(loaded.model).shape, options)


def test_files_that_are_no_heads_are_refused(tmp_path, loaded):
    path = tmp_path / "h.safetensors"
    with pytest.raises(HeadError, match="no head file at"):
        load_head(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(HeadError, match="not a head of this program"):
        load_head(path)
    save_head(head_for(loaded), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HeadError, match="is not a readable head"):
        load_head(path)
    path.write_bytes(whole.replace(b'\\"schema\\":2', b'\\"schema\\":7'))
    with pytest.raises(HeadError, match=r"schema 7.*upgrade mimexport"):
        load_head(path)


def test_a_head_of_other_weights_width_or_norm_is_refused_with_the_reason(loaded):
    check_fit(head_for(loaded), loaded, SHAPE, None)
    with pytest.raises(HeadError, match="tokens of width 64, small has 48"):
        check_fit(head_for(loaded, dim=64), loaded, SHAPE, None)
    with pytest.raises(
        HeadError, match=r"fitted on small \(.*not on these weights.*mimexport fit --model small --agg abmilp"
    ):
        check_fit(head_for(loaded, backbone_sha256="0" * 64), loaded, SHAPE, None)
    with pytest.raises(HeadError, match=r"fitted on 4×4 patches, but this input has 6×6; .* leave --image-size out"):
        check_fit(head_for(loaded), loaded, replace(SHAPE, grid=(6, 6)), None)
    with pytest.raises(HeadError, match=r"fitted on other \(0000.*not on these weights of small"):
        check_fit(head_for(loaded, model="other", backbone_sha256="0" * 64, grid=(9, 9)), loaded, SHAPE, None)
    with pytest.raises(HeadError, match="fitted on raw tokens; leave --token-norm final out"):
        check_fit(head_for(loaded), loaded, SHAPE, "final")


def test_a_learned_aggregator_without_a_head_says_how_to_fit_one(tmp_path, loaded):
    with pytest.raises(
        HeadError, match="this package has none for small; fit one: mimexport fit --model small --agg abmilp"
    ):
        compose(loaded, options(tmp_path))
    with pytest.raises(HeadError, match="--agg abmilp --keep 50% --keep-by norm --data FOLDER"):
        compose(load_model("small", random_seed=0), options(tmp_path, keep="50%", keep_by="norm"))


def test_a_whitening_that_is_not_there_or_too_wide_is_refused(tmp_path, loaded):
    with pytest.raises(HeadError, match="--whiten needs a head with a whitening for small and mean; fit one"):
        compose(loaded, options(tmp_path, agg="mean", whiten=0))
    save_head(head_for(loaded), tmp_path / "h.safetensors")
    with pytest.raises(OptionError, match="--whiten 49: the whitening has only 48 dimensions"):
        compose(load_model("small", random_seed=0), options(tmp_path, head=str(tmp_path / "h.safetensors"), whiten=49))


def test_a_head_of_another_aggregator_or_of_other_options_is_refused(tmp_path, loaded):
    path = tmp_path / "h.safetensors"
    save_head(head_for(loaded), path)
    with pytest.raises(HeadError, match="is for aggregator abmilp, but --agg is ep"):
        compose(loaded, options(tmp_path, agg="ep", head=str(path)))
    save_head(head_for(loaded, tensors={"scorer.0.weight": torch.zeros(1, 48)}), path)
    with pytest.raises(HeadError, match=r"does not fit aggregator abmilp: .*scorer\.0\.bias"):
        compose(load_model("small", random_seed=0), options(tmp_path, head=str(path)))


def test_a_head_that_adds_nothing_leaves_the_space_and_the_graph_as_they_are(tmp_path, loaded, monkeypatch):
    """That of an aggregator which learns nothing holds a whitening alone."""
    save_head(head_for(loaded, agg="mean", params={}, tensors={}), tmp_path / "h.safetensors")
    without = built(model="small", agg="mean", random_seed=0)
    plain, ports = without.manifest, (without.manifest.graph.inputs, without.manifest.graph.outputs)
    monkeypatch.setattr(
        "mimexport.graph.export_graph", lambda _, stage, size: shutil.copy(without.graph, stage) and ports
    )
    given = build(options(tmp_path, agg="mean", head=str(tmp_path / "h.safetensors"))).manifest
    assert given.parity == plain.parity
    assert given.aggregator.head_sha256 is None
    assert given.embedding_space == plain.embedding_space


@pytest.mark.parametrize("whiten", [None, 0, 20])
def test_a_head_is_built_into_the_graph(tmp_path, loaded, whiten):
    """Its whitening, that is: without it, see below; with all of its dimensions, the records say so."""
    head = head_for(loaded)
    save_head(head, tmp_path / "h.safetensors")
    donor = contextlib.nullcontext() if whiten else exported_as(built(model="small", agg="mean", random_seed=0))
    with donor:
        artifact = build(options(tmp_path, head=str(tmp_path / "h.safetensors"), whiten=whiten))
    assert artifact.manifest.embedding.dim == (whiten or 48)
    assert artifact.manifest.aggregator.head_sha256 == head.sha256(whitened=whiten is not None)
    assert (artifact.manifest.embedding.whitening is None) == (whiten is None)
    assert artifact.manifest.parity.worst_cosine >= 0.99999


@pytest.mark.parametrize(
    ("agg", "params"), [("abmilp", {"depth": 2, "prior": "center"}), ("ep", {}), ("simpool", {}), ("aim", {"heads": 3})]
)
def test_every_learned_aggregator_is_the_same_in_the_graph(tmp_path, loaded, agg, params):
    torch.manual_seed(1)
    aggregator = make_aggregator(agg, SHAPE, params)
    head = head_for(loaded, agg=agg, params=aggregator.params, tensors=dict(aggregator.state_dict()), whitening=None)
    save_head(head, tmp_path / "h.safetensors")
    artifact = build(options(tmp_path, agg=agg, head=str(tmp_path / "h.safetensors"), with_selection=True))
    assert artifact.manifest.parity.worst_cosine >= 0.99999
    assert artifact.manifest.parity.worst_abs_diff < 1e-5


def beyond_cls(depth=1, prefix=""):
    layers = {}
    for i in range(depth):
        width = 1 if i == depth - 1 else 48
        layers[f"{prefix}0.attention_predictor.{2 * i}.weight"] = torch.randn(width, 48)
        layers[f"{prefix}0.attention_predictor.{2 * i}.bias"] = torch.randn(width)
    rest = {"0.pos_embed": torch.zeros(1, 17, 48), "1.running_mean": torch.zeros(48), "1.running_var": torch.ones(48)}
    return (
        layers | {f"{prefix}{key}": value for key, value in rest.items()} | {f"{prefix}2.weight": torch.zeros(10, 48)}
    )


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("prefix", ["", "head."])
def test_heads_of_beyond_cls_are_read(tmp_path, depth, prefix):
    torch.save({"model": beyond_cls(depth, prefix)}, tmp_path / "h.pth")
    head = load_published_head(tmp_path / "h.pth", SHAPE, None)
    assert (head.agg, head.params["depth"], head.token_norm, head.dim) == ("abmilp", depth, "raw", 48)
    assert set(head.tensors) == {f"scorer.{2 * i}.{kind}" for i in range(depth) for kind in ("weight", "bias")}


def ep(tmp_path, **meta):
    state = {"0.cls_token": torch.randn(1, 8, 48), "0.v.weight": torch.randn(48, 48), "2.weight": torch.zeros(10, 48)}
    torch.save(
        {"state_dict": state, "meta": {"cls_features": "ep", "model": "mae_base"} | meta}, tmp_path / "ep_head.pth"
    )
    return tmp_path / "ep_head.pth", state


def test_heads_of_efficient_probing_are_read_and_give_its_formula(tmp_path, loaded):
    path, state = ep(tmp_path)
    head = load_published_head(path, SHAPE, "final")
    assert (head.agg, head.params, head.model) == ("ep", {"queries": 8, "d_out": 1}, "mae_base")
    model, _ = compose(loaded, options(tmp_path, agg="ep", head=str(path), token_norm="final"))
    x = torch.randn(2, 16, 48)
    attention = (state["0.cls_token"] @ x.transpose(1, 2) * 48**-0.5).softmax(-1)
    value = (x @ state["0.v.weight"].T).reshape(2, 16, 8, 6).permute(0, 2, 1, 3)
    expected = (attention.unsqueeze(2) @ value).reshape(2, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.aggregator.pool(x)[0], expected)


def test_what_an_ep_file_does_not_say_must_be_said(tmp_path):
    path, _ = ep(tmp_path)
    with pytest.raises(HeadError, match="does not record whether its tokens were raw or final; give --token-norm"):
        load_published_head(path, SHAPE, None)


def test_an_ep_head_that_reads_cls_is_refused(tmp_path):
    path, _ = ep(tmp_path, cls_features="ep_all")
    with pytest.raises(HeadError, match=re.escape("also pools [cls] (cls_features = ep_all)")):
        load_published_head(path, SHAPE, "raw")


def test_the_config_beside_an_ep_head_is_read_where_the_file_has_none(tmp_path):
    path, state = ep(tmp_path)
    torch.save(state, path)
    (tmp_path / "config.json").write_text(json.dumps({"cls_features": "ep_all"}))
    with pytest.raises(HeadError, match="ep_all"):
        load_published_head(path, SHAPE, "raw")


def test_a_checkpoint_of_another_kind_is_named_by_its_keys(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "h.pth")
    with pytest.raises(HeadError, match=r"holds fc\.weight; expected the keys 0\.attention_predictor"):
        load_published_head(tmp_path / "h.pth", SHAPE, None)


def test_a_published_head_out_of_reach_is_one_line(monkeypatch):
    def unreachable(*args):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(HeadError, match=r"the head 'mae_base' of .* could not be downloaded"):
        fetch_ep_head("mae_base")


@pytest.fixture(scope="module", params=["mae-tiny", "mae-small"])
def embedded(request):
    loaded = load_model(request.param)
    return loaded, Backbone(loaded.model).shape


def test_every_embedded_head_fits_its_embedded_backbone(embedded):
    loaded, shape = embedded
    heads = {name: load_head(path) for name, path in embedded_heads(loaded.name).items()}
    assert {"cls", "mean", "topk", "abmilp-unlabelled"} <= heads.keys()
    for head in heads.values():
        check_fit(head, loaded, shape, None)
        assert head.whitening is not None
        assert {"images", "seed"} <= head.recipe.keys() or head.recipe["objective"] == "whitening only"


@pytest.mark.parametrize(
    ("changes", "whitened"),
    [
        ({"agg": "topk"}, True),
        ({"agg": "ep"}, True),
        ({"agg": "abmilp", "head": "abmilp-unlabelled"}, True),
        ({"agg": "topk", "whiten_by_default": False}, False),
        ({"agg": "cls"}, False),
        ({"agg": "gem"}, False),
        ({"agg": "topk", "agg_options": {"k": "50%"}}, False),
        ({"agg": "mean", "token_norm": "final"}, False),
        ({"agg": "topk", "keep": "50%"}, False),
    ],
)
def test_a_shipped_whitening_is_applied_by_default_where_it_fits(tmp_path, changes, whitened):
    asked = BuildOptions(**{"model": "mae-tiny", "out": tmp_path, "whiten_by_default": True} | changes)
    model, _ = compose(load_model("mae-tiny"), asked)
    assert (model.whitening is not None) == whitened


def test_a_backbone_without_shipped_heads_is_not_whitened_by_default(tmp_path, loaded):
    assert compose(loaded, options(tmp_path, agg="topk", whiten_by_default=True))[0].whitening is None
