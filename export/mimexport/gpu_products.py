"""The large products of an evaluation on a GPU: nearest neighbours and the loss of a linear probe; see `mimeval.accelerator`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mimexport.device import full_precision

_SIMILARITIES = 1 << 29
"""Similarities computed at once (2 GiB); the search for the largest needs as much memory again."""


@dataclass(frozen=True, slots=True)
class GpuProducts:
    """Implements `mimeval.accelerator.Accelerator` with torch on one device, in float32."""

    device: torch.device

    @full_precision()
    def nearest(
        self, queries: np.ndarray, gallery: np.ndarray, k: int, *, leave_one_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the k most similar rows of `gallery` for each query; see `mimeval.neighbours.nearest`."""
        k = min(k, len(gallery) - leave_one_out)
        table = F.normalize(self._send(gallery), dim=1).T
        step = max(1, _SIMILARITIES // max(1, len(gallery)))
        found = []
        for start in range(0, len(queries), step):
            cosines = F.normalize(self._send(queries[start : start + step]), dim=1) @ table
            if leave_one_out:
                rows = torch.arange(len(cosines), device=self.device)
                cosines[rows, rows + start] = -torch.inf
            best = cosines.topk(k, dim=1)
            # In the order of the CPU: of equal values the first column comes first.
            order = best.indices.argsort(dim=1)
            order = order.gather(1, best.values.gather(1, order).argsort(dim=1, descending=True, stable=True))
            found.append([part.gather(1, order).cpu().numpy() for part in (best.indices, best.values)])
        indices, values = (
            zip(*found, strict=True) if found else ([np.empty((0, k), np.int64)], [np.empty((0, k), "f4")])
        )
        return np.concatenate(indices), np.concatenate(values)

    def cross_entropy(self, table: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        """Return the mean cross-entropy and its gradient as a function of weights; see `mimeval.accelerator`."""
        x, y = self._send(table), torch.from_numpy(targets).to(self.device)

        @full_precision()
        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            w = self._send(weights).requires_grad_()
            value = F.cross_entropy(F.linear(x, w[:, :-1], w[:, -1]), y)
            (gradient,) = torch.autograd.grad(value, w)
            return float(value.detach()), gradient.double().cpu().numpy()

        return loss

    def _send(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(self.device)


def products_on(device: torch.device) -> GpuProducts | None:
    """Return what computes the large products of an evaluation on `device`; None for the CPU, where NumPy does."""
    return GpuProducts(device) if device.type == "cuda" else None
