"""Build artifacts: one ONNX graph from a frozen backbone and an aggregator of its patch tokens. Needs torch.

Names are imported on first use because importing torch takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimruntime.errors import MimError
from mimruntime.lazy import lazy_names

if TYPE_CHECKING:
    from mimexport.aggregators.base import Aggregator, Pooled
    from mimexport.api import build, fit
    from mimexport.features import Features
    from mimexport.heads import Head, load_head
    from mimexport.loaded_model import LoadedModel
    from mimexport.loading import IMAGENET_PIXELS, PixelConfig
    from mimexport.references import References

__all__ = [
    "IMAGENET_PIXELS", "Aggregator", "Features", "Head", "LoadedModel", "MimError", "PixelConfig", "Pooled",
    "References", "build", "fit", "load_head",
]  # fmt: skip

_HOMES = {
    "IMAGENET_PIXELS": "mimexport.loading",
    "Aggregator": "mimexport.aggregators.base",
    "Features": "mimexport.features",
    "Head": "mimexport.heads",
    "LoadedModel": "mimexport.loaded_model",
    "PixelConfig": "mimexport.loading",
    "Pooled": "mimexport.aggregators.base",
    "References": "mimexport.references",
    "build": "mimexport.api",
    "fit": "mimexport.api",
    "load_head": "mimexport.heads",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
