"""Folders and zips are read alike, and what is no data is refused in one line."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimeval.datasets import open_dataset
from mimexport.errors import FitError
from mimexport.fitting.training_images import held_out_labels, open_images
from mimruntime.decode import decode
from mimruntime.errors import ImageError


def png(value, size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def lay_out(root, names):
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, (8 + i % 3, 8)))
    return root


def zipped(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


SPLIT = [f"{part}/{name}/{i}.png" for part in ("train", "val") for name in ("cat", "dog") for i in range(3)]
CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10)]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_parts_are_taken_as_they_are(tmp_path, kind):
    path = lay_out(tmp_path / "data", SPLIT)
    train, test = open_images(zipped(path, tmp_path / "d.zip") if kind == "zip" else path)
    assert (len(train.images), len(test.images), train.classes) == (6, 6, ("cat", "dog"))
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    assert decode(test.images[0]).size == (8, 8)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_without_parts_a_fifth_of_each_class_is_held_out(tmp_path, kind):
    path = lay_out(tmp_path / "data", CLASSES)
    train, test = open_images(zipped(path, tmp_path / "d.zip") if kind == "zip" else path)
    assert (len(train.images), np.bincount(test.labels).tolist()) == (16, [2, 2])


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_no_evaluation_judges_by_an_image_that_a_fit_learned_from(tmp_path, kind):
    """Whatever the seed; the zip of a folder has its files in another order."""
    names = [f"{name}/{i}.png" for name, count in (("cat", 4), ("cat-fish", 17), ("dog", 30)) for i in range(count)]
    path = lay_out(tmp_path / "data", names)
    for number, name in enumerate(names):
        (path / name).write_bytes(png(number))
    learned = {Path(image).read_bytes() for image in open_images(path)[0].images}
    judging = zipped(path, tmp_path / "d.zip") if kind == "zip" else path
    for seed in (0, 3):
        dataset = open_dataset(str(judging), cache=tmp_path / "cache", seed=seed)
        assert {dataset.train.load(row) for row in range(len(dataset.train))} == learned
        assert not {dataset.test.load(row) for row in range(len(dataset.test))} & learned


def test_the_only_image_of_a_class_is_learned_from(tmp_path):
    train, test = open_images(lay_out(tmp_path / "data", ["ant/0.png", "bee/0.png"]))
    assert (train.labels.tolist(), test) == ([0, 1], None)


def test_without_class_folders_there_are_no_labels(tmp_path):
    train, test = open_images(lay_out(tmp_path / "data", ["a.png", "b.png", "c.png"]))
    assert train.labels is None
    assert test is None


def test_a_folder_around_it_all_is_passed_through(tmp_path):
    train, test = open_images(lay_out(tmp_path / "data", [f"tiny/{name}" for name in SPLIT]))
    assert (len(train.images), len(test.images), train.classes) == (6, 6, ("cat", "dog"))


def test_a_single_class_is_no_label(tmp_path):
    train, test = open_images(lay_out(tmp_path / "data", ["photos/a.png", "photos/b.png"]))
    assert (len(train.images), train.labels, test) == (2, None, None)


def test_held_out_images_are_judged_by_the_classes_that_were_learned(tmp_path):
    names = ["train/ant/0.png", "train/bee/0.png", "train/cat/0.png", "val/ant/0.png", "val/cat/0.png"]
    learned, judged = held_out_labels(*open_images(lay_out(tmp_path / "data", names)))
    assert (learned.tolist(), judged.tolist()) == ([0, 1, 2], [0, 2])


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (["val/ant/0.png", "val/dog/0.png"], "class 'dog' has held-out images but no training images"),
        (["val/0.png"], "the held-out images have no class folders to measure accuracy; add them, or --no-judge"),
    ],
)
def test_what_cannot_be_judged_is_one_line(tmp_path, held_out, message):
    names = ["train/ant/0.png", "train/bee/0.png", *held_out]
    with pytest.raises(FitError, match=message):
        held_out_labels(*open_images(lay_out(tmp_path / "data", names)))


def test_the_digest_follows_the_content(tmp_path):
    path = lay_out(tmp_path / "data", CLASSES)
    before = open_images(path)[0].digest
    for name in CLASSES:
        (path / name).write_bytes(png(200, (9, 9)))
    assert open_images(path)[0].digest != before


def test_nothing_or_no_images_is_one_line(tmp_path):
    with pytest.raises(ImageError, match="no folder or zip at"):
        open_images(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in"):
        open_images(tmp_path / "empty")


def test_a_zip_that_is_cut_short_is_one_line(tmp_path):
    path = zipped(lay_out(tmp_path / "data", CLASSES), tmp_path / "d.zip")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="is not a readable zip, or is cut short"):
        open_images(path)


def test_a_damaged_member_is_named_when_it_is_read(tmp_path):
    path = zipped(lay_out(tmp_path / "data", CLASSES), tmp_path / "d.zip")
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    train, test = open_images(path)
    with pytest.raises(ImageError, match=r"d\.zip: cat/\d\.png cannot be read"):
        [bytes(image) for images in (train.images, test.images) for image in images]


def test_slices_of_a_zip_stay_lazy(tmp_path):
    path = zipped(lay_out(tmp_path / "data", CLASSES), tmp_path / "d.zip")
    train, _ = open_images(path)
    assert len(train.images[2:5]) == 3
    assert bytes(train.images[2:5][0]) == bytes(train.images[2])
    assert Path(path).exists()
