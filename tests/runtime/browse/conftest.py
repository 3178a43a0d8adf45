"""One page on photographs in class folders, by two artifacts of which one says where it looks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Page, running_page
from PIL import Image

SCRIPT_NAME = "<img src=x onerror=document.title='owned'>&amp;.png"


@pytest.fixture(scope="session")
def script_name() -> str:
    return SCRIPT_NAME


@pytest.fixture(scope="session")
def folder(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 crops of 8 photographs in class folders; one is called by a script, one turned by EXIF, two files are no images."""
    folder = tmp_path_factory.mktemp("browse") / "photos"
    for photo in photos:
        place = folder / photo.stem
        place.mkdir(parents=True)
        with Image.open(photo) as image:
            whole = image.convert("RGB").resize((320, 240))
        for number in range(12):
            left, top = number % 4 * 60, number // 4 * 50
            whole.crop((left, top, left + 120, top + 100)).save(place / f"{number:02}.png")
    first = folder / "chelsea" / "00.png"
    first.rename(first.with_name(SCRIPT_NAME))
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
def page(
    folder: Path, toy_artifact: Path, toy_without_selection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    place = tmp_path_factory.mktemp("page")
    arguments = (toy_without_selection, toy_artifact, "--images", folder, "--cache", place / "cache")
    with running_page(*arguments, "--no-check-reference", log=place / "log") as running:
        yield running
