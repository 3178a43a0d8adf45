"""Write the patch selection of images as pictures, contact sheets and numbers."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mimruntime import heatmaps
from mimruntime.decode import decode
from mimruntime.embedder import Embedder
from mimruntime.errors import ImageError, OutputError
from mimruntime.image_paths import as_text
from mimruntime.preprocess import crop_box
from mimruntime.resampling import Box
from mimruntime.writing import write_file

_AT_ONCE = 8
"""Decoded images in memory at a time."""
_COLUMNS, _ROWS, _CELL, _GAP, _CAPTION = 6, 8, 220, 10, 16
"""Size of a contact sheet in cells and px."""
_LEGEND_WIDTH = 600
_INK = (70, 70, 70)
_QUALITY = 88


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The weights of the patches in one image's vector.

    Attributes:
        path: path of the image.
        weights: float32 (gh, gw), the weight of every patch; see `Embedder.select`.
        kept: bool (gh, gw), which patches stayed in the encoder; None if all did. See `Embedder.kept`.
        box: the area of the upright image that the patches cover: left, top, right, bottom, in px.
        size: size of the upright image in px.
        picture: the selection drawn over the image.

    """

    path: Path
    weights: np.ndarray
    kept: np.ndarray | None
    box: Box
    size: tuple[int, int]
    picture: Image.Image


def select(embedder: Embedder, paths: Iterable[Path]) -> Iterator[Selection | ImageError]:
    """Yield the selection of every image, in order, or the error if it cannot be read.

    Raises:
        OptionError: the graph has no output "selection".
        EngineError: a run failed.

    """
    remaining = iter(paths)
    while group := list(islice(remaining, _AT_ONCE)):
        images = [_decoded(path) for path in group]
        readable = [image for image in images if isinstance(image, Image.Image)]
        weights, kept = embedder.select(readable), embedder.kept(readable)
        patches = zip(weights, [None] * len(weights) if kept is None else kept, strict=True)
        for path, image in zip(group, images, strict=True):
            yield image if isinstance(image, ImageError) else _selection(embedder, path, image, *next(patches))


def write(selections: Iterable[Selection], out: Path, total: int) -> Iterator[Path]:
    """Write a picture per selection, contact sheets and `selection.npz`; yield every file when it is written.

    Args:
        selections: the selections, in order.
        out: the folder; created if missing.
        total: largest number of selections; it sets the number of digits in file names.

    Raises:
        OutputError: the folder cannot be written.

    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}") from error
    sheet: list[tuple[str, Image.Image]] = []
    sheets = 0
    done: list[Selection] = []
    for number, one in enumerate(selections, 1):
        yield _write_picture(out / f"{number:0{len(str(total))}}-{as_text(one.path.stem)}.jpg", one.picture)
        sheet.append((as_text(one.path.name), one.picture.copy()))
        sheet[-1][1].thumbnail((_CELL, _CELL))
        done.append(replace(one, picture=sheet[-1][1]))
        if len(sheet) == _COLUMNS * _ROWS:
            sheets += 1
            yield _write_picture(out / f"contact-sheet-{sheets}.jpg", contact_sheet(sheet))
            sheet.clear()
    if sheet:
        yield _write_picture(out / f"contact-sheet-{sheets + 1}.jpg", contact_sheet(sheet))
    if done:
        yield _write_numbers(out / "selection.npz", done)


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return one picture that shows all pictures with their names, and a legend below."""
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    step_x, step_y = _CELL + _GAP, _CELL + _CAPTION + _GAP
    width = max(columns * step_x + _GAP, _LEGEND_WIDTH)
    sheet = Image.new("RGB", (width, rows * step_y + _GAP + _CAPTION + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, picture) in enumerate(pictures):
        x, y = _GAP + number % columns * step_x, _GAP + number // columns * step_y
        sheet.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
        shown = name if len(name) <= 34 else f"{name[:16]}…{name[-17:]}"
        pen.text((x + _CELL / 2, y + _CELL + 2), shown, fill=_INK, anchor="ma")
    _draw_legend(pen, _GAP, rows * step_y + _GAP)
    return sheet


def _draw_legend(pen: ImageDraw.ImageDraw, x: float, y: float) -> None:
    for text, colour in heatmaps.LEGEND:
        pen.rectangle((x, y, x + 2 * _CAPTION, y + _CAPTION - 4), fill=colour)
        pen.text((x + 2 * _CAPTION + 6, y), text, fill=_INK)
        x += 2 * _CAPTION + 6 + pen.textlength(text) + 2 * _GAP


def _decoded(path: Path) -> Image.Image | ImageError:
    try:
        return decode(path)
    except ImageError as error:
        return error


def _selection(
    embedder: Embedder, path: Path, image: Image.Image, weights: np.ndarray, kept: np.ndarray | None
) -> Selection:
    spec = embedder.artifact.manifest.preprocess
    drawn = heatmaps.draw(image, weights, kept, spec)
    return Selection(path, weights, kept, crop_box(*image.size, spec), image.size, drawn)


def _write_picture(path: Path, picture: Image.Image) -> Path:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    write_file(path, stream.getbuffer())
    return path


def _write_numbers(path: Path, selections: Sequence[Selection]) -> Path:
    stream = io.BytesIO()
    kept = [one.kept for one in selections if one.kept is not None]
    np.savez_compressed(
        stream,
        allow_pickle=False,
        path=np.array([as_text(one.path) for one in selections], np.str_),
        selection=np.stack([one.weights for one in selections]),
        box=np.array([one.box for one in selections], np.float32),
        size=np.array([one.size for one in selections], np.int64),
        **({"kept": np.stack(kept)} if kept else {}),
    )
    write_file(path, stream.getbuffer())
    return path
