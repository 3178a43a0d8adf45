"""The command `mimexport search`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.options import CACHE_FOLDER, COUNT, PATH, EngineOptions, engine_options
from mimruntime.cli.printing import one_line, show_bar
from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimruntime.search.collection import Collection
    from mimruntime.search.encoders import Encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What `mimexport search` is asked for; the help says what each is."""

    artifact: str
    source: Path
    queries: tuple[Path, ...]
    top: int
    cache: Path
    as_json: bool


@click.command(
    "search",
    cls=Command,
    section="Use",
    examples=(
        "mimexport search artifacts/mae-tiny-topk photos/ --query cat.jpg",
        "mimexport search http://127.0.0.1:8000 vectors.parquet --query cat.jpg --json",
    ),
)
@click.argument("artifact", metavar="ARTIFACT|URL")
@click.argument("source", type=PATH)
@group(
    "Query",
    option("--query", "queries", type=PATH, multiple=True, required=True, metavar="FILE", help="May be repeated."),
    option("--top", type=COUNT, default=10, show_default=True, help="Neighbours of each."),
)
@group(
    "Output",
    option("--json", "as_json", is_flag=True, help="Print the neighbours as JSON."),
    CACHE_FOLDER,
)
@engine_options
@gather(lambda: SearchOptions, "options")
def search_command(options: SearchOptions, engine: EngineOptions) -> None:
    """Print the nearest neighbours of images.

    SOURCE is a folder of images, embedded once and kept in the cache, or what `mimexport embed` wrote: a file of
    vectors or a folder of shards. Queries are embedded by the artifact, or by the `mimexport serve` at a URL.
    """
    with needs("browse", "a search"):
        from mimruntime.search.encoders import open_encoder
    with open_encoder(options.artifact, **engine.chosen()) as encoder:
        collection = _open(encoder, options)
        for _ in show_bar(collection.fill(), len(collection.gallery) - collection.done):
            pass
        found = [(query, collection.nearest(collection.embed(query), options.top)) for query in options.queries]
        rows = {
            str(query): [
                (collection.gallery.paths[number], float(cosine))
                for number, cosine in zip(each.numbers, each.cosines, strict=True)
            ]
            for query, each in found
        }
        (_print_json if options.as_json else _print_rows)(rows, collection)


def _open(encoder: Encoder, options: SearchOptions) -> Collection:
    from mimruntime.search.collection import open_collection, open_stored
    from mimruntime.search.gallery import gallery_of, open_gallery
    from mimruntime.search.stored import is_stored, read_stored

    if is_stored(options.source):
        stored = read_stored(options.source)
        return open_stored(encoder, gallery_of(stored.paths), stored)
    source = str(options.source)
    return open_collection(encoder, open_gallery([source]), roots=[source], cache=options.cache)


def _print_json(rows: dict[str, list[tuple[str, float]]], collection: Collection) -> None:
    queries = [
        {"query": query, "neighbours": [{"path": path, "cosine": cosine} for path, cosine in found]}
        for query, found in rows.items()
    ]
    click.echo(json.dumps({"embedding_space": collection.space, "queries": queries}, indent=2))


def _print_rows(rows: dict[str, list[tuple[str, float]]], collection: Collection) -> None:
    for query, found in rows.items():
        click.echo(one_line(query))
        for path, cosine in found:
            click.echo(f"  {cosine:.3f}  {one_line(path)}")
    click.echo(
        f"{len(collection.index)} images, {collection.index.kind} index of {collection.index.dim} dimensions,"
        f" embedding space {collection.space}"
    )
    if collection.errors:
        first = next(iter(collection.errors.values()))
        click.echo(f"{len(collection.errors)} could not be read; first: {one_line(first)}", err=True)
