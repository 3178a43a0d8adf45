"""The selection that is drawn is the graph's own, and lies over the image where the model looked."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mimruntime import Embedder, heatmaps
from mimruntime.artifact import Artifact, seal
from mimruntime.cli import COMMANDS
from mimruntime.cli.frame import make_program
from mimruntime.decode import decode
from mimruntime.preprocess import crop_box
from mimruntime.selection import contact_sheet, select

DROPPED = np.array([[True, False]])
SUBJECT = (0.30, 0.40, 0.50, 0.65)
"""Of the drawn scene: left, top, right, bottom as shares of the upright image."""
TURNED = {1: None, 6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE}
"""EXIF orientations, and how a picture is stored that is upright once it is turned by them."""


@pytest.fixture(scope="module", params=["shortest", "squash"])
def embedder(request, toy_artifact, tmp_path_factory):
    """The toy artifact, whose patches weigh by their brightness, with both ways to make an image square."""
    folder = Path(shutil.copytree(toy_artifact, tmp_path_factory.mktemp(request.param) / "toy"))
    found = Artifact.open(folder).manifest
    (folder / "manifest.json").unlink()
    pixels = msgspec.structs.replace(found.preprocess, mode=request.param)
    seal(folder, msgspec.structs.replace(found, preprocess=pixels, files={}))
    with Embedder.open(folder, engine="onnxruntime", check_reference=False) as opened:
        yield opened


def scene(width, height):
    """A bright subject on black."""
    image = Image.new("RGB", (width, height))
    left, top, right, bottom = (round(share * edge) for share, edge in zip(SUBJECT, (width, height) * 2, strict=True))
    image.paste((255, 240, 220), (left, top, right, bottom))
    return image


def weight_of_pixels(weights, box, size):
    """The weight of the patch that covers each pixel of the whole image, 0 outside of the crop; float (height, width)."""
    (width, height), (left, top, right, bottom) = size, box
    rows = ((np.arange(height) + 0.5 - top) / (bottom - top) * weights.shape[0]).astype(int)
    columns = ((np.arange(width) + 0.5 - left) / (right - left) * weights.shape[1]).astype(int)
    inside = (rows >= 0) & (rows < weights.shape[0]), (columns >= 0) & (columns < weights.shape[1])
    spread = np.zeros((height, width))
    spread[np.ix_(*inside)] = weights[np.ix_(rows[inside[0]], columns[inside[1]])]
    return spread


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (48, 40)])
@pytest.mark.parametrize("orientation", TURNED)
def test_the_weights_lie_over_the_subject(embedder, tmp_path, size, orientation):
    image = scene(*size)
    stored = image if TURNED[orientation] is None else image.transpose(TURNED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "scene.png", exif=exif)
    (one,) = select(embedder, [tmp_path / "scene.png"])
    assert one.size == size
    spread = weight_of_pixels(one.weights - one.weights.min(), one.box, size)
    rows, columns = np.nonzero(spread > spread.max() / 2)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    expected = np.array(SUBJECT) * (size * 2)
    patch = np.array([one.box[2] - one.box[0], one.box[3] - one.box[1]] * 2) / 8
    assert (np.abs(found - expected) <= patch).all(), (found, expected, patch)
    dark = np.asarray(image.convert("L")) == 0
    assert spread[dark].mean() < spread[~dark].mean() / 4


def test_the_picture_is_clear_at_the_subject_and_grey_outside_of_the_crop(embedder):
    image = Image.new("RGB", (300, 200), (0, 160, 0))
    weights = np.zeros((8, 8), np.float32)
    weights[2, 5] = 1
    spec = embedder.artifact.manifest.preprocess
    drawn = np.asarray(heatmaps.draw(image, weights, None, spec))
    left, top, right, bottom = crop_box(300, 200, spec)
    at = round(top + 2.5 * (bottom - top) / 8), round(left + 5.5 * (right - left) / 8)
    corner = drawn[2, 2]
    assert drawn.shape == (200, 300, 3)
    assert drawn[at][0] > 30, "a touch of amber over it"
    assert np.ptp(corner.astype(int)) < 30, "grey"
    assert np.ptp(drawn[at].astype(int)) > 60
    assert (drawn[at[0], at[1] + round((right - left) / 8)] != drawn[at]).any()


def test_patches_that_count_most_are_clear_and_both_kinds_that_do_not_are_grey_and_told_apart():
    weights = np.array([[0, 0.1, 0], [0.4, 0.5, 0.5]], np.float32)
    kept = np.array([[True, True, False], [True, True, True]])
    colours = heatmaps.overlay(weights, kept).astype(int)
    opacity = colours[..., 3]
    assert opacity[0, 1] > opacity[1, 0] > opacity[1, 1]
    unselected, dropped = colours[0, 0], colours[0, 2]
    assert np.ptp(unselected[:3]) < 10
    assert np.ptp(dropped[:3]) < 10
    assert (unselected[:3] > dropped[:3] + 100).all()
    assert opacity[0, 2] > opacity[0, 0]
    assert (heatmaps.overlay(weights)[0, 2] == unselected).all()
    assert (heatmaps.overlay(np.zeros((2, 2), np.float32)) == unselected).all()


def test_the_page_and_the_contact_sheet_explain_the_colours_that_are_drawn():
    page = Path(heatmaps.__file__).parent / "browse" / "page"
    style, html = ((page / name).read_text() for name in ("style.css", "index.html"))
    drawn = [
        tuple(map(int, heatmaps.overlay(np.eye(1, 2, dtype=np.float32), kept)[0, 1, :3])) for kept in (None, DROPPED)
    ]
    assert [colour for _, colour in heatmaps.LEGEND[2:]] == drawn
    for name, colour in zip(("unselected", "dropped"), drawn, strict=True):
        assert f".swatch.{name} {{ background: rgb({' '.join(map(str, colour))}); }}" in style
        assert f'class="swatch {name}"' in html
    sheet = contact_sheet([("a.jpg", Image.new("RGB", (9, 9)))])
    colours = {colour for _, colour in sheet.getcolors(1 << 16)}
    assert {colour for _, colour in heatmaps.LEGEND} <= colours


def test_a_selection_of_photographs_is_the_output_of_the_graph(embedder, photos, tmp_path):
    found = list(select(embedder, [*photos, tmp_path / "none.jpg"]))
    pixels = np.stack([embedder.prepare(photo) for photo in photos])
    expected = embedder.outputs(pixels)["selection"]
    np.testing.assert_allclose(np.stack([one.weights for one in found[:8]]), expected, atol=1e-6)
    assert "none.jpg" in str(found[8])


def run(*arguments):
    return CliRunner().invoke(make_program(COMMANDS), [str(argument) for argument in arguments])


def test_the_command_writes_pictures_a_contact_sheet_and_the_weights(toy_artifact, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    out = tmp_path / "heatmaps"
    done = run("select", toy_artifact, *photos, broken, "--out", out)
    assert done.exit_code == 0, done.output
    assert "1 could not be read" in done.stderr
    names = [f"{number}-{photo.stem}.jpg" for number, photo in enumerate(photos, 1)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "contact-sheet-1.jpg", "selection.npz"])
    with np.load(out / "selection.npz") as numbers, Embedder.open(toy_artifact) as embedder:
        np.testing.assert_allclose(numbers["selection"], embedder.select(photos), atol=1e-6)
        assert numbers["path"].tolist() == list(map(str, photos))
        assert numbers["size"].tolist() == [list(decode(photo).size) for photo in photos]
    with Image.open(out / "contact-sheet-1.jpg") as sheet:
        assert sheet.width > 6 * 200


def test_an_artifact_without_the_output_says_how_to_build_it(toy_without_selection, photo, tmp_path):
    done = run("select", toy_without_selection, photo, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "--with-selection" in str(done.exception)
    assert not (tmp_path / "out" / "selection.npz").exists()
