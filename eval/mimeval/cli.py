"""The commands of the evaluation: `eval` and `compare`."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimeval.api import TorchSide
    from mimeval.report import Report

_EVERY_SECONDS = 10.0
_TABLE_MARKER = "<!-- written by `make eval-table`, below this line -->"


class OpenTorchSide(Protocol):
    """(checkpoint or None, head files) -> the torch side; what click hands to `eval` as its object."""

    def __call__(self, weights: Path | None, heads: tuple[Path, ...]) -> TorchSide:
        """Return the torch side."""


class ConsoleProgress:
    """What a person sees on stderr while it runs: a line that is rewritten, or one every ten seconds in a log."""

    def __init__(self) -> None:
        self._last = 0.0
        self._open = False

    def say(self, line: str) -> None:
        """Show a line."""
        self._finish()
        click.echo(line, err=True)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show how far `name` is."""
        terminal = sys.stderr.isatty()
        if not terminal and done < total and time.monotonic() - self._last < _EVERY_SECONDS:
            return
        self._last = time.monotonic()
        line = f"  {name}: {done:,} of {total:,}"
        click.echo(f"\r{line:<78}" if terminal else line, nl=not terminal, err=True)
        self._open = terminal
        if terminal and done == total:
            self._finish()

    def _finish(self) -> None:
        if self._open:
            click.echo(err=True)
            self._open = False


def write_reports(report: Report, stem: Path, table: Path | None = None) -> None:
    """Print the table of `report`, and write STEM.json, STEM.md and STEM.html.

    What is there is replaced when all of it is written, so that a full disk leaves the old files.

    Args:
        report: an evaluation.
        stem: path without its suffix.
        table: a page below whose marker the table is written too.

    Raises:
        OutputError: a file cannot be written.

    """
    from mimeval.markdown import as_markdown
    from mimeval.page import as_page
    from mimeval.report import encode
    from mimruntime.errors import OutputError
    from mimruntime.writing import staged_file

    text = as_markdown(report)
    parts = {".json": encode(report), ".md": text.encode(), ".html": as_page(report).encode()}
    files = {stem.with_name(stem.name + suffix): raw for suffix, raw in parts.items()}
    try:
        if table is not None:
            prose = table.read_text(encoding="utf-8").split(_TABLE_MARKER)[0] if table.exists() else ""
            files[table] = f"{prose}{_TABLE_MARKER}\n\n{text}".encode()
        stem.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:  # all are written before the first is put in its place
            for path, raw in files.items():
                stream = stack.enter_context(staged_file(path))
                stream.write(raw)
                stream.flush()
    except OSError as error:
        raise OutputError(f"cannot write the report {stem}: {error.strerror or error}") from error
    click.echo(text)
    click.echo(f"{stem}.json, .md, .html")


def _common(command: click.Command) -> click.Command:
    """Add the options that `eval` and `compare` share."""
    options = [
        click.Option(["--data"], required=True, metavar="SPEC", help=_data_help()),
        click.Option(
            ["--metric", "metrics"],
            multiple=True,
            help="knn, linear, few-shot, retrieval.  [default: all that the data allow]",
        ),
        click.Option(["--limit"], type=click.IntRange(min=1), help="Test images at most, classes in balance."),
        click.Option(["--train-limit"], type=click.IntRange(min=1), help="Training images at most.  [default: all]"),
        click.Option(
            ["--cache"],
            type=click.Path(path_type=Path),
            default=Path("~/.cache/mimexport"),
            show_default=True,
            help="Folder for features and fetched data.",
        ),
        click.Option(
            ["--seed"],
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Of the image draw and the bootstrap.",
        ),
    ]
    command.params.extend(options)
    return command


def _data_help() -> str:
    return (
        "A folder or zip of CLASS/image, or NAME[:PATH]: tiny-imagenet, imagenet, imagenette, cifar10, stl10,"
        " roxford5k, rparis6k, drawn, crops. shifted:SPEC moves subjects out of the centre."
    )


