"""The table of short names says what timm says."""

import tomllib
from pathlib import Path

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
    if alias.embedded or "--weights" in alias.note:
        return
    cfg = timm.models.get_pretrained_cfg(alias.timm_name)
    assert (alias.size, alias.license) == (cfg.input_size[-1], cfg.license)
    assert alias.patch == model.feature_info[-1]["reduction"]
    assert alias.tokens == (alias.size // alias.patch) ** 2


@pytest.mark.parametrize("name", ["mae-tiny", "mae-small"])
def test_an_embedded_backbone_is_as_described(name):
    loaded, alias = load_model(name), ALIASES[name]
    shape = Backbone(loaded.model).shape
    assert (shape.patches, shape.dim, shape.prefix) == (alias.tokens, alias.dim, 1)
    assert loaded.config["input_size"] == (3, alias.size, alias.size)
    assert (loaded.source, loaded.sha256, loaded.license) == ("embedded", alias.sha256, "research-only")


def test_a_wheel_leaves_out_the_weights_that_say_so():
    root = Path(__file__).parents[2]
    left_out = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "exclude"
    ]
    assets = {f"export/mimexport/assets/{a.embedded}": a.note for a in ALIASES.values() if a.embedded}
    assert set(left_out) == {path for path, note in assets.items() if "not in the wheel" in note}
    assert all((root / path).stat().st_size > 20e6 for path in left_out)
