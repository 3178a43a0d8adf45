"""Example of a user's aggregator: the mean of tokens weighted by their length."""

from __future__ import annotations

from mimexport import Aggregator, Features, Pooled
from mimexport.families import Shape


class LengthWeighted(Aggregator):
    """Patches weighted by a power of the length of the token that enters the last block."""

    formula = "Σ w_i x_i, w_i ∝ ‖entering token i‖^power"

    def __init__(self, shape: Shape | None = None, *, power: float = 1.0) -> None:
        super().__init__(shape)
        self.power = power

    @property
    def params(self) -> dict[str, str | int | float | bool]:
        """See base class."""
        return {"power": self.power}

    def forward(self, features: Features) -> Pooled:
        """See base class."""
        weights = features.entering_energy.sqrt() ** self.power
        weights = weights / weights.sum(1, keepdim=True)
        return Pooled((features.patches * weights.unsqueeze(-1)).sum(1), weights)
