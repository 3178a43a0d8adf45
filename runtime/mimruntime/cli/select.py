"""The command `mimexport select`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, option
from mimruntime.cli.options import PATH, EngineOptions, engine_options
from mimruntime.cli.printing import one_line, show_bar
from mimruntime.errors import ImageError

if TYPE_CHECKING:
    from mimruntime.selection import Selection


@click.command(
    "select",
    cls=Command,
    section="Use",
    examples=(
        "mimexport select artifacts/mae-tiny-topk photos/ --out heatmaps/",
        "mimexport select artifacts/mae-tiny-topk cat.jpg 'dogs/*.jpg' --out heatmaps/",
    ),
)
@click.argument("artifact", type=PATH)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@option("--out", required=True, type=PATH, metavar="FOLDER", help="Pictures, contact sheets, and selection.npz.")
@engine_options
def select_command(artifact: Path, inputs: tuple[str, ...], out: Path, engine: EngineOptions) -> None:
    """Draw the patches that make an image's vector over the image.

    INPUT is an image, a folder (with all below it) or a quoted pattern. Colour says how much a patch counts: dark
    little, clear most. Grey patches are not selected; black ones are dropped early in the encoder (--keep), or lie
    outside of the crop. The artifact needs the output `selection`, which `build --with-selection` adds.
    """
    from mimruntime.embedder import Embedder
    from mimruntime.image_paths import find_images
    from mimruntime.selection import select, write

    paths = find_images(inputs)
    errors: list[ImageError] = []
    with Embedder.open(artifact, **engine.chosen()) as embedder:
        found = _readable(show_bar(select(embedder, paths), len(paths), label="drawing"), errors)
        files = list(write(found, out, len(paths)))
    if not files:
        raise ImageError(f"none of {len(paths)} images could be read, nothing is drawn; first: {errors[0]}")
    sheets = [file for file in files if file.name.startswith("contact-sheet-")]
    click.echo(f"{out}  {len(paths) - len(errors)} pictures, the weights in {files[-1].name}")
    for sheet in sheets:
        click.echo(f"{sheet}")
    if errors:
        click.echo(f"{len(errors)} could not be read; first: {one_line(str(errors[0]))}", err=True)


def _readable(found: Iterable[Selection | ImageError], errors: list[ImageError]) -> Iterator[Selection]:
    for one in found:
        if isinstance(one, ImageError):
            errors.append(one)
        else:
            yield one
