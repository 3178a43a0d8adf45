"""The families of backbones by class: one file each."""

from __future__ import annotations

from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mimexport.families import beit, eva, hiera, vit
from mimexport.families.base import BackboneParts, Family, Shape, real_module
from mimruntime.errors import OptionError

__all__ = ["FAMILIES", "BackboneParts", "Family", "Shape", "family_of", "real_module"]

FAMILIES: dict[type[nn.Module], Family] = {
    VisionTransformer: vit.FAMILY,
    Eva: eva.FAMILY,
    Beit: beit.FAMILY,
    Hiera: hiera.FAMILY,
}
"""A subclass is served by its base; the order does not matter, timm's four are siblings."""


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        OptionError: its class belongs to none.

    """
    for kind, family in FAMILIES.items():
        if isinstance(model, kind):
            return family
    known = ", ".join(kind.__name__ for kind in FAMILIES)
    raise OptionError(f"{type(model).__name__} is not a supported backbone class; supported: {known}")
