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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mimruntime.errors import ImageError, MimError, OptionError
from mimruntime.exit import leave

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.batch import Row
    from mimruntime.collection.access import Access
    from mimruntime.collection.inputs import Columns
    from mimruntime.engines.record import EngineRecord
    from mimruntime.vectors import Writer

INTERRUPTED, TERMINATED = 130, 143

_ARTIFACT = click.argument("artifact", type=click.Path(path_type=Path))
_Item = TypeVar("_Item")
_Command = TypeVar("_Command", bound=Callable[..., object])


def engine_options(command: _Command) -> _Command:
    """Add the options that choose what runs the graph."""
    for option in (
        click.option(
            "--check-reference/--no-check-reference",
            default=True,
            envvar="MIMEXPORT_CHECK_REFERENCE",
            help="Compare the vectors of two images with torch's when the engine is opened.  [default: compare]",
        ),
        click.option(
            "--public-key",
            metavar="KEY|FILE",
            envvar="MIMEXPORT_PUBLIC_KEY",
            help="Refuse an artifact, or a compiled engine, that this key of minisign did not sign.",
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads of one run.  [default: tuned, or all]"),
        click.option(
            "--provider",
            help="Hardware, by the engine's own name: cpu, cuda …  [default: of what was compiled, else cpu]",
        ),
        click.option(
            "--engine",
            default="auto",
            show_default=True,
            help="What runs the graph: onnxruntime, openvino, tensorrt, tensorrt-rtx; auto: what was compiled and"
            " measured fastest, else openvino for a bf16 graph, else onnxruntime.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@_ARTIFACT
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, metavar="FILE|FOLDER|URL", help="FILE.parquet, FILE.npz, or a folder of shards.")
@engine_options
@click.option("--batch-size", type=click.IntRange(min=1), help="Images of one run at most.  [default: tuned, or 8]")
@click.option("--expect-space", metavar="ID", help="Refuse an artifact of another embedding space.")
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read.")
@click.option("--image-column", metavar="NAME", help="Parquet: bytes or paths.  [default: image, bytes or path]")
@click.option("--path-column", metavar="NAME", help="Parquet: what a row is called.  [default: path, else FILE#ROW]")
@click.option(
    "--allow-remote",
    multiple=True,
    metavar="URL",
    help="Read URLs that begin like this where a list or a Parquet cell names them: s3://bucket/photos, https://host."
    "  [default: the buckets and hosts of INPUT]",
)
@click.option(
    "--max-object-mb",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Largest remote image or Parquet cell.",
)
@click.option("--shard-size", type=click.IntRange(min=1), help="Folder: images of one shard.  [default: 1000]")
@click.option("--ray", metavar="ADDRESS|auto", help="Folder: run on this Ray cluster; auto finds or starts one.")
@click.option("--workers", type=click.IntRange(min=1), help="Ray: embedders.  [default: what the CPUs or GPUs hold]")
def embed(
    inputs: tuple[str, ...],
    out: str,
    image_column: str | None,
    path_column: str | None,
    allow_remote: tuple[str, ...],
    max_object_mb: int,
    **given: Any,
) -> None:
    """Turn images into a file of vectors, or into a folder of shards.

    INPUT is an image, a folder (walked to the bottom), a quoted pattern, a Parquet file, a URL of one of these
    (s3://, gs://, file:// …), or @LIST, a file with a path or URL a line.

    The output has one row per image, in order: its path, and its vector or the reason there is none. A file appears
    when it is complete. A folder, or a URL, is filled shard by shard, and the same command goes on where it was stopped.
    """
    from mimruntime.collection.access import Access
    from mimruntime.collection.inputs import Columns
    from mimruntime.termination import ends_on_sigterm
    from mimruntime.vectors import is_file_name

    columns = Columns(image_column, path_column)
    given["access"] = Access.of(inputs, allow_remote, max_object_mb)
    sharding = {name: given.pop(name) for name in ("shard_size", "ray", "workers")}
    is_file = is_file_name(out)
    for name, value in sharding.items():
        if is_file and value is not None:
            raise OptionError(f"--{name.replace('_', '-')} is for a folder of shards, --out {out} is one file")
    with ends_on_sigterm(TERMINATED):
        if is_file:
            _embed_to_file(inputs, Path(out), columns, **given)
        else:
            _embed_to_folder(inputs, out, columns, **sharding, **given)


@click.command()
@_ARTIFACT
@click.option("--json", "as_json", is_flag=True, help="The manifest, with the size of every file.")
def inspect(artifact: Path, as_json: bool) -> None:
    """Say what an artifact is, its digests checked."""
    import msgspec

    from mimruntime.artifact import Artifact

    opened = Artifact.open(artifact)
    sizes = {name: (opened.path / name).stat().st_size for name in opened.manifest.files}
    engines = _compiled_engines(opened)
    if as_json:
        listed = [{"key": key, "standing": text, **msgspec.to_builtins(record)} for key, record, text in engines]
        document = {**msgspec.to_builtins(opened.manifest), "file_sizes": sizes, "engines": listed}
        click.echo(json.dumps(document, indent=2))
        return
    _table([*_inspected(opened, sizes), *(("engine", _engine_line(*engine)) for engine in engines)])


@click.command()
@_ARTIFACT
@engine_options
@click.option("--json", "as_json", is_flag=True, help="The figures, for a program.")
def verify(artifact: Path, as_json: bool, check_reference: bool, **given: Any) -> None:
    """Check an artifact's digests, and its vectors against those of torch at the build."""
    import msgspec

    from mimruntime.verification import verify as verify_artifact

    if not check_reference:
        raise OptionError("--no-check-reference: to compare with the reference is what verify does; leave it out")
    checked = verify_artifact(artifact, **given)
    figures = {**msgspec.to_builtins(checked.parity), "provider": checked.provider, "precision": checked.precision}
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    parity = checked.parity
    _table(
        [
            ("artifact", f"{artifact}, {len(checked.artifact.manifest.files)} files, every digest as built"),
            ("engine", f"{parity.engine} on {checked.provider}, in {checked.precision}"),
            ("compared", f"{parity.images} images at batch {', '.join(map(str, parity.batches))}"),
            ("cosine", f"worst {parity.worst_cosine:.7f}, median {parity.median_cosine:.7f}"),
            ("difference", f"worst {parity.worst_abs_diff:.2e}"),
            ("batches", f"worst {parity.batch_invariance:.2e} between alone and in a batch"),
            ("two runs", "same bytes"),
        ]
    )


COMMANDS: list[click.Command] = [embed, inspect, verify]
"""What the program `mimexport` gathers from this package."""


def run(commands: Iterable[click.Command], argv: Sequence[str] | None = None, *, obj: object = None) -> NoReturn:
    """Run the program `mimexport` with these commands, and exit; `obj` is handed to those that ask for click's object.

    Exit codes: 0 done; 1 an error, in one line on stderr (`--debug`, anywhere before `--`, gives the trace); 2 wrong
    usage; 130 Ctrl-C; 143 SIGTERM, after temporary files were removed.
    """
    arguments, debug = _without_debug(sys.argv[1:] if argv is None else list(argv))
    if not sys.warnoptions:  # a damaged EXIF block in somebody's photograph is no news to the one who embeds it
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ValueError):  # only the main thread may set it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    code = _exit_code(_program(commands), arguments, obj, debug=debug)
    if argv is None:
        leave(code)
    sys.exit(code)


def _exit_code(program: click.Group, arguments: list[str], obj: object, *, debug: bool) -> int:
    """Run the program and say on stderr what ended it."""
    try:
        code = program.main(arguments, prog_name="mimexport", standalone_mode=False, obj=obj)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as error:
        code = error.code
    except BrokenPipeError:
        _close_stdout()
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"error: {_one_line(error)}", err=True)
        return 1
    return code if isinstance(code, int) else 0


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


