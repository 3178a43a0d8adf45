"""A zip or tar is a folder that needs no unpacking, and one made to harm is refused before it does."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from collection_helpers import mimexport

from mimruntime import read_vectors
from mimruntime.collection import archives
from mimruntime.collection.access import Access
from mimruntime.collection.inputs import Columns, Entry, find_entries
from mimruntime.collection.reader import read_images
from mimruntime.errors import ImageError
from mimruntime.image_names import is_image_name

NAMES = ("b/2.jpg", "a/1.jpg", "notes.txt", ".hidden.jpg", "__MACOSX/a/1.jpg", "c.JPG")
SMALL = Access(max_bytes=1_000_000)


def tar_of(path: Path, files: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def zip_of(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def files(photo: Path) -> dict[str, bytes]:
    return {name: photo.read_bytes() + name.encode() for name in NAMES}


def entries(path: Path, access: Access = SMALL) -> list[Entry]:
    return list(find_entries([str(path)], Columns(), access))


def images(path: Path, access: Access = SMALL) -> list[tuple]:
    return list(read_images(entries(path, access), Columns(), access=access))


@pytest.mark.parametrize(("name", "mode"), [("x.zip", ""), ("x.tar", "w"), ("x.tgz", "w:gz"), ("x.tar.xz", "w:xz")])
def test_images_come_out_as_they_went_in_under_their_names(
    tmp_path: Path, files: dict[str, bytes], name: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = zip_of(tmp_path / name, files) if name == "x.zip" else tar_of(tmp_path / name, files, mode)
    wanted = ["b/2.jpg", "a/1.jpg", "c.JPG"]
    assert entries(path) == [Entry(str(path), 0, 3)]
    assert sorted(images(path)) == sorted((f"{path}/{one}", files[one]) for one in wanted)
    assert caplog.messages[0] == "1 file was passed over: 1 TXT"
    url = list(read_images(find_entries([f"file://{path}"], Columns(), SMALL), Columns(), access=SMALL))
    assert sorted(url) == sorted((f"file://{path}/{one}", files[one]) for one in wanted)


def test_an_archive_a_list_and_a_folder_give_the_same_vectors(
    toy_artifact: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{index}.jpg": photo.read_bytes() for index in range(3)} | {"broken.jpg": b"no image"}
    packed = tar_of(tmp_path / "x.tar.gz", files, "w:gz")
    (tmp_path / "x").mkdir()
    for name, content in files.items():
        (tmp_path / "x" / name).write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{packed}\n{tmp_path}/x/0.jpg\n".encode())))
    assert mimexport("embed", toy_artifact, "-", "--out", tmp_path / "shards", "--shard-size", 2) == 0
    assert "1 could not be read" in capsys.readouterr().err
    stored = [read_vectors(path) for path in sorted((tmp_path / "shards").glob("part-*"))]
    paths = [path for part in stored for path in part.paths]
    assert paths == [f"{packed}/{name}" for name in files] + [f"{tmp_path}/x/0.jpg"]
    assert not list(tmp_path.glob("**/*.partial"))
    vectors = np.concatenate([part.vectors for part in stored])
    read = ~np.isnan(vectors).any(axis=1)
    assert read.tolist() == [True, True, True, False, True]
    assert np.abs(vectors[read] - vectors[0]).max() < 1e-5


def zip_that_lists_twice(path: Path, files: dict[str, bytes]) -> None:
    raw = zip_of(path, {"a.jpg": files["c.JPG"]}).read_bytes()
    start = raw.index(b"PK\1\2")
    listed, end = raw[start : raw.index(b"PK\5\6")], bytearray(raw[raw.index(b"PK\5\6") :])
    end[8:16] = struct.pack("<HHI", 3, 3, 3 * len(listed))
    path.write_bytes(raw[:start] + 3 * listed + bytes(end))


def tar_of_a_long_header(path: Path, _: dict[str, bytes]) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 3_000_000
    with gzip.open(path, "wb") as stream:
        stream.write(header.tobuf() + bytes(3_000_320))


def tar_that_grows(path: Path, _: dict[str, bytes]) -> None:
    header = tarfile.TarInfo("x.bin")
    header.size = 90_000_000
    with gzip.open(path, "wb") as stream:
        stream.write(header.tobuf() + bytes(50_000_000))


def cut_zip(path: Path, files: dict[str, bytes]) -> None:
    zip_of(path, files)
    path.write_bytes(path.read_bytes()[:-60])


def cut_tar(path: Path, files: dict[str, bytes]) -> None:
    tar_of(path, files, "w:gz")
    path.write_bytes(path.read_bytes()[:-3000])


HARMFUL: dict[str, tuple[Callable[[Path, dict[str, bytes]], None], str, str]] = {
    "overlap": (zip_that_lists_twice, "x.zip", "has members of more bytes than the file; they overlap"),
    "header": (tar_of_a_long_header, "x.tgz", "has a header of 3,000,320 bytes|has a header of 3,000,[0-9]* bytes"),
    "growth": (tar_that_grows, "x.tgz", "grows to more than [0-9,]+ bytes, as no images do"),
    "cut zip": (cut_zip, "x.zip", "archive cannot be read"),
    "cut tar": (cut_tar, "x.tgz", "archive cannot be read"),
    "no archive": (lambda path, _: path.write_bytes(b"text" * 500) and None, "x.tar", "archive cannot be read"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_an_archive_made_to_harm_is_refused(tmp_path: Path, files: dict[str, bytes], harm: str) -> None:
    make, name, reason = HARMFUL[harm]
    make(tmp_path / name, files)
    with pytest.raises(ImageError, match=rf"{name}: ({reason})"):
        entries(tmp_path / name)


def test_a_member_that_is_too_large_is_a_row_with_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    content = {"a.jpg": bytes(2_000_000), "b.jpg": files["c.JPG"]}
    for path in (
        zip_of(tmp_path / "x.zip", content, zipfile.ZIP_DEFLATED),
        tar_of(tmp_path / "x.tar", content, "w"),
    ):
        (_, large), (_, small) = images(path)
        assert "is larger than 1 MB; to read it: --max-object-mb 2" in str(large)
        assert small == files["c.JPG"]


def test_the_number_of_members_is_bounded(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    with pytest.raises(ImageError, match="has more than 3 members; divide it"):
        entries(zip_of(tmp_path / "x.zip", files))


def test_an_archive_that_was_changed_says_so_in_each_row_that_is_left(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = zip_of(tmp_path / "x.zip", files)
    found = entries(path)
    zip_of(path, {"a.jpg": files["c.JPG"]})
    read = list(read_images(found, Columns(), access=SMALL))
    assert [isinstance(image, ImageError) for _, image in read] == [False, True, True]


class TestPassedOver:
    def test_what_is_passed_over_in_a_folder_is_counted_by_format(
        self, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("mimruntime.image_names._reads_heic", lambda: False)
        for name in [f"{index}.HEIC" for index in range(10)] + ["a.svg", "sub/b.svg", ".hidden.svg", "photo.jpg"]:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(photo.read_bytes())
        said = '12 files were passed over: 10 HEIC (pip install "mimexport[heif]" reads them), 2 SVG'
        for place in (str(tmp_path), f"file://{tmp_path}"):
            caplog.clear()
            assert len(list(find_entries([place], Columns()))) == 1
            assert caplog.messages == [said]
        (tmp_path / "photo.jpg").unlink()
        with pytest.raises(ImageError, match=r"no images in .*; looked for .*; 12 files were passed over: 10 HEIC"):
            list(find_entries([str(tmp_path)], Columns()))

    def test_with_its_package_heic_is_taken(self) -> None:
        assert is_image_name("IMG_0001.HEIC")
        assert not is_image_name("clip.mov")

    def test_the_command_says_it_once(
        self, toy_artifact: Path, tmp_path: Path, photo: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "in").mkdir()
        for name in ("a.jpg", "b.svg", "c.svg"):
            (tmp_path / "in" / name).write_bytes(photo.read_bytes())
        assert mimexport("embed", toy_artifact, tmp_path / "in", "--out", tmp_path / "o.npz") == 0
        assert [line for line in caplog.messages if "passed over" in line] == ["2 files were passed over: 2 SVG"]
