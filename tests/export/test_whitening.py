"""Whitening does what its formula says."""

import numpy as np
import pytest
import torch

from mimexport.errors import FitError
from mimexport.whitening import Whitening, fit_pca, fit_two_view


def skewed(count, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy((rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) + 3).astype(np.float32))


def test_pca_without_shrinkage_gives_unit_covariance():
    x = skewed(5000)
    mean, matrix = fit_pca(x, 0)
    torch.testing.assert_close(torch.cov(((x - mean) @ matrix).T), torch.eye(12), atol=2e-3, rtol=0)


def test_full_shrinkage_only_rotates_and_scales():
    x = skewed(5000)
    _, matrix = fit_pca(x, 1.0)
    gram = matrix.T @ matrix
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(12), atol=1e-4, rtol=0)


def test_columns_come_by_falling_variance():
    x = skewed(5000)
    mean, matrix = fit_pca(x, 0)
    directions = matrix / matrix.norm(dim=0)
    variances = ((x - mean) @ directions).var(0)
    assert (variances[:-1] >= variances[1:] * 0.999).all()


def test_two_view_whitening_turns_down_what_views_change():
    """Channel 0 tells images apart, channel 1 is as large but differs between the views of one image."""
    rng = np.random.default_rng(0)
    stable = rng.normal(size=(3000, 1))
    views = [torch.from_numpy(np.hstack([stable, rng.normal(size=(3000, 1))]).astype(np.float32)) for _ in range(2)]
    mean, matrix = fit_two_view(torch.cat(views), *views, shrinkage=0.003)
    first = (views[0] - mean) @ matrix
    gain = [abs(np.corrcoef(first[:, i], stable[:, 0])[0, 1]) for i in range(2)]
    assert gain[0] > 0.99
    assert first[:, 0].std() > 10 * first[:, 1].std()


def test_the_layer_is_the_map_and_keeps_the_first_dimensions():
    x = skewed(500)
    mean, matrix = fit_pca(x, 0.01)
    torch.testing.assert_close(Whitening(mean, matrix)(x), (x - mean) @ matrix, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(Whitening(mean, matrix, 5)(x), ((x - mean) @ matrix)[:, :5], atol=1e-4, rtol=1e-4)


def test_too_few_or_broken_features_are_refused():
    with pytest.raises(FitError, match="at least 2 vectors, got 1"):
        fit_pca(skewed(1), 0)
    broken = skewed(10)
    broken[3, 3] = float("nan")
    with pytest.raises(FitError, match="features hold NaN or infinite values"):
        fit_two_view(skewed(10), broken, skewed(10), 0.003)
