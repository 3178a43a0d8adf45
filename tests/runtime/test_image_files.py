"""Images in a zip are read one by one, and a damaged one is an error of its own."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mimruntime.errors import ImageError
from mimruntime.image_files import list_images


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_member_whose_packing_is_damaged_is_named(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("a.png", bytes(range(256)) * 50)
        start = archive.infolist()[0].header_offset + 30 + len("a.png")
    raw = bytearray(path.read_bytes())
    raw[start + 4 : start + 20] = b"\xff" * 16
    path.write_bytes(raw)
    with pytest.raises(ImageError, match=r"images\.zip: a\.png cannot be read"):
        list_images(path)[0].read()
