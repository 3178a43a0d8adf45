"""Every aggregator equals a plain reimplementation in numpy, and its options are checked."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import images_for, make_small, opened

from mimexport.aggregators import AGGREGATORS, make_aggregator
from mimexport.aggregators.topk import SCORES
from mimexport.backbone import Shape
from mimexport.counts import parse_count
from mimexport.features import ComputedFeatures
from mimruntime.errors import OptionError, UnknownNameError

NO_CLS = Shape(dim=8, grid=(4, 4), prefix=0, has_cls=False)


@pytest.fixture(scope="module")
def parts():
    """One batch: features, and as numpy what a reimplementation reads."""
    model = make_small("vit with registers")
    backbone, tokens = opened(model, images_for(model, 4))
    features = ComputedFeatures(backbone, tokens, None)
    cls, patches = (x.detach().numpy().astype(np.float64) for x in features.cls_and_patches)
    with torch.no_grad():
        attention = features.cls_attention.numpy().astype(np.float64)
    entering = features.entering.numpy().astype(np.float64)
    return features, cls, patches, attention, entering


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_cls(cls, patches, attention, entering, state):
    return cls


def numpy_mean(cls, patches, attention, entering, state):
    return patches.mean(1)


def numpy_cls_mean(cls, patches, attention, entering, state):
    return np.concatenate([unit(cls), unit(patches.mean(1))], axis=-1)


def numpy_max(cls, patches, attention, entering, state):
    return patches.max(1)


def numpy_gem(cls, patches, attention, entering, state):
    return (np.maximum(patches, 1e-6) ** 3).mean(1) ** (1 / 3)


def numpy_center(cls, patches, attention, entering, state):
    return patches.reshape(-1, 4, 4, patches.shape[-1])[:, 1:3, 1:3].mean((1, 2))


def numpy_attn_mean(cls, patches, attention, entering, state):
    weights = attention.mean(1)
    return np.einsum("bn,bnd->bd", weights / weights.sum(-1, keepdims=True), patches)


def numpy_attn_min_entropy(cls, patches, attention, entering, state):
    entropy = -(attention * np.log(attention)).sum(-1)
    weights = np.stack([heads[chosen] for heads, chosen in zip(attention, entropy.argmin(1), strict=True)])
    return np.einsum("bn,bnd->bd", weights, patches)


def numpy_topk(cls, patches, attention, entering, state, k=12):
    y, x = np.mgrid[0:4, 0:4] - 1.5
    near = 1 - np.hypot(x, y).ravel() / np.hypot(1.5, 1.5)
    order = np.argsort(-np.linalg.norm(entering, axis=-1) * near, axis=1)[:, :k]
    return np.take_along_axis(patches, order[..., None], 1).mean(1)


def numpy_center_weighted(cls, patches, attention, entering, state):
    y, x = np.mgrid[0:4, 0:4] - 1.5
    near = 1 - np.hypot(x, y).ravel() / np.hypot(1.5, 1.5)
    return np.einsum("n,bnd->bd", near / near.sum(), patches)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_abmilp(cls, patches, attention, entering, state):
    scores = patches @ state["scorer.0.weight"][0] + state["scorer.0.bias"]
    return np.einsum("bn,bnd->bd", softmax(scores), patches)


def numpy_ep(cls, patches, attention, entering, state):
    queries, value = state["queries"], state["value.weight"]
    slices = np.split(patches @ value.T, len(queries), axis=-1)
    pooled = []
    for query, part in zip(queries, slices, strict=True):
        weights = softmax(patches @ query / np.sqrt(patches.shape[-1]))
        pooled.append(np.einsum("bn,bnd->bd", weights, part))
    return np.concatenate(pooled, axis=-1)


def numpy_simpool(cls, patches, attention, entering, state):
    centred = patches - patches.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    normed = normed * state["norm.weight"] + state["norm.bias"]
    query = patches.mean(1) @ state["query.weight"].T
    scores = np.einsum("bnd,bd->bn", normed @ state["key.weight"].T, query) / np.sqrt(patches.shape[-1])
    return np.einsum("bn,bnd->bd", softmax(scores), normed)


def numpy_aim(cls, patches, attention, entering, state):
    x = patches / state["std"]
    keys, values = (np.split(x @ state[f"{name}.weight"].T, 3, axis=-1) for name in ("key", "value"))
    pooled = []
    for query, key, value in zip(state["query"], keys, values, strict=True):
        pooled.append(np.einsum("bn,bnd->bd", softmax(key @ query / np.sqrt(len(query))), value))
    return np.concatenate(pooled, axis=-1)


PLAIN = {
    "cls": numpy_cls,
    "mean": numpy_mean,
    "cls+mean": numpy_cls_mean,
    "max": numpy_max,
    "gem": numpy_gem,
    "center": numpy_center,
    "attn-mean": numpy_attn_mean,
    "attn-min-entropy": numpy_attn_min_entropy,
    "topk": numpy_topk,
    "center-weighted": numpy_center_weighted,
    "abmilp": numpy_abmilp,
    "ep": numpy_ep,
    "simpool": numpy_simpool,
    "aim": numpy_aim,
}
WEIGHTED_MEAN = {"mean", "center", "center-weighted", "attn-mean", "attn-min-entropy", "topk", "abmilp"}
"""Those whose vector is Σ weights_i x_i of the patches themselves."""


def shaken(name, shape, options=None):
    """The aggregator with every learned parameter at random."""
    torch.manual_seed(3)
    aggregator = make_aggregator(name, shape, options or {})
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if name == "aim":
            aggregator.std.uniform_(0.5, 2)
    return aggregator


@pytest.mark.parametrize("name", AGGREGATORS)
def test_it_equals_a_reimplementation_in_numpy(name, parts):
    features, *plain = parts
    with torch.no_grad():
        aggregator = shaken(name, features.shape, {"heads": 3} if name == "aim" else None)
        vector = aggregator(features).vector.numpy()
    state = {key: value.numpy().astype(np.float64) for key, value in aggregator.state_dict().items()}
    np.testing.assert_allclose(vector, PLAIN[name](*plain, state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_its_width_and_weights_are_what_it_declares(name, parts):
    features = parts[0]
    aggregator = shaken(name, features.shape)
    with torch.no_grad():
        pooled = aggregator(features)
    assert pooled.vector.shape == (4, aggregator.width)
    assert (pooled.weights is not None) == aggregator.has_weights
    if pooled.weights is not None:
        assert pooled.weights.shape == (4, features.shape.patches)
        torch.testing.assert_close(pooled.weights.sum(1), torch.ones(4))
    if name in WEIGHTED_MEAN:
        expected = (features.patches * pooled.weights.unsqueeze(-1)).sum(1)
        torch.testing.assert_close(pooled.vector, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_topk_of_all_patches_is_the_mean(score, parts):
    features = parts[0]
    with torch.no_grad():
        everything = make_aggregator("topk", features.shape, {"k": "100%", "score": score})(features).vector
        mean = make_aggregator("mean", features.shape, {})(features).vector
    torch.testing.assert_close(everything, mean)


def test_topk_of_one_is_the_best_patch(parts):
    features, _, patches, attention, entering = parts
    best = {
        "norm": np.linalg.norm(patches, axis=-1),
        "input-norm": np.linalg.norm(entering, axis=-1),
        "center-norm": np.linalg.norm(entering, axis=-1)
        * make_aggregator("center-weighted", features.shape, {}).weights.numpy(),
        "cls-attention": attention.mean(1),
    }
    assert best.keys() == SCORES.keys()
    for score, values in best.items():
        with torch.no_grad():
            vector = make_aggregator("topk", features.shape, {"k": "1", "score": score})(features).vector
        np.testing.assert_allclose(vector.numpy(), patches[np.arange(4), values.argmax(1)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, kind in AGGREGATORS.items() if kind.needs_cls])
def test_without_cls_it_says_what_to_use_instead(name):
    with pytest.raises(OptionError, match=r"reads \[cls\], which this backbone does not have; use one of: mean"):
        make_aggregator(name, NO_CLS, {})


def test_a_score_that_needs_cls_says_so():
    with pytest.raises(OptionError, match=r"cls-attention needs a \[cls\] token.*use --score input-norm"):
        make_aggregator("topk", NO_CLS, {"score": "cls-attention"})


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown aggregator 'tokp'; did you mean topk"):
        make_aggregator("tokp", NO_CLS, {})
    with pytest.raises(UnknownNameError, match="unknown score 'imput-norm'; did you mean input-norm"):
        make_aggregator("topk", NO_CLS, {"score": "imput-norm"})


def test_an_option_of_another_aggregator_is_refused():
    with pytest.raises(OptionError, match="aggregator mean takes no options; k was given"):
        make_aggregator("mean", NO_CLS, {"k": "4", "score": None})


@given(k=st.integers(1, 300), patches=st.integers(1, 300))
def test_a_count_means_itself_up_to_all_patches(k, patches):
    if k <= patches:
        assert parse_count("--k", str(k), patches) == k
    else:
        with pytest.raises(OptionError, match=f"from 1 to {patches}"):
            parse_count("--k", str(k), patches)


@given(share=st.floats(1, 100), patches=st.integers(100, 3000))
def test_a_share_means_that_share_of_the_patches(share, patches):
    assert abs(parse_count("--k", f"{share}%", patches) - share * patches / 100) <= 0.5


@pytest.mark.parametrize("text", ["0", "0%", "-3", "17", "101%", "2.5", "half", "", "%", "nan", "nan%", "inf", "inf%"])
def test_a_k_that_means_no_number_of_patches_is_refused(text):
    with pytest.raises(OptionError, match=r"expected a count from 1 to 16 or a share such as 50%"):
        parse_count("--k", text, 16)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_deeper_abmilp_scores_with_a_small_network(parts, depth, activation):
    features, _, patches, _, _ = parts
    aggregator = shaken("abmilp", features.shape, {"depth": depth, "activation": activation})
    x = patches
    for i, layer in enumerate(aggregator.layers):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if i < depth - 1:
            x = np.tanh(x) if activation == "tanh" else np.maximum(x, 0)
    with torch.no_grad():
        weights = aggregator(features).weights.numpy()
    np.testing.assert_allclose(weights, softmax(x[..., 0]), rtol=1e-4, atol=1e-6)


def test_the_center_prior_multiplies_the_weights_by_closeness(parts):
    features = parts[0]
    plain = shaken("abmilp", features.shape)
    prior = make_aggregator("abmilp", features.shape, {"prior": "center"})
    prior.load_state_dict(plain.state_dict())
    with torch.no_grad():
        weights = plain(features).weights * make_aggregator("center-weighted", features.shape, {}).weights
        expected = weights / weights.sum(1, keepdim=True)
        torch.testing.assert_close(prior(features).weights, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("abmilp", {}), ("abmilp", {"depth": 2}), ("ep", {}), ("ep", {"d_out": 2, "queries": 8})]
)
def test_rescaling_turns_parameters_for_scaled_tokens_into_those_for_tokens(parts, name, options):
    features = parts[0]
    spread = torch.rand(features.shape.dim) + 0.5
    aggregator = shaken(name, features.shape, options)
    with torch.no_grad():
        expected = aggregator(SimpleNamespace(shape=features.shape, patches=features.patches / spread))
        aggregator.rescale(spread)
        got = aggregator(features)
    torch.testing.assert_close(got.weights, expected.weights, atol=1e-5, rtol=1e-4)
    # What abmilp weighs are the tokens themselves; ep's values are learned on scaled ones.
    vector = expected.vector if name == "ep" else expected.vector * spread
    torch.testing.assert_close(got.vector, vector, atol=1e-4, rtol=1e-4)


def test_a_learned_score_picks_its_best_patches(parts):
    features, _, patches, _, _ = parts
    w = torch.randn(features.shape.dim)
    aggregator = make_aggregator("topk", features.shape, {"k": "3", "score": "learned"})
    aggregator.load_scorer(w)
    with torch.no_grad():
        chosen = aggregator(features).weights.numpy() > 0
    order = np.argsort(-(patches @ w.numpy()), axis=1)[:, :3]
    assert all(set(np.flatnonzero(row)) == set(best) for row, best in zip(chosen, order, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("abmilp", {"depth": 0}, "expected depth ≥ 1"),
        ("abmilp", {"activation": "gelu"}, "activation 'gelu'"),
        ("ep", {"queries": 7}, "queries = 7, d_out = 1, token width 48"),
        ("aim", {"heads": 5}, "heads = 5 must divide"),
    ],
)
def test_options_that_do_not_fit_the_width_are_refused(name, options, message, parts):
    with pytest.raises(OptionError, match=message):
        make_aggregator(name, parts[0].shape, options)


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("dim", [192, 384, 432, 768, 1024, 1280, 1408])
def test_its_defaults_fit_every_width_that_vision_transformers_have(name, dim):
    make_aggregator(name, Shape(dim=dim, grid=(14, 14), prefix=1, has_cls=True), {})


@pytest.mark.parametrize(("dim", "heads"), [(48, 1), (192, 3), (432, 6), (1024, 16), (1280, 20)])
def test_aim_has_heads_of_about_64_dimensions(dim, heads):
    assert make_aggregator("aim", Shape(dim=dim, grid=(2, 2), prefix=0, has_cls=False), {}).params == {"heads": heads}


@pytest.mark.parametrize("grid", [(2, 2), (1, 1), (3, 3), (4, 6)])
def test_no_two_patches_tie_for_being_far_from_the_centre(grid):
    """Else engines would choose among them each in its own way."""
    shape = Shape(dim=8, grid=grid, prefix=0, has_cls=False)
    energy = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, (5, grid[0] * grid[1])).astype(np.float32))
    topk = make_aggregator("topk", shape, {"k": "1"})
    for scores in SCORES["center-norm"](SimpleNamespace(entering_energy=energy), topk.closeness):
        assert len(set(scores.tolist())) == len(scores)
        assert all(score > 0 for score in scores)
    weights = make_aggregator("center-weighted", shape, {}).weights
    assert weights.isfinite().all()
    assert float(weights.sum()) == pytest.approx(1)
