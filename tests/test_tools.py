"""Every command in tools/ starts: its imports are there, and it prints its help."""

import importlib
import io
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mimeval.datasets import Split
from mimexport.fitting.views import show
from mimruntime.manifest import Preprocess

TOOLS = sorted(path.stem for path in (Path(__file__).parents[1] / "tools").glob("*.py"))


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_imports_and_prints_its_help(name):
    try:
        tool = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":  # in the extra `parquet`
            raise
        pytest.skip("pip install 'mimexport[parquet]'")
    if command := getattr(tool, "main", None):
        assert isinstance(command, click.Command)
        done = CliRunner().invoke(command, ["--help"])
        assert done.exit_code == 0, done.output
        assert command.help


def test_the_patch_that_shows_the_centre_of_the_photograph_is_the_closest_to_it():
    """A white dot in the middle of a dark picture, in crops that are moved, stretched and flipped."""
    import measure_framing

    pixels = np.zeros((90, 120, 3), np.uint8)
    pixels[43:47, 58:62] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    dots = Split(tuple("abcdefgh"), np.zeros(8, np.int64), lambda row: stream.getvalue(), "d")
    near = measure_framing.closeness(dots, 1, (8, 8))
    preprocess = Preprocess(size=64, resize=64, mode="squash", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))
    seen = 0
    for index in range(8):
        bright = show(stream.getvalue(), index, 1, 0, preprocess).max(axis=2).astype(int)
        patches = bright.reshape(8, 8, 8, 8).sum(axis=(1, 3)).ravel()
        if patches.max() > 1000:  # the dot is in the crop
            seen += 1
            assert near[index, patches.argmax()] >= near[index].max() - 0.15
    assert seen >= 5
