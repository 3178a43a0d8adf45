"""The table of backbone families by timm class; one file each."""

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
"""A subclass uses the family of its base class. The order does not matter: no class here is a subclass of another."""


def family_of(model: nn.Module) -> Family:
    """Return the family of a model.

    Raises:
        OptionError: the model's class is not supported.

    """
    for kind, family in FAMILIES.items():
        if isinstance(model, kind):
            return family
    known = ", ".join(kind.__name__ for kind in FAMILIES)
    raise OptionError(f"{type(model).__name__} is not a supported backbone class; supported: {known}")