def _embed_to_file(
    inputs: tuple[str, ...],
    out: Path,
    columns: Columns,
    *,
    artifact: Path,
    strict: bool,
    access: Access,
    **settings: Any,
) -> None:
    from mimruntime.batch import embed_rows
    from mimruntime.collection.inputs import find_entries
    from mimruntime.collection.reader import read_images
    from mimruntime.embedder import Embedder
    from mimruntime.vectors import open_writer

    entries = list(find_entries(inputs, columns, access))
    total = sum(entry.images for entry in entries)
    with Embedder.open(artifact, **settings) as embedder:
        about = embedder.describe()
        with open_writer(out, dim=about.dim, space=about.space, model=about.name, precision=about.precision) as writer:
            started = time.perf_counter()
            rows = embed_rows(embedder, read_images(entries, columns, access=access))
            errors = _write(_progress(rows, total), writer, strict=strict)
            seconds = time.perf_counter() - started
            if len(errors) == total:
                raise ImageError(f"none of {total} images could be read, nothing is written; first: {errors[0]}")
    _report(total, len(errors), seconds)
    click.echo(f"{out}  {_size(out.stat().st_size)}, {about.dim} dimensions, embedding space {about.space}")
    click.echo(f"{about.name}, {about.precision}, {about.engine} on {about.provider}")
    if errors:
        click.echo(f"{len(errors)} could not be read (column 'error'); first: {errors[0]}", err=True)


