"""AbMILP: weighted sum of patches; a small network scores each patch independently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimexport.aggregators.base import Aggregator, Pooled, weighted_sum
from mimexport.backbone import Shape
from mimexport.features import Features
from mimexport.grid import closeness_to_center
from mimruntime.errors import OptionError

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class AbMILP(Aggregator):
    """Attention-based multiple-instance pooling (Ilse et al., arXiv 1802.04712), as used by 'Beyond [cls]' (arXiv 2412.03215).

    The defaults are the published ones: depth 1, raw patch tokens, no position. The batch norm between pooling and
    classifier commutes with the pooling (the weights sum to one). So it is part of the classifier, not of the vector.

    Args:
        shape: of the backbone.
        depth: number of layers of the scoring network: `depth - 1` times [Linear(D, D), activation], then Linear(D, 1).
        activation: a name in `ACTIVATIONS`; unused at depth 1.
        prior: "none", or "center" to multiply each weight by the patch's closeness to the centre.
    """

    formula = "Σ a_i x_i, a = softmax(s(x_i) [+ log c_i]), s linear or a small MLP"
    needs_head = True
    prior: Tensor | None

    def __init__(self, shape: Shape, *, depth: int = 1, activation: str = "tanh", prior: str = "none") -> None:
        super().__init__(shape)
        if depth < 1 or activation not in ACTIVATIONS or prior not in {"none", "center"}:
            raise OptionError(
                f"abmilp: depth {depth}, activation '{activation}', prior '{prior}'; expected depth ≥ 1,"
                f" activation {' or '.join(ACTIVATIONS)}, prior none or center"
            )
        self.depth, self.activation, self.prior_name = depth, activation, prior
        hidden = [
            layer for _ in range(depth - 1) for layer in (nn.Linear(shape.dim, shape.dim), ACTIVATIONS[activation]())
        ]
        self.scorer = nn.Sequential(*hidden, nn.Linear(shape.dim, 1))
        log_prior = closeness_to_center(shape).clamp_min(1e-6).log() if prior == "center" else None
        self.register_buffer("prior", log_prior, persistent=False)

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """See base class."""
        return {"depth": self.depth, "activation": self.activation, "prior": self.prior_name}

    def rescale(self, spread: Tensor) -> None:
        """See `mimexport.aggregators.base.Rescalable`."""
        with torch.no_grad():
            self.layers[0].weight.div_(spread)

    def load_scorer(self, w: Tensor) -> None:
        """See `mimexport.aggregators.base.Scorable`."""
        with torch.no_grad():
            self.layers[-1].weight.copy_(w.unsqueeze(0))
            self.layers[-1].bias.zero_()

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers of the scoring network, first to last."""
        return [layer for layer in self.scorer if isinstance(layer, nn.Linear)]

    def weigh(self, patches: Tensor, prior: Tensor | None) -> Tensor:
        """Return weights (B, N) for patches (B, N, D) and a log prior, (N,) or (B, N); each row sums to one."""
        scores = self.scorer(patches).squeeze(-1)
        return torch.softmax(scores if prior is None else scores + prior, -1)

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        prior = None if self.prior is None else features.of_patches(self.prior)
        return weighted_sum(features.patches, self.weigh(features.patches, prior))
