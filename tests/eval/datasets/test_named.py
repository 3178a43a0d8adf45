"""The published forms of named sets, written small by the tests, are read as their authors describe them."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from mimeval.datasets import cifar10, imagenet, open_dataset
from mimeval.datasets.fetch import Archive
from mimeval.errors import DataError
from mimruntime.decode import decode
from mimruntime.errors import ImageError


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 255 - value)).save(stream, "PNG")
    return stream.getvalue()


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def cifar(tmp_path):
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"]
    records = {name: rng.integers(0, 256, (20, 3073), np.uint8) for name in names}
    for table in records.values():
        table[:, 0] = np.arange(20) % 10
    return write(tmp_path / "cifar", {name: table.tobytes() for name, table in records.items()}), records


def test_cifar10_is_read_plane_by_plane(cifar, tmp_path):
    folder, records = cifar
    dataset = open_dataset(f"cifar10:{folder}", cache=tmp_path / "cache")
    assert (len(dataset.train), len(dataset.test)) == (100, 20)
    record = records["data_batch_3.bin"][7]
    image = np.asarray(decode(dataset.train.load(47)))
    assert image[2, 5].tolist() == [record[1 + plane * 1024 + 2 * 32 + 5] for plane in range(3)]
    assert dataset.classes[dataset.train.labels[47]] == "horse"


@pytest.mark.parametrize("damage", ["cut", "label", "missing"])
def test_damaged_cifar10_is_one_line(cifar, tmp_path, damage):
    folder, _ = cifar
    file = folder / "data_batch_2.bin"
    raw = bytearray(file.read_bytes())
    raw[0] = 200
    {"cut": lambda: file.write_bytes(raw[:-5]), "label": lambda: file.write_bytes(raw), "missing": file.unlink}[
        damage
    ]()
    with pytest.raises(DataError, match=r"data_batch_2\.bin (has 61,4\d\d bytes, expected|cannot be read: No such)"):
        open_dataset(f"cifar10:{folder}", cache=tmp_path / "cache")


def test_stl10_is_read_column_by_column(tmp_path):
    rng = np.random.default_rng(0)
    planes = {part: rng.integers(0, 256, (10, 3, 96, 96), np.uint8) for part in ("train", "test")}
    labels = np.arange(1, 11, dtype=np.uint8)
    files = {f"{part}_X.bin": table.tobytes() for part, table in planes.items()}
    folder = write(tmp_path / "stl", files | {f"{part}_y.bin": labels.tobytes() for part in planes})
    dataset = open_dataset(f"stl10:{folder}", cache=tmp_path / "cache")
    image = np.asarray(decode(dataset.test.load(4)))
    assert image[10, 20].tolist() == planes["test"][4, :, 20, 10].tolist()
    assert dataset.classes[dataset.test.labels[9]] == "truck"
    (folder / "test_y.bin").write_bytes(labels[:-1].tobytes())
    with pytest.raises(DataError, match=r"276,480 and 9 bytes, expected 27,648 for every label"):
        open_dataset(f"stl10:{folder}", cache=tmp_path / "cache")


WNIDS = ("n01443537", "n01629819")
TINY = (
    {f"train/{wnid}/images/{wnid}_{i}.JPEG": png(10 * i + j) for j, wnid in enumerate(WNIDS) for i in range(3)}
    | {f"val/images/val_{i}.JPEG": png(100 + i) for i in range(4)}
    | {f"test/images/test_{i}.JPEG": png(200 + i) for i in range(4)}
    | {"val/val_annotations.txt": "".join(f"val_{i}.JPEG\t{WNIDS[i % 2]}\t0\t0\t1\t1\n" for i in range(4)).encode()}
)


def zipped(files, target, root="tiny-imagenet-200/"):
    with zipfile.ZipFile(target, "w") as archive:
        for folder in sorted({f"{root}{name.rsplit('/', 1)[0]}/" for name in files}):
            archive.writestr(folder, "")
        for name, content in files.items():
            archive.writestr(root + name, content)
    return target


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_published_tiny_imagenet_takes_validation_labels_from_its_list(tmp_path, kind):
    path = zipped(TINY, tmp_path / "t.zip") if kind == "zip" else write(tmp_path / "t", TINY)
    dataset = open_dataset(f"tiny-imagenet:{path}", cache=tmp_path / "cache")
    assert dataset.classes == WNIDS
    assert dataset.name == "tiny-imagenet"
    of_name = {
        name.rsplit("/", 1)[1]: label for name, label in zip(dataset.test.names, dataset.test.labels, strict=True)
    }
    assert of_name == {"val_0.JPEG": 0, "val_1.JPEG": 1, "val_2.JPEG": 0, "val_3.JPEG": 1}
    assert len(dataset.train) == 6


def test_class_folders_of_tiny_imagenet_are_read_as_well(tmp_path):
    files = {name: content for name, content in TINY.items() if name.startswith("train")}
    path = zipped(files | {f"val/{wnid}/{i}.JPEG": png(i) for i, wnid in enumerate(WNIDS)}, tmp_path / "t.zip", "")
    assert len(open_dataset(f"tiny-imagenet:{path}", cache=tmp_path / "cache").test) == 2


def test_a_validation_image_without_a_label_is_named(tmp_path):
    with pytest.raises(DataError, match="does not say which class val/images/more"):
        open_dataset(f"tiny-imagenet:{write(tmp_path / 't', TINY | {'val/images/more.JPEG': png(1)})}", cache=tmp_path)


def test_a_missing_list_of_validation_labels_is_named(tmp_path):
    files = {name: content for name, content in TINY.items() if not name.endswith(".txt")}
    for path in (write(tmp_path / "t", files), zipped(files, tmp_path / "t.zip")):
        with pytest.raises(ImageError, match=r"val/val_annotations\.txt with the classes .* cannot be read"):
            open_dataset(f"tiny-imagenet:{path}", cache=tmp_path)


def test_imagenet_wants_wordnet_ids(tmp_path):
    good = {f"{part}/{wnid}/{part}{i}.JPEG": png(i) for part in ("train", "val") for wnid in WNIDS for i in range(2)}
    assert open_dataset(f"imagenet:{write(tmp_path / 'good', good)}", cache=tmp_path).name == "imagenet"
    bad = {name.replace(WNIDS[0], "cat"): content for name, content in good.items()}
    with pytest.raises(DataError, match=r"class 'cat', expected WordNet ids such as n01440764; read it as folder:"):
        open_dataset(f"imagenet:{write(tmp_path / 'bad', bad)}", cache=tmp_path)


def test_flat_validation_images_of_imagenet_are_named(tmp_path):
    flat = {f"train/{wnid}/a.JPEG": png(1) for wnid in WNIDS} | {"val/ILSVRC2012_val_00000001.JPEG": png(2)}
    with pytest.raises(DataError, match=r"val/ILSVRC2012_val_00000001\.JPEG is in no class folder"):
        open_dataset(f"imagenet:{write(tmp_path / 'flat', flat)}", cache=tmp_path)


def test_a_named_set_is_read_from_the_cache_when_its_archive_lies_there(tmp_path):
    zipped(TINY, tmp_path / "datasets-source.zip")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets-source.zip").rename(tmp_path / "datasets" / imagenet.TINY.name)
    assert len(open_dataset("tiny-imagenet", cache=tmp_path).test) == 4


def test_a_named_set_without_a_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("mimeval.datasets.fetch.PAUSE", 0.0)
    closed = Archive("http://127.0.0.1:1/cifar-10-binary.tar.gz", hashlib.md5(b"").hexdigest(), 170_052_171)
    monkeypatch.setattr(cifar10, "ARCHIVE", closed)
    with pytest.raises(DataError, match=r"cannot be fetched .*refused.*put the file \(170 MB, md5 .*datasets$"):
        open_dataset("cifar10", cache=tmp_path)
