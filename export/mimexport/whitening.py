"""Whitening: a linear map fitted on unlabelled images that makes cosine similarity more accurate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimexport.errors import FitError


class Whitening(nn.Module):
    """(x - mean) @ matrix, as one linear layer.

    Args:
        mean: (D',).
        matrix: (D', d), columns by falling importance.
        dim: keep only the first `dim` columns; None keeps all.
    """

    def __init__(self, mean: Tensor, matrix: Tensor, dim: int | None = None) -> None:
        super().__init__()
        matrix = matrix[:, :dim]
        self.linear = nn.Linear(*matrix.shape)
        self.linear.weight = nn.Parameter(matrix.T.contiguous(), requires_grad=False)
        self.linear.bias = nn.Parameter(-mean @ matrix, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return whitened vectors (B, d) of vectors (B, D')."""
        return self.linear(x)


def fit_pca(x: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and matrix (D, D) that give vectors like `x` (n, D) about unit variance in every direction.

    Variances are shrunk towards their mean by `shrinkage`, so that noisy directions are not amplified.

    Raises:
        FitError: there are fewer than two vectors, or values are not finite.
    """
    _check(x)
    mean = x.mean(0)
    centred = (x - mean).double()
    # A table of D x D; decomposed on the CPU, so that the signs of the axes do not depend on the device.
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(x)).cpu())
    values, vectors = values.flip(0), vectors.flip(1)
    scale = ((1 - shrinkage) * values + shrinkage * values.mean()).clamp_min(1e-12).rsqrt()
    return mean, (vectors * scale).float().to(x.device)


def fit_two_view(x: Tensor, first: Tensor, second: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and matrix (D, D) of a whitening that favours what two views of one image share.

    It is linear discriminant analysis with each image as a class, without labels. The total variance becomes one. Axes are
    sorted by rising within-image share w_k of the variance, and each is scaled by its between-image share 1 - w_k. This
    reduces directions that random crops change (position, scale, background).

    Args:
        x: vectors (n, D) of whole images.
        first: vectors (m, D) of one random view of each of m images.
        second: vectors (m, D) of another view of the same images.
        shrinkage: of the variances of `x`, as in `fit_pca`.

    Raises:
        FitError: there are fewer than two vectors, or values are not finite.
    """
    for part in (x, first, second):
        _check(part)
    mean, whiten = fit_pca(x, shrinkage)
    a, b = (((part - mean) @ whiten).double() for part in (first, second))
    difference = a - b
    within = (difference.T @ difference / (2 * len(a))).cpu()
    total = torch.cov(torch.cat([a, b]).T).cpu()
    inverse = torch.linalg.inv(torch.linalg.cholesky(total + 1e-4 * torch.eye(len(total), dtype=total.dtype)))
    shares, axes = torch.linalg.eigh(inverse @ within @ inverse.T)
    return mean, whiten @ (inverse.T @ axes * (1 - shares).clamp_min(0)).float().to(x.device)


def _check(x: Tensor) -> None:
    if len(x) < 2:
        raise FitError(f"whitening needs at least 2 vectors, got {len(x)}; give more images")
    if not bool(x.isfinite().all()):
        raise FitError("the features hold NaN or infinite values; check the backbone and its weights")
