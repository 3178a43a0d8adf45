"""The resize as an ONNX graph is Pillow's to the bit, whatever the filter, the size and the orientation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimruntime.decoding.convert import turned_upright
from mimruntime.engines.onnxruntime import open_session
from mimruntime.gpu import resize
from mimruntime.gpu.plan import plan_resize
from mimruntime.gpu.resize import Resizer
from mimruntime.manifest import Preprocess
from mimruntime.preprocess import _resize_whole

FILTERS, MODES = ("bilinear", "bicubic", "lanczos"), ("shortest", "squash")


def spec(size: int, resized: int, mode: str, interpolation: str) -> Preprocess:
    return Preprocess(
        size=size, resize=resized, mode=mode, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


@pytest.fixture(scope="module")
def resizer() -> Resizer:
    return Resizer(lambda graph: open_session(graph, provider="cpu", threads=1), "cpu")


def resized(resizer: Resizer, stored: Image.Image, orientation: int, wanted: Preprocess) -> np.ndarray:
    pixels = np.ascontiguousarray(stored)
    out = np.full((wanted.size, wanted.size, 3), 77, np.uint8)
    plan = plan_resize(stored.width, stored.height, orientation, wanted)
    resizer.resize(pixels.ctypes.data, stored.height, stored.width, plan, out.ctypes.data)
    return out


def difference(resizer: Resizer, stored: Image.Image, orientation: int, wanted: Preprocess) -> np.ndarray:
    """Return the difference to the whole picture, turned, resized and cropped by Pillow, as timm does."""
    upright = _resize_whole(turned_upright(stored, orientation), wanted)
    return np.abs(resized(resizer, stored, orientation, wanted).astype(int) - upright)


def test_the_files_are_what_their_source_writes() -> None:
    spec = importlib.util.spec_from_file_location("resize_graphs", Path(__file__).parents[2] / "tools/resize_graphs.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    graphs = tool.all_graphs()
    assert {path: path.read_bytes() for path in graphs} == graphs
    assert {*graphs} == {*Path(resize.__file__).parent.glob("*.onnx")}


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("mode", MODES)
def test_photographs_equal_pillow(resizer: Resizer, photos: list[Path], mode: str, interpolation: str) -> None:
    for orientation, path in enumerate(photos, 1):
        picture = Image.open(path).convert("RGB")
        picture.thumbnail((400, 400))
        for size, whole in ((64, 73), (224, 224)):
            found = difference(resizer, picture, orientation, spec(size, whole, mode, interpolation))
            assert found.max() <= 1
            assert (found > 0).mean() < (6e-3 if interpolation == "bilinear" else 2e-4)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(8, 70),
    st.integers(0, 20),
    st.sampled_from(MODES),
    st.sampled_from(FILTERS),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_noise_of_any_size_equals_pillow(
    width: int, height: int, size: int, more: int, mode: str, interpolation: str, orientation: int
) -> None:
    resizer = Resizer(lambda graph: open_session(graph, provider="cpu", threads=1), "cpu")
    noise = np.random.default_rng(width * height).integers(0, 2, (height, width, 3), np.uint8) * 255
    wanted = spec(size, size + more, mode, interpolation)
    assert not difference(resizer, Image.fromarray(noise), orientation, wanted).any()


def test_an_unchanged_picture_stays_as_it_is(resizer: Resizer) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for interpolation in FILTERS:
        assert np.array_equal(
            resized(resizer, Image.fromarray(noise), 1, spec(64, 64, "shortest", interpolation)), noise
        )


def test_matrices_of_recent_sizes_are_kept_and_the_oldest_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    resizer = Resizer(lambda graph: open_session(graph, provider="cpu", threads=1), "cpu")
    wanted = spec(32, 32, "squash", "bilinear")
    pictures = [Image.new("RGB", (edge, edge), (edge, 2, 3)) for edge in (40, 41, 42)]
    for picture in (*pictures, pictures[0]):
        resized(resizer, picture, 1, wanted)
    assert [side.edge for _, side in resizer._matrices] == [41, 41, 42, 42, 40, 40]
    monkeypatch.setattr(resize, "_MATRIX_BYTES", 2 * 4 * 32 * (42 + 42 + 40 + 40))
    resizer.trim()
    assert [side.edge for _, side in resizer._matrices] == [42, 42, 40, 40]
    assert (resized(resizer, pictures[1], 1, wanted) == pictures[1].getpixel((0, 0))).all()
