"""The commands of the runtime, and the frame every command of `mimexport` runs in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

from mimruntime.errors import ImageError, MimError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.embedder import Result
    from mimruntime.vectors import Writer

INTERRUPTED, TERMINATED = 130, 143

_ARTIFACT = click.argument("artifact", type=click.Path(path_type=Path))
_Command = TypeVar("_Command", bound=Callable[..., object])


def engine_options(command: _Command) -> _Command:
    """Add the options that choose what runs the graph."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.  [default: every CPU]"),
        click.option("--provider", help="Hardware, by the engine's own name: cpu, cuda …  [default: cpu]"),
        click.option("--engine", default="auto", show_default=True, help="What runs the graph: onnxruntime."),
    ):
        command = option(command)
    return command


@click.command()
@_ARTIFACT
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="FILE.parquet or FILE.npz.")
@engine_options
@click.option(
    "--batch-size", default=8, show_default=True, type=click.IntRange(min=1), help="Images of one run at most."
)
@click.option("--expect-space", metavar="ID", help="Refuse an artifact of another embedding space.")
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read; nothing is written.")
def embed(
    artifact: Path,
    paths: tuple[str, ...],
    out: Path,
    engine: str,
    provider: str | None,
    threads: int | None,
    batch_size: int,
    expect_space: str | None,
    strict: bool,
) -> None:
    """Turn images into a file of vectors.

    PATH is an image, a folder (walked to the bottom) or a quoted pattern. The file has one row per image, in order: its
    path, and its vector or the reason there is none.
    """
    from mimruntime.embedder import Embedder
    from mimruntime.images import find_images
    from mimruntime.vectors import check_suffix, open_writer

    check_suffix(out)
    images = find_images(paths)
    with Embedder.open(
        artifact, engine=engine, provider=provider, threads=threads, batch_size=batch_size, expect_space=expect_space
    ) as embedder:
        about = embedder.describe()
        with open_writer(out, dim=about.dim, space=about.space, model=about.name) as writer:
            started = time.perf_counter()
            errors = _write(_progress(embedder.stream(images), len(images)), writer, strict=strict)
            seconds = time.perf_counter() - started
            if len(errors) == len(images):
                raise ImageError(f"none of {len(images)} images could be read, nothing is written; first: {errors[0]}")
    done = len(images) - len(errors)
    click.echo(f"{done} of {len(images)} images embedded in {seconds:.1f} s, {done / seconds:.1f} images/s")
    click.echo(f"{out}  {_size(out.stat().st_size)}, {about.dim} dimensions, embedding space {about.space}")
    click.echo(f"{about.name}, {about.precision}, {about.engine} on {about.provider}")
    if errors:
        click.echo(f"{len(errors)} could not be read (column 'error'); first: {errors[0]}", err=True)


@click.command()
@_ARTIFACT
@click.option("--json", "as_json", is_flag=True, help="The manifest, with the size of every file.")
def inspect(artifact: Path, as_json: bool) -> None:
    """Say what an artifact is, its digests checked."""
    import msgspec

    from mimruntime.artifact import Artifact

    opened = Artifact.open(artifact)
    sizes = {name: (opened.path / name).stat().st_size for name in opened.manifest.files}
    if as_json:
        click.echo(json.dumps({**msgspec.to_builtins(opened.manifest), "file_sizes": sizes}, indent=2))
        return
    _table(_inspected(opened, sizes))


@click.command()
@_ARTIFACT
@engine_options
@click.option("--json", "as_json", is_flag=True, help="The figures, for a program.")
def verify(artifact: Path, engine: str, provider: str | None, threads: int | None, as_json: bool) -> None:
    """Check an artifact's digests, and its vectors against those of torch at the build."""
    import msgspec

    from mimruntime.verify import verify as verify_artifact

    checked = verify_artifact(artifact, engine=engine, provider=provider, threads=threads)
    figures = {**msgspec.to_builtins(checked.parity), "provider": checked.provider}
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    parity = checked.parity
    _table(
        [
            ("artifact", f"{artifact}, {len(checked.artifact.manifest.files)} files, every digest as built"),
            ("engine", f"{parity.engine} on {checked.provider}"),
            ("compared", f"{parity.images} images at batch {', '.join(map(str, parity.batches))}"),
            ("cosine", f"worst {parity.worst_cosine:.7f}, median {parity.median_cosine:.7f}"),
            ("difference", f"worst {parity.worst_abs_diff:.2e}"),
            ("batches", f"worst {parity.batch_invariance:.2e} between alone and in a batch"),
            ("two runs", "same bytes"),
        ]
    )


