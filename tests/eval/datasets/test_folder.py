"""Folders and zips become train and test alike; what cannot be judged on is refused, what flatters is said."""

import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from mimeval.datasets import open_dataset
from mimeval.errors import DataError
from mimruntime.errors import ImageError, OutputError, UnknownNameError

SPLIT = [f"{part}/{name}/{part}{i}.png" for part in ("train", "val") for name in ("cat", "dog") for i in range(4)]
WHOLE = [f"{name}/{i}.png" for name in ("cat", "dog", "owl") for i in range(10)]


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 255 - value, value // 2)).save(stream, "PNG")
    return stream.getvalue()


def lay_out(root, names, start=0):
    for i, name in enumerate(names, start):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(i))
    return root


def zipped(folder):
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


@pytest.fixture(params=["folder", "zip"])
def place(request):
    """Turns a laid out folder into what `request` names."""
    return zipped if request.param == "zip" else lambda folder: folder


def opened(path, tmp_path, **options):
    return open_dataset(str(path), cache=tmp_path / "cache", **options)


def test_parts_are_taken_as_they_are(tmp_path, place):
    dataset = opened(place(lay_out(tmp_path / "data", SPLIT)), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.test.names[:2] == ("val/cat/val0.png", "val/cat/val1.png")
    np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 0, 1, 1, 1, 1])
    assert dataset.train.labels.dtype == np.int64
    assert dataset.test.load(0) == png(8)
    assert dataset.notes == ()


def test_a_folder_around_the_parts_is_passed_through(tmp_path, place):
    dataset = opened(place(lay_out(tmp_path / "data", [f"mine-1.0/{name}" for name in SPLIT])), tmp_path)
    assert (dataset.classes, len(dataset.test)) == (("cat", "dog"), 8)


def test_a_folder_around_the_classes_is_passed_through(tmp_path, place):
    dataset = opened(place(lay_out(tmp_path / "data", [f"photos/{name}" for name in WHOLE])), tmp_path)
    assert (dataset.classes, len(dataset.test)) == (("cat", "dog", "owl"), 6)


def test_names_that_are_no_text_are_written_as_such(tmp_path):
    names = [name.replace("dog/", "dog\udce9/").replace("1.png", "1\udcff.png") for name in WHOLE]
    dataset = opened(lay_out(tmp_path / "data\udcfe", names), tmp_path)
    assert dataset.name == r"data\xfe"
    assert dataset.classes == ("cat", r"dog\xe9", "owl")
    assert any(name.endswith(r"1\xff.png") for name in dataset.test.names + dataset.train.names)
    assert all(dataset.train.load(row) for row in range(len(dataset.train)))


def test_a_folder_of_no_name_has_that_of_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(lay_out(tmp_path / "data", WHOLE))
    assert opened("folder:.", tmp_path).name == "data"


def test_without_parts_a_fifth_of_every_class_is_judged(tmp_path, place):
    path = place(lay_out(tmp_path / "data", WHOLE))
    dataset = opened(path, tmp_path)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [2, 2, 2])
    assert set(dataset.test.names).isdisjoint(dataset.train.names)
    assert set(dataset.test.names) | set(dataset.train.names) == set(WHOLE)
    assert opened(path, tmp_path, seed=3).digest == dataset.digest


def test_the_digest_follows_the_content_and_each_part_has_its_own(tmp_path):
    path = lay_out(tmp_path / "data", SPLIT)
    before = opened(path, tmp_path)
    (path / SPLIT[-1]).write_bytes(png(99) + b"\0")
    after = opened(path, tmp_path)
    assert before.train.digest == after.train.digest
    assert before.test.digest != after.test.digest


def test_folder_and_zip_specs_are_the_path_alone(tmp_path):
    path = lay_out(tmp_path / "data", SPLIT)
    assert opened(f"folder:{path}", tmp_path).digest == opened(path, tmp_path).digest
    assert opened(f"zip:{zipped(path)}", tmp_path).test.names == opened(path, tmp_path).test.names


def test_hidden_files_of_archivers_are_no_images(tmp_path):
    path = zipped(lay_out(tmp_path / "data", [*SPLIT, "__MACOSX/train/cat/._a.png", ".cache/x.png"]))
    assert len(opened(path, tmp_path).train) == 8


def test_shared_images_are_said_with_their_digest(tmp_path, place):
    root = lay_out(tmp_path / "data", SPLIT)
    (root / "train/dog/copy.png").write_bytes(png(8))
    path = place(root)
    expected = r"1 of 8 test images .* val/cat/val0\.png = train/dog/copy\.png \(sha256 [0-9a-f]{12}\)"
    for _ in range(2):  # measured, then from the cache
        (note,) = opened(path, tmp_path).notes
        assert re.search(expected, note)
    (kept,) = tmp_path.rglob("shared/*.txt")
    kept.write_bytes(b"\xff\xfe damaged")
    assert re.search(expected, *opened(path, tmp_path).notes)


