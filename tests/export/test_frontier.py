"""The tool that measures early selection: its rows, the rival, and the share of a gain that is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from frontier_page import kept_gain
from frontier_rows import FULL, ROWS, Row
from small_models import make_small
from token_merging import Merged, MergingModel, merge_pairs

from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.embedding_model import EmbeddingModel, embed_with_torch

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def network(agg):
    backbone = Backbone(make_small("vit"))
    aggregator = make_aggregator(agg, backbone.shape, {})
    return EmbeddingModel(backbone, aggregator, "raw", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()


@pytest.mark.parametrize("agg", ["mean", "center-weighted"])
def test_without_a_pair_the_rival_is_the_plain_network(agg):
    merging = MergingModel(network(agg), (0, 0, 0), centered=agg == "center-weighted").eval()
    np.testing.assert_allclose(embed_with_torch(merging, PIXELS), embed_with_torch(network(agg), PIXELS), atol=1e-5)


def test_the_most_similar_pairs_become_their_weighted_mean_and_cls_stays():
    tokens = torch.arange(7.0)[None, :, None] * torch.ones(1, 1, 4)
    size, near = torch.tensor([[1.0, 1, 1, 3, 1, 1, 1]]), torch.zeros(1, 7)
    keys = torch.eye(7)[None]
    keys[0, 0] = keys[0, 1]  # [cls] is most like its neighbour, and does not merge all the same
    keys[0, 4] = keys[0, 3]
    merged = merge_pairs(Merged(tokens, size, near), keys, 1)
    assert merged.tokens[0, :, 0].tolist() == [0, 2, 6, 1, 3.25, 5]  # (3 · 3 + 1 · 4) / 4
    assert merged.size[0].tolist() == [1, 1, 1, 1, 4, 1]
    assert merge_pairs(Merged(tokens, size, near), keys, 2).size.sum() == size.sum()


def test_merging_loses_as_many_tokens_as_it_says():
    row = Row("merging", merge=(4, 2, 0))
    assert row.title == "ToMe 1 × 4, 1 × 2, 1 × 0"
    assert row.tokens(16, 3) == [16, 12, 10]
    model = row.merging(network("topk")).eval()
    assert embed_with_torch(model, PIXELS).shape == (3, 48)
    assert not np.allclose(embed_with_torch(model, PIXELS), embed_with_torch(network("mean"), PIXELS), atol=1e-3)


def test_every_row_has_a_name_of_its_own():
    assert len({row.folder for row in ROWS}) == len(ROWS)
    assert FULL.title == "everything"
    row = Row("fixed rule", "75%@0,50%@6", "center", size=56, agg="mean")
    assert row.title == "--image-size 56 --keep 75%@0,50%@6 --keep-by center --agg mean"
    assert row.tokens(64, 12) == [48] * 6 + [32] * 6


def test_the_gain_that_is_kept_is_a_share_of_the_full_encoders():
    cls, full = np.zeros(400, bool), np.zeros(400, bool)
    full[:200] = True
    value, low, high = kept_gain(np.arange(400) < 100, cls, full)
    assert value == 0.5
    assert 0.4 < low < value < high < 0.6
    assert kept_gain(full, cls, full) == (1, 1, 1)