COMMANDS: list[click.Command] = [embed, inspect, verify]
"""What the program `mimexport` gathers from this package."""


def run(commands: Iterable[click.Command], argv: Sequence[str] | None = None) -> NoReturn:
    """Run the program `mimexport` with these commands, and exit.

    Exit codes: 0 done; 1 an error, in one line on stderr (`--debug`, anywhere before `--`, gives the trace); 2 wrong
    usage; 130 Ctrl-C; 143 SIGTERM, after temporary files were removed.
    """
    arguments, debug = _without_debug(sys.argv[1:] if argv is None else list(argv))
    if not sys.warnoptions:  # a damaged EXIF block in somebody's photograph is no news to the one who embeds it
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ValueError):  # only the main thread may set it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = _program(commands).main(arguments, prog_name="mimexport", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _close_stdout()
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"error: {_one_line(error)}", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _program(commands: Iterable[click.Command]) -> click.Group:
    program = click.Group(
        commands=list(commands),
        help="From a timm ViT to an image embedder that runs anywhere.",
        params=[click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the trace of an error.")],
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    return click.version_option(package_name="mimexport")(program)


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Take `--debug` out, wherever it stands before `--`: people add it at the end of the line that failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _one_line(error: Exception) -> str:
    text = (
        str(error)
        if isinstance(error, MimError)
        else f"unexpected {type(error).__name__}: {error} (--debug says where)"
    )
    printable = text.encode("utf-8", "backslashreplace").decode()
    return " ".join(printable.splitlines())


def _close_stdout() -> None:
    """Point stdout nowhere, or the interpreter would meet the broken pipe again when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(results: Iterable[Result], writer: Writer, *, strict: bool) -> list[str]:
    """Write every result and return the errors among them."""
    from mimruntime.images import as_text

    errors = []
    for result in results:
        if result.error is not None:
            if strict:
                raise ImageError(f"{result.error}; --strict stops here, nothing is written")
            errors.append(as_text(result.error))
        writer.add(as_text(str(result.source)), result.vector, as_text(result.error) if result.error else None)
    return errors


def _progress(results: Iterator[Result], total: int) -> Iterator[Result]:
    """Show a bar on stderr, when that is a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, "embedding", total=total, console=Console(stderr=True), transient=True)


def _inspected(opened: Artifact, sizes: dict[str, int]) -> list[tuple[str, str]]:
    manifest = opened.manifest
    backbone, aggregator, preprocess, parity = (
        manifest.backbone,
        manifest.aggregator,
        manifest.preprocess,
        manifest.parity,
    )
    params = "".join(f", {name} {value}" for name, value in aggregator.params.items())
    ports = "; ".join(
        f"{port.name} {port.dtype} {port.shape}" for port in (*manifest.graph.inputs, *manifest.graph.outputs)
    )
    return [
        ("artifact", f"{opened.path}, {_size(sum(sizes.values()))}, built {manifest.created}"),
        ("name", manifest.name),
        ("space", manifest.embedding_space),
        (
            "backbone",
            f"{backbone.timm_name}, weights {backbone.source} ({backbone.origin}), licence {backbone.license}",
        ),
        (
            "tokens",
            f"{backbone.grid[0]}x{backbone.grid[1]} patches of {backbone.patch} px, {backbone.prefix_tokens} prefix",
        ),
        ("aggregator", f"{aggregator.name}{params}, {aggregator.token_norm} tokens"),
        ("embedding", f"{manifest.embedding.dim} x {manifest.embedding.dtype}"),
        (
            "preprocess",
            f"{preprocess.mode} to {preprocess.resize} px, crop {preprocess.size} px, {preprocess.interpolation}",
        ),
        ("graph", f"{manifest.graph.precision}, opset {manifest.graph.opset}: {ports}"),
        (
            "parity",
            f"worst cosine {parity.worst_cosine:.7f}, worst difference {parity.worst_abs_diff:.2e} ({parity.engine})",
        ),
        ("versions", ", ".join(f"{tool} {version}" for tool, version in manifest.versions.items())),
        *(("file", f"{name}  {_size(size)}") for name, size in sizes.items()),
    ]


def _table(rows: Iterable[tuple[str, str]]) -> None:
    for name, text in rows:
        click.echo(f"{name:<11} {text}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