def test_an_empty_class_is_named(tmp_path, place):
    root = lay_out(tmp_path / "data", SPLIT)
    (root / "train/owl").mkdir()
    with pytest.raises(DataError, match="no images in class 'owl'"):
        opened(place(root), tmp_path)


def test_an_empty_class_without_parts_is_named(tmp_path, place):
    root = lay_out(tmp_path / "data", WHOLE)
    (root / "yak").mkdir()
    with pytest.raises(DataError, match="no images in class 'yak'"):
        opened(place(root), tmp_path)


def test_a_single_class_is_refused(tmp_path, place):
    with pytest.raises(DataError, match="only the class cat"):
        opened(place(lay_out(tmp_path / "data", ["cat/1.png", "cat/2.png"])), tmp_path)


def test_a_class_that_training_lacks_is_refused(tmp_path, place):
    with pytest.raises(DataError, match="class 'owl' has test images but no training images"):
        opened(place(lay_out(tmp_path / "data", [*SPLIT, "val/owl/1.png"])), tmp_path)


def test_a_class_of_one_image_cannot_be_divided(tmp_path, place):
    with pytest.raises(DataError, match="class owl has one image"):
        opened(place(lay_out(tmp_path / "data", ["owl/1.png", *WHOLE[:20]])), tmp_path)


def test_an_image_outside_the_class_folders_is_named(tmp_path, place):
    with pytest.raises(DataError, match=r"loose\.png is in no class folder"):
        opened(place(lay_out(tmp_path / "data", [*WHOLE, "loose.png"])), tmp_path)


def test_training_images_alone_are_refused(tmp_path, place):
    with pytest.raises(DataError, match="has only train/; put training images into train/ and test images into val/"):
        opened(place(lay_out(tmp_path / "data", SPLIT[:8])), tmp_path)


@pytest.mark.parametrize(("train", "test"), [("Train", "Val"), ("train", "valid"), ("training", "Testing")])
def test_parts_by_other_names_are_parts_and_no_classes(tmp_path, place, train, test):
    renamed = [name.replace("train/", f"{train}/").replace("val/", f"{test}/") for name in SPLIT]
    dataset = opened(place(lay_out(tmp_path / "data", renamed)), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (8, 8)


def test_parts_to_judge_by_alone_are_refused(tmp_path, place):
    parts = [name.replace("train/", "test/") for name in SPLIT]
    with pytest.raises(DataError, match="has only test/, val/"):
        opened(place(lay_out(tmp_path / "data", parts)), tmp_path)


def test_a_truncated_zip_is_one_line(tmp_path):
    path = zipped(lay_out(tmp_path / "data", SPLIT))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match="is not a readable zip, or is cut short"):
        opened(path, tmp_path)


def test_a_damaged_member_is_named(tmp_path):
    path = zipped(lay_out(tmp_path / "data", SPLIT))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"IHDR") + 40
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    dataset = opened(path, tmp_path)  # the others are still evaluated
    images = [split.load(row) for split in (dataset.train, dataset.test) for row in range(len(split)) if row]
    assert images
    with pytest.raises(ImageError, match=r"data\.zip: .*\.png cannot be read"):
        dataset.train.load(0)


def test_a_file_that_went_away_is_named(tmp_path):
    path = lay_out(tmp_path / "data", SPLIT)
    dataset = opened(path, tmp_path)
    (path / dataset.test.names[1]).unlink()
    with pytest.raises(ImageError, match=r"val1\.png cannot be read: No such file"):
        dataset.test.load(1)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        opened(lay_out(tmp_path / "data", SPLIT), tmp_path)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("imagenete", UnknownNameError, "unknown data set 'imagenete'; did you mean imagenet"),
        ("folder", DataError, "needs a path; give folder:PATH"),
        ("imagenet:", DataError, "needs a path; give imagenet:PATH"),
        ("drawn:/x", DataError, "drawn takes no path"),
        ("/nowhere/at/all", DataError, "no data set and no folder or zip at /nowhere/at/all; data sets: folder, zip"),
        ("zip:/nowhere", ImageError, "no folder or zip at /nowhere"),
        ("~nobody-of-this-name/x", DataError, "is not a valid path (Could not determine home directory.)"),
        ("x" * 300, DataError, "is not a valid path (File name too long)"),
    ],
)
def test_a_spec_that_names_nothing_is_one_line(tmp_path, spec, error, message):
    with pytest.raises(error) as caught:
        open_dataset(spec, cache=tmp_path)
    assert message in str(caught.value)