@_common
@click.command("eval")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT...")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    default=("all",),
    show_default=True,
    metavar="all|NAME[:PRECISION]",
    help="What runs the artifacts; may be repeated. torch:bf16 and torch:fp16 show what a precision costs on any CPU.",
)
@click.option(
    "--baseline",
    "given",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What gains are counted from.  [default: [cls], among the artifacts or built]",
)
@click.option(
    "--deployed", type=click.IntRange(min=1), metavar="N", help="Engines see this many test images, torch all of them."
)
@click.option(
    "--own/--no-own",
    default=True,
    show_default=True,
    help="Also fit on every engine's own features of the training images.",
)
@click.option(
    "--margin",
    type=click.FloatRange(min=0, max=100, min_open=True),
    default=0.5,
    show_default=True,
    help="Loss of gain that is tolerated, in points.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Checkpoint, where an artifact's weights came from a file.",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Head, where an artifact's is not part of this package.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reports/eval"),
    show_default=True,
    help="Stem of the .json, .md and .html files.",
)
@click.pass_obj
def evaluate(
    open_torch_side: OpenTorchSide,
    artifacts: tuple[Path, ...],
    engines: tuple[str, ...],
    given: tuple[Path, ...],
    deployed: int | None,
    own: bool,
    margin: float,
    weights: Path | None,
    heads: tuple[Path, ...],
    out: Path,
    data: str,
    metrics: tuple[str, ...],
    limit: int | None,
    train_limit: int | None,
    cache: Path,
    seed: int,
) -> int:
    """Did the gain over [cls] carry over from torch to the engines?

    Exit status: 0 it did, 1 it did not (or an error), 3 undecided, 2 wrong usage.
    """
    with needs("eval", "an evaluation"):
        from mimeval import api
        from mimeval.verdict import EXIT
    from mimruntime.outputs import check_writable

    if not margin > 0:  # NaN passes click's range
        raise click.UsageError(f"--margin {margin}: expected points above 0")
    if not out.name:
        raise click.UsageError(f"--out {out}: expected the stem of the files, for example reports/eval")
    check_writable(out.with_name(f"{out.name}.json"))  # before the work
    report = api.evaluate(
        artifacts,
        data=data,
        baseline=given,
        engines=engines,
        metrics=metrics,
        limit=limit,
        train_limit=train_limit,
        deployed=deployed,
        own=own,
        margin=margin / 100,
        seed=seed,
        cache=cache,
        torch_side=open_torch_side(weights, heads),
        progress=ConsoleProgress(),
    )
    write_reports(report, out)
    return EXIT[report.verdict]


@_common
@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--engine", default="auto", show_default=True, help="What runs both.")
@click.option("--json", "as_json", is_flag=True, help="For a program.")
def compare(
    first: Path,
    second: Path,
    engine: str,
    as_json: bool,
    data: str,
    metrics: tuple[str, ...],
    limit: int | None,
    train_limit: int | None,
    cache: Path,
    seed: int,
) -> None:
    """Which of two artifacts is better on these images, each with classifiers of its own?"""
    with needs("eval", "an evaluation"):
        import msgspec

        from mimeval import api
    found = api.compare(
        first, second, data=data, engine=engine, metrics=metrics, limit=limit, train_limit=train_limit, seed=seed,
        cache=cache, progress=ConsoleProgress(),
    )  # fmt: skip
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
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


@click.command("known-answers")
@click.argument("model")
@click.option("--data", required=True, metavar="SPEC", help="The images the answers are of, as for `eval`.")
@click.option("--weights", type=click.Path(path_type=Path), metavar="FILE", help="Checkpoint instead of the hub.")
@click.option(
    "--cache", type=click.Path(path_type=Path), default=Path("~/.cache/mimexport"), show_default=True,
    help="Folder for features and artifacts.",
)  # fmt: skip
@click.pass_obj
def known_answers(open_torch_side: OpenTorchSide, model: str, data: str, weights: Path | None, cache: Path) -> int:
    """Are the figures known for MODEL met again? k-NN of [cls] and mean, raw and after the final norm, in torch.

    Exit status: 0 all are met within their tolerance, 1 one is not (or an error).
    """
    with needs("eval", "an evaluation"):
        from mimeval.datasets import open_dataset
        from mimeval.features import FeatureStore
        from mimeval.known_answers import check, find, lines

    known = find(model)
    cache = cache.expanduser()
    shown = ConsoleProgress()
    dataset = open_dataset(data, cache=cache, limit=known.images, train_limit=known.training)
    side = open_torch_side(weights, ())
    found = list(
        check(
            known, dataset, lambda agg: side.build_plain(model, agg, cache / "baselines"), side.open,
            FeatureStore(cache / "features", shown.say, shown.progress),
        )
    )  # fmt: skip
    click.echo("\n".join([*lines(known, found), f"known from: {known.source}"]))
    return 0 if all(one.met for one in found) else 1


COMMANDS: list[click.Command] = [evaluate, compare, known_answers]
"""What the program `mimexport` gathers from this package."""
