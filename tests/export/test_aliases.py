"""The table of short names says what timm says."""

import pytest
import timm
import torch

from mimexport.aliases import ALIASES
from mimexport.backbone import Backbone
from mimexport.weights import load_model


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_describes_the_model_that_timm_makes(name):
    alias = ALIASES[name]
    with torch.device("meta"):
        model = timm.create_model(alias.timm_name, num_classes=0, **alias.kwargs)
    assert alias.dim == model.num_features
    if alias.embedded or name.startswith("simmim"):
        return
    cfg = timm.models.get_pretrained_cfg(alias.timm_name)
    assert (alias.size, alias.license) == (cfg.input_size[-1], cfg.license)
    assert alias.patch == model.feature_info[-1]["reduction"]
    assert alias.tokens == (alias.size // alias.patch) ** 2


def test_the_embedded_backbone_is_as_described():
    loaded, alias = load_model("mae-tiny"), ALIASES["mae-tiny"]
    shape = Backbone(loaded.model).shape
    assert (shape.patches, shape.dim, shape.prefix) == (alias.tokens, alias.dim, 1)
    assert loaded.config["input_size"] == (3, alias.size, alias.size)
    assert loaded.source == "embedded"
