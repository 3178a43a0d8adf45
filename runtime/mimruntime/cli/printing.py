"""Print tables, sizes and progress in commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

from mimruntime.image_paths import as_text

_Item = TypeVar("_Item")


def print_table(rows: Iterable[tuple[str, str]]) -> None:
    """Print a name and a text per line."""
    for name, text in rows:
        click.echo(f"{name:<11} {text}")


def size_text(count: int) -> str:
    """Return a number of bytes as text in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def one_line(text: str) -> str:
    r"""Return a text with what a terminal would obey, or not show, as escapes; file names may hold it (`\n`, `\x1b`)."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in as_text(text))


def show_bar(results: Iterable[_Item], total: int, label: str = "embedding") -> Iterator[_Item]:
    """Yield `results`, with a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    with click.progressbar(results, length=total, label=label, show_pos=True, file=sys.stderr) as bar:
        yield from bar
