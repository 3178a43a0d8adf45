"""The command `mimexport compare`."""

from __future__ import annotations

from pathlib import Path

import click

from mimeval.cli.options import DEVICE, SampleOptions, sample_options
from mimeval.cli.progress import ConsoleProgress
from mimruntime.cli.command import Command, group, option
from mimruntime.cli.options import PATH
from mimruntime.errors import needs


@click.command(
    "compare",
    cls=Command,
    section="Evaluate",
    examples=(
        "mimexport compare artifacts/cls artifacts/topk --data photos/",
        "mimexport compare artifacts/mean artifacts/topk --data tiny-imagenet --metric knn --json",
    ),
)
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@sample_options
@group(
    "Engine and output",
    option("--engine", default="auto", show_default=True, help="Engine for both."),
    DEVICE,
    option("--out", type=PATH, metavar="FILE.html", help="Also write a page.  [default: none]"),
    option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
)
def compare_command(
    first: Path, second: Path, sample: SampleOptions, engine: str, device: str, out: Path | None, as_json: bool
) -> None:
    """Compare two artifacts on the same labelled images, each with its own classifiers.

    SPEC is as in `mimexport eval`; its help lists the names.
    """
    with needs("eval", "an evaluation"):
        import msgspec

        from mimeval import api
        from mimeval.comparison_page import as_comparison_page
    from mimruntime.outputs import check_writable
    from mimruntime.writing import write_file

    if out is not None:
        check_writable(out)  # before the work
    found = api.compare(first, second, engine=engine, device=device, progress=ConsoleProgress(), **sample.chosen())
    if out is not None:
        write_file(out, as_comparison_page(found).encode())
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(found.verdict())
    click.echo(f"{found.images:,} test images of {found.dataset}; B - A with its 95 % interval; McNemar's test")
    click.echo(f"A {first}, {found.engines[0]}\nB {second}, {found.engines[1]}")
    for row in found.rows:
        test = "" if row.mcnemar is None else f"   p = {row.mcnemar.p:.2g}"
        a, b = (f"{100 * part.value:6.2f}" for part in (row.first, row.second))
        change = row.difference
        click.echo(
            f"{row.metric:<14} A {a}   B {b}   {100 * change.value:+.2f}"
            f" [{100 * change.low:+.2f}, {100 * change.high:+.2f}]{test}"
        )
    for note in found.notes:
        click.echo(f"NOTE: {note}", err=True)
