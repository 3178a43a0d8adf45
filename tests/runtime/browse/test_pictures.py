"""Thumbnails are made once, and again where the image has changed."""

import io
import shutil

import pytest
from PIL import Image

from mimruntime.browse.pictures import Pictures
from mimruntime.browse.session import Session
from mimruntime.errors import ImageError, OutputError
from mimruntime.search.gallery import open_gallery


@pytest.fixture
def gallery(photos, tmp_path):
    shutil.copy(photos[0], tmp_path / "one.png")
    (tmp_path / "two.jpg").write_text("no image")
    return open_gallery([str(tmp_path)])


def test_a_thumbnail_is_made_once(gallery, tmp_path, photos, monkeypatch):
    pictures = Pictures(gallery, tmp_path / "cache" / "kept.sqlite")
    first = pictures.thumbnail(0)
    pictures.close()
    assert max(Image.open(io.BytesIO(first)).size) == 256

    def made_again(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(Pictures, "render", made_again)
    again = Pictures(gallery, tmp_path / "cache" / "kept.sqlite")
    assert again.thumbnail(0) == first
    shutil.copy(photos[1], gallery.paths[0])
    with pytest.raises(NotImplementedError):
        again.thumbnail(0)
    again.close()


def test_an_image_edited_in_place_is_another_version_of_the_page(gallery, tmp_path, photos):
    """Else a browser would show its old picture for ever."""

    def version(images=gallery):
        return Session([], images, [], None).version

    before = version()
    assert version() == before
    (tmp_path / "two.jpg").rename(tmp_path / "three.jpg")
    assert version(open_gallery([str(tmp_path)])) != before
    (tmp_path / "three.jpg").rename(tmp_path / "two.jpg")
    assert version() == before
    shutil.copy(photos[1], tmp_path / "one.png")
    assert version() != before


def test_an_error_names_the_image_and_not_its_place(gallery, tmp_path):
    pictures = Pictures(gallery, tmp_path / "cache" / "kept.sqlite")
    with pytest.raises(ImageError, match=r"^two\.jpg: is not an image"):
        pictures.thumbnail(1)
    pictures.close()


def test_a_file_that_is_another_is_an_error(gallery, tmp_path):
    (tmp_path / "kept.sqlite").write_text("no database, and long enough to be seen as none " * 20)
    with pytest.raises(OutputError, match="name another folder: --cache"):
        Pictures(gallery, tmp_path / "kept.sqlite")
