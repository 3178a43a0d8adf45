"""The command `mimexport browse`."""

from __future__ import annotations

from pathlib import Path

import click

from mimruntime.cli.command import Command, group, option
from mimruntime.cli.options import CACHE_FOLDER, PATH, EngineOptions, Number, engine_options
from mimruntime.errors import needs


@click.command(
    "browse",
    cls=Command,
    section="Use",
    examples=(
        "mimexport browse artifacts/mae-tiny-topk --images photos/",
        "mimexport browse artifacts/mae-tiny-cls artifacts/mae-tiny-topk --images photos/ --no-open",
    ),
)
@click.argument("artifacts", nargs=-1, required=True, metavar="ARTIFACT|URL...")
@group(
    "What is shown",
    option("--images", multiple=True, required=True, metavar="FOLDER", help="May be repeated; also patterns."),
    option(
        "--vectors",
        multiple=True,
        type=PATH,
        metavar="FILE|FOLDER",
        help="What `mimexport embed` wrote of these images.  [default: embedded here]",
    ),
    CACHE_FOLDER,
)
@group(
    "Address",
    option("--host", default="127.0.0.1", show_default=True, metavar="IP", help="Elsewhere than here: with a key."),
    option("--port", default=8010, show_default=True, type=Number(0, 65535), help="Port; 0 takes a free one."),
    option("--open/--no-open", "opens", default=True, show_default=False, help="Open a browser.  [default: yes]"),
)
@engine_options
def browse_command(
    artifacts: tuple[str, ...],
    images: tuple[str, ...],
    vectors: tuple[Path, ...],
    cache: Path,
    host: str,
    port: int,
    opens: bool,
    engine: EngineOptions,
) -> None:
    """Open a page on images and their neighbours, by one artifact or by several side by side.

    Images are embedded while the page is open, and kept in the cache. Class folders show right and wrong neighbours.
    An artifact that was built with --with-selection also shows where it looks.
    """
    with needs("browse", "the page"):
        from mimruntime.browse.server import browse
        from mimruntime.browse.settings import BrowseSettings
    settings = BrowseSettings(
        artifacts=artifacts, images=images, vectors=vectors, cache=cache, host=host, port=port, engine=engine.chosen()
    )
    browse(settings, opens=opens)
