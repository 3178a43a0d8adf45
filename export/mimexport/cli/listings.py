"""The commands `mimexport models` and `mimexport aggregators`."""

from __future__ import annotations

import json
from typing import Any

import click

from mimexport.aliases import ALIASES
from mimexport.cli.common import BUILDING
from mimruntime.cli.command import Command, option
from mimruntime.errors import needs


@click.command("models", cls=Command, section="Build", examples=("mimexport models", "mimexport models --json"))
@option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def models_command(as_json: bool) -> None:
    """List the backbones that have a short name.

    Any timm name of a ViT, EVA, BEiT or Hiera works too.
    """
    rows = [
        {"alias": name, "timm": a.timm_name, "size": a.size, "patch": a.patch, "tokens": a.tokens, "dim": a.dim,
         "license": a.license, "note": a.note}
        for name, a in ALIASES.items()
    ]  # fmt: skip
    _print_table(rows, as_json)


@click.command(
    "aggregators", cls=Command, section="Build", examples=("mimexport aggregators", "mimexport aggregators --json")
)
@option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def aggregators_command(as_json: bool) -> None:
    """List the aggregators with their formulas (x_i: patch tokens, N of them)."""
    with needs("export", BUILDING):
        from mimexport.aggregators import AGGREGATORS
    rows = [
        {"aggregator": name, "formula": kind.formula, "token norm": kind.token_norm,
         "needs [cls]": "yes" if kind.needs_cls else "no", "selection": "yes" if kind.has_weights else "no"}
        for name, kind in AGGREGATORS.items()
    ]  # fmt: skip
    _print_table(rows, as_json)


def _print_table(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in [{key: key for key in widths}, *rows]:
        click.echo("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())