def _embed_to_folder(
    inputs: tuple[str, ...], out: str, columns: Columns, *, shard_size: int | None, **given: Any
) -> None:
    from mimruntime.collection.run import SHARD_SIZE, embed_collection

    given["path"] = given.pop("artifact")
    report = embed_collection(inputs, out, columns, shard_size=shard_size or SHARD_SIZE, progress=_progress, **given)
    record = report.record
    if report.found:
        click.echo(f"{report.found} of {record.shards} shards were there already")
    if report.images:
        _report(report.images, report.errors, report.seconds)
    click.echo(
        f"{out}  {record.shards} shards, {record.images} images, {record.dim} dimensions,"
        f" embedding space {record.embedding_space}"
    )
    click.echo(f"{record.model}, {report.where}")
    if report.errors:
        click.echo(f"{report.errors} could not be read (column 'error'); first: {report.first_error}", err=True)


def _report(images: int, errors: int, seconds: float) -> None:
    done = images - errors
    click.echo(f"{done} of {images} images embedded in {seconds:.1f} s, {done / seconds:.1f} images/s")


def _write(rows: Iterable[Row], writer: Writer, *, strict: bool) -> list[str]:
    """Write every row and return the errors among them."""
    errors = []
    for row in rows:
        if row.error is not None:
            if strict:
                raise ImageError(f"{row.error}; --strict stops here, nothing is written")
            errors.append(row.error)
        writer.add(row.path, row.vector, row.error)
    return errors


def _progress(results: Iterable[_Item], total: int) -> Iterator[_Item]:
    """Show a bar on stderr, when that is a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    with click.progressbar(results, length=total, label="embedding", show_pos=True, file=sys.stderr) as bar:
        yield from bar


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
        *(
            [
                (
                    "conversion",
                    f"median cosine {conversion.median_cosine:.5f}, worst {conversion.worst_cosine:.5f},"
                    f" {100 * conversion.neighbour_overlap:.1f} % of {conversion.neighbours} neighbours kept"
                    f" ({conversion.images} images)",
                )
            ]
            if (conversion := manifest.conversion)
            else []
        ),
        ("versions", ", ".join(f"{tool} {version}" for tool, version in manifest.versions.items())),
        *(("file", f"{name}  {_size(size)}") for name, size in sizes.items()),
    ]


def _compiled_engines(opened: Artifact) -> list[tuple[str, EngineRecord, str]]:
    """Return key, record and standing on this machine of everything in `engines/`."""
    from mimruntime.engines import engine_module
    from mimruntime.engines.compiled import list_compiled, standing

    return [
        (one.folder.name, one.record, standing(opened, engine_module(one.record.engine), one.record))
        for one in list_compiled(opened)
    ]


def _engine_line(key: str, record: EngineRecord, standing: str) -> str:
    tuned = record.tuned
    best = f", {tuned.images_per_second:.1f} images/s at batch {tuned.batch}" if tuned else ""
    size = _size(sum(file.size for file in record.files.values()))
    return f"{key}, {record.version}, {record.precision} on {record.provider}, {size}{best}: {standing}"


def _table(rows: Iterable[tuple[str, str]]) -> None:
    for name, text in rows:
        click.echo(f"{name:<11} {text}")


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
