"""Learn a head with labels: train the aggregator and a linear classifier on frozen tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mimexport.aggregators import Aggregator
from mimexport.aggregators.base import Preparable, Rescalable
from mimexport.backbone import Backbone
from mimexport.errors import FitError
from mimexport.fitting.stored_features import StoredFeatures
from mimexport.fitting.tokens import Tokens

RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates to try on a split of the training images."""
EPOCHS, TRIAL_EPOCHS = 12, 3
_BATCH = 512
_HELD_OUT = 0.1
_STATISTICS = 4000
"""Number of images from which the standard deviation of token channels is estimated."""


def train(
    make: Callable[[], Aggregator],
    tokens: Tokens,
    labels: np.ndarray,
    backbone: Backbone,
    *,
    final: bool,
    seed: int,
    report: Callable[[str], None],
) -> tuple[Aggregator, dict[str, Any]]:
    """Return the aggregator trained on `tokens`, and the recipe.

    The loss is cross-entropy after a batch norm without affine and a linear layer. Both are discarded afterwards, because
    the batch norm commutes with a weighted mean. The learning rate is the best of `RATES` on a held-out tenth of the images.

    Args:
        make: creates an untrained aggregator.
        tokens: tokens of n training images.
        labels: (n,) integers.
        backbone: provides the final norm, and the device.
        final: train on tokens after the final norm.
        seed: the same seed gives the same head, on one device.
        report: called with one line per step.

    Raises:
        FitError: there are fewer than two classes or too few images, or the loss is not finite.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise FitError(f"learning with labels needs at least 2 classes, the data has {len(classes)}")
    if len(tokens) < 20:
        raise FitError(f"learning with labels needs at least 20 images, the data has {len(tokens)}")
    y = torch.from_numpy(targets).to(backbone.device)
    order = np.random.default_rng(seed).permutation(len(tokens))
    held = order[: max(1, int(_HELD_OUT * len(order)))]
    rest = order[len(held) :]
    norm = backbone.norm if final else None
    spread = _spread(tokens[np.sort(order[:_STATISTICS])], backbone, norm)
    trials = {}
    for rate in RATES:
        trainer = _Trainer(make, spread, len(classes), backbone, norm, seed)
        trainer.run(tokens, y, rest, rate, TRIAL_EPOCHS)
        trials[rate] = trainer.accuracy(tokens, y, held)
        report(
            f"learning rate {rate:g}: {100 * trials[rate]:.1f} % of held-out training images after {TRIAL_EPOCHS} epochs"
        )
    rate = max(trials, key=lambda tried: trials[tried])
    trainer = _Trainer(make, spread, len(classes), backbone, norm, seed)
    loss = trainer.run(tokens, y, order, rate, EPOCHS)
    recipe = {
        "objective": "cross-entropy", "optimizer": "AdamW", "rate": rate, "epochs": EPOCHS, "batch": _BATCH, "seed": seed,
        "images": len(tokens), "classes": len(classes), "final_loss": round(loss, 4),
    }  # fmt: skip
    return trainer.finished(), recipe


class _Trainer:
    def __init__(
        self,
        make: Callable[[], Aggregator],
        spread: Tensor,
        classes: int,
        backbone: Backbone,
        norm: nn.Module | None,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self.aggregator = make().to(backbone.device)  # drawn on the CPU, so that a seed draws the same for every device
        # Channels of a masked autoencoder's raw tokens differ in scale by orders of magnitude. If the parameters can be
        # rescaled afterwards, train them on tokens divided by each channel's standard deviation.
        self.spread = spread if isinstance(self.aggregator, Rescalable) else torch.ones_like(spread)
        if isinstance(self.aggregator, Preparable):
            self.aggregator.prepare(spread)
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(self.aggregator.width, affine=False), nn.Linear(self.aggregator.width, classes)
        ).to(backbone.device)
        self.backbone, self.norm, self.seed = backbone, norm, seed

    def run(self, tokens: Tokens, y: Tensor, order: np.ndarray, rate: float, epochs: int) -> float:
        rng = np.random.default_rng(self.seed)
        batch = min(_BATCH, max(20, len(order) // 8))
        steps = max(1, len(order) // batch)
        parameters = [*self.aggregator.parameters(), *self.classifier.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps * epochs, pct_start=0.1)
        loss = torch.zeros(())
        self.aggregator.train()
        self.classifier.train()
        for _ in range(epochs):
            shuffled = rng.permutation(order)
            for step in range(steps):
                rows = np.sort(shuffled[step * batch : (step + 1) * batch])
                loss = F.cross_entropy(self._logits(tokens[rows]), y[rows], label_smoothing=0.1)
                if not bool(loss.isfinite()):
                    raise FitError("the loss is not finite: the features hold NaN or overflow; check the weights")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return float(loss.detach())

    def accuracy(self, tokens: Tokens, y: Tensor, rows: np.ndarray) -> float:
        self.aggregator.eval()
        self.classifier.eval()
        right = 0
        with torch.no_grad():
            for part in np.array_split(np.sort(rows), max(1, len(rows) // _BATCH)):
                right += int((self._logits(tokens[part]).argmax(1) == y[part]).sum())
        return right / len(rows)

    def finished(self) -> Aggregator:
        if isinstance(self.aggregator, Rescalable):
            self.aggregator.rescale(self.spread)
        return self.aggregator.eval()

    def _logits(self, tokens: Tokens) -> Tensor:
        features = StoredFeatures(tokens, self.backbone, self.norm, self.spread)
        return self.classifier(self.aggregator(features).vector)


def _spread(tokens: Tokens, backbone: Backbone, norm: nn.Module | None) -> Tensor:
    patches = StoredFeatures(tokens, backbone, norm).patches.flatten(0, 1)
    if not bool(patches.isfinite().all()):
        raise FitError("the features hold NaN or infinite values; check the backbone and its weights")
    return patches.std(0).clamp_min(1e-6)
