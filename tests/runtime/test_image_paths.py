"""Files, folders and patterns give an ordered list, and nothing is passed over in silence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mimruntime.errors import ImageError
from mimruntime.image_paths import as_text, find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/c.webp", "sub/deep/d.tiff", ".git/e.jpg", "z.gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_a_folder_is_walked_in_order_of_name_without_hidden_or_other_files(tree: Path) -> None:
    assert names(find_images([tree]), tree) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tiff", "z.gif"]


def test_arguments_keep_their_order(tree: Path) -> None:
    assert names(find_images([tree / "z.gif", str(tree / "sub"), tree / "b.jpg"]), tree) == [
        "z.gif", "sub/c.webp", "sub/deep/d.tiff", "b.jpg",
    ]  # fmt: skip


def test_a_file_named_by_itself_is_taken_whatever_it_is_called(tree: Path) -> None:
    assert names(find_images([tree / "notes.txt", tree / ".hidden.jpg"]), tree) == ["notes.txt", ".hidden.jpg"]


def test_a_pattern_is_expanded_in_order(tree: Path) -> None:
    assert names(find_images([str(tree / "*.[jg]*")]), tree) == ["b.jpg", "z.gif"]
    assert names(find_images([str(tree / "**/*.tiff")]), tree) == ["sub/deep/d.tiff"]


@pytest.mark.parametrize("pattern", ["**", "**/*", "[!.]*"])
def test_an_image_is_taken_once_where_its_folder_is_named_too(tree: Path, pattern: str) -> None:
    found = names(find_images([str(tree / pattern)]), tree)
    assert [name for name in found if name != "notes.txt"] == [
        "a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tiff", "z.gif",
    ]  # fmt: skip


def test_a_file_with_brackets_in_its_name_is_no_pattern(tree: Path) -> None:
    (tree / "x[1].jpg").touch()
    assert names(find_images([tree / "x[1].jpg"]), tree) == ["x[1].jpg"]


@pytest.mark.parametrize("name", ["gone.jpg", "gone/*.jpg"])
def test_a_missing_path_or_an_empty_pattern_is_named(tree: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"gone.*: no such file or folder"):
        find_images([tree / "b.jpg", tree / name])


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no images in .*; looked for \.avif, \.bmp"):
        find_images([tmp_path])


def test_a_loop_of_links_ends_and_gives_each_image_once(tree: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    assert names(find_images([tree]), tree) == ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tiff", "z.gif"]


def test_a_linked_folder_is_followed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "linked.jpg").touch()
    (tree / "link").symlink_to(other)
    assert "link/linked.jpg" in names(find_images([tree]), tree)


def test_a_broken_link_is_kept_so_that_it_is_reported(tree: Path) -> None:
    (tree / "broken.jpg").symlink_to(tree / "nowhere")
    assert "broken.jpg" in names(find_images([tree]), tree)
    assert names(find_images([tree / "broken.jpg"]), tree) == ["broken.jpg"]


def test_a_pipe_in_a_folder_is_passed_over_since_it_would_block(tree: Path) -> None:
    os.mkfifo(tree / "pipe.jpg")
    assert "pipe.jpg" not in names(find_images([tree]), tree)


def test_a_folder_that_cannot_be_read_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ImageError, match=r"deep: folder cannot be read \(Permission denied\)"):
        find_images([tree])


def test_a_name_that_is_not_utf8_still_becomes_text() -> None:
    assert as_text(os.fsdecode(b"caf\xe9/\xc3\xa9.jpg")) == "caf\\xe9/é.jpg"
