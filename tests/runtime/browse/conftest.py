"""One page on photographs in class folders, by three artifacts: one does not say where it looks, one squashes images."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from browsing import Page, running_page
from PIL import Image

from mimruntime.artifact import Artifact, seal

HOSTILE_NAMES = (
    "<img src=x onerror=document.title='owned'>&amp;.png",
    "quote'\"`.png",
    "new\nline and a tab\t.png",
    "猫 ünïcödé \u202egnp.png",
    "a#b%20c&d+e?f=g;%2f.png",
    "x" * 240 + ".png",
)


@pytest.fixture(scope="session")
def hostile_names() -> tuple[str, ...]:
    """Names of images in the class `chelsea`."""
    return HOSTILE_NAMES


@pytest.fixture(scope="session")
def folder(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 crops of 8 photographs in class folders; six have hostile names, one is turned by EXIF, two files are no images."""
    folder = tmp_path_factory.mktemp("browse") / "photos"
    for photo in photos:
        place = folder / photo.stem
        place.mkdir(parents=True)
        with Image.open(photo) as image:
            whole = image.convert("RGB").resize((320, 240))
        for number in range(12):
            left, top = number % 4 * 60, number // 4 * 50
            whole.crop((left, top, left + 120, top + 100)).save(place / f"{number:02}.png")
    for number, name in enumerate(HOSTILE_NAMES):
        (folder / "chelsea" / f"{number:02}.png").rename(folder / "chelsea" / name)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera of somebody"
    with Image.open(photos[0]) as image:
        image.convert("RGB").resize((300, 200)).save(
            folder / "chelsea" / "turned.jpg", exif=exif, comment=b"a comment of somebody"
        )
    (folder / "chelsea" / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    shutil.copy(__file__, folder / "chelsea" / "text.jpg")
    return folder


@pytest.fixture(scope="session")
def toy_squashed(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy artifact, which sees the whole image squashed; in a space of its own."""
    folder = Path(shutil.copytree(toy_artifact, tmp_path_factory.mktemp("squashed") / "toy-squashed"))
    found = Artifact.open(folder).manifest
    (folder / "manifest.json").unlink()
    pixels = msgspec.structs.replace(found.preprocess, mode="squash")
    seal(folder, msgspec.structs.replace(found, preprocess=pixels, embedding_space="5c0a" * 4, files={}))
    return folder


@pytest.fixture(scope="session")
def page(
    folder: Path,
    toy_without_selection: Path,
    toy_artifact: Path,
    toy_squashed: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Page]:
    place = tmp_path_factory.mktemp("page")
    artifacts = (toy_without_selection, toy_artifact, toy_squashed)
    arguments = (*artifacts, "--images", folder, "--cache", place / "cache", "--no-check-reference")
    with running_page(*arguments, log=place / "log") as running:
        yield running


@pytest.fixture(scope="session")
def page_with_key(folder: Path, toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of one class on another address than a browser's own machine; its address ends in the key."""
    if sys.platform != "linux":
        pytest.skip("127.0.0.2 is an address of this machine on Linux alone")
    place = tmp_path_factory.mktemp("page-with-key")
    arguments = (toy_artifact, "--images", folder / "coffee", "--cache", place / "cache", "--no-check-reference")
    with running_page(*arguments, "--host", "127.0.0.2", log=place / "log") as running:
        yield running
