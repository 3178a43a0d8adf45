"""Learn a patch scorer without labels: each view of an image must retrieve the other view of it among other images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mimexport.device import CPU
from mimexport.errors import FitError
from mimexport.fitting.tokens import Tokens, as_tensor
from mimexport.whitening import fit_pca, fit_two_view

STEPS, BATCH, RATE, TEMPERATURE = 400, 512, 0.01, 0.05
SHRINKAGE = 0.003
"""Shrinkage of every fitted whitening; chosen on training images of Tiny ImageNet."""
_REFRESH, _REFRESH_IMAGES = 40, 3000
"""The whitening depends on the scorer: it is refitted every 40 steps on 3000 images."""
_TOKEN_IMAGES, _TOKEN_SHRINKAGE = 4000, 0.01
LEAST_IMAGES = 64
_CPU_CHUNK, _GPU_CHUNK = 64, 512
"""Number of images pooled at once. On a CPU their tokens in float32 should fit into its cache."""


def fit_scorer(
    first: Tokens,
    second: Tokens,
    *,
    seed: int,
    device: torch.device = CPU,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return w (D,), the scorer of s_i = w·x_i on raw patch tokens, and the recipe.

    Both views are pooled with softmax(s), whitened (`fit_two_view`, no gradient) and compared by InfoNCE: each view must
    pick the other view of its image within the batch. Only w is trained. Without the whitening, a few dominant directions
    of a masked autoencoder's tokens decide the loss and the scorer learns nothing useful.

    Args:
        first: tokens of one random view of n images.
        second: tokens of another random view of the same images.
        seed: the same seed gives the same scorer, on one device.
        device: computes; the scorer lies there.
        progress: called with steps done and in all.

    Raises:
        FitError: there are too few images, or features are not finite.
    """
    count = len(first)
    if count < LEAST_IMAGES:
        raise FitError(f"learning without labels needs at least {LEAST_IMAGES} images, got {count}")
    rng = np.random.default_rng(seed)
    # In this basis tokens have unit variance in every direction, so one learning rate suits all directions.
    basis = _token_basis(first, device)
    u = torch.zeros(basis.shape[0], device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([u], lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    batch = min(BATCH, count)
    loss = torch.zeros(())
    for step in range(STEPS):
        if step % _REFRESH == 0:
            rows = np.sort(rng.permutation(count)[:_REFRESH_IMAGES])
            with torch.no_grad():
                pooled = [pool_softmax(view, basis @ u, rows) for view in (first, second)]
            mean, matrix = fit_two_view(torch.cat(pooled), pooled[0], pooled[1], SHRINKAGE)
        rows = np.sort(rng.choice(count, batch, replace=False))
        z = [F.normalize((pool_softmax(view, basis @ u, rows) - mean) @ matrix, dim=1) for view in (first, second)]
        logits = z[0] @ z[1].T / TEMPERATURE
        target = torch.arange(batch, device=device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, STEPS)
    recipe = {
        "objective": "InfoNCE of two views in two-view-whitened space", "steps": STEPS, "batch": batch, "rate": RATE,
        "temperature": TEMPERATURE, "shrinkage": SHRINKAGE, "images": count, "seed": seed,
        "final_loss": round(float(loss.detach()), 4),
    }  # fmt: skip
    return (basis @ u).detach(), recipe


def pool_softmax(tokens: Tokens, w: Tensor, rows: np.ndarray) -> Tensor:
    """Return Σ softmax(w·x_i) x_i of the stored tokens `rows`, (len(rows), D)."""
    parts, chunk = [], _CPU_CHUNK if w.device.type == "cpu" else _GPU_CHUNK
    for part in np.array_split(rows, max(1, len(rows) // chunk)):
        x = as_tensor(tokens.patches[part], w.device).float()
        parts.append(((x @ w).softmax(1).unsqueeze(1) @ x)[:, 0])
    return torch.cat(parts)


def two_view_recall(first: Tensor, second: Tensor) -> float:
    """Return the recall@1 between views: how often the nearest second view is of the same image. It needs no labels.

    Args:
        first: vectors (n, D) of one view of n images.
        second: vectors (n, D) of another view of the same images.
    """
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)
    return float(((a @ b.T).argmax(1) == torch.arange(len(a), device=a.device)).float().mean())


def _token_basis(tokens: Tokens, device: torch.device) -> Tensor:
    x = as_tensor(tokens.patches[:_TOKEN_IMAGES], device).float().flatten(0, 1)
    return fit_pca(x, _TOKEN_SHRINKAGE)[1]
