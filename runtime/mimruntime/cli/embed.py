"""The command `mimexport embed`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.frame import TERMINATED
from mimruntime.cli.options import COUNT, DECODE, PATH, SCALED_DECODING, EngineOptions, engine_options
from mimruntime.cli.printing import one_line, show_bar, size_text
from mimruntime.errors import ImageError, OptionError

if TYPE_CHECKING:
    from mimruntime.batch import Row
    from mimruntime.collection.access import Access
    from mimruntime.collection.inputs import Columns
    from mimruntime.storage import Store
    from mimruntime.vectors import Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Options of `mimexport embed`; see the help of the command."""

    artifact: Path
    inputs: tuple[str, ...]
    out: str
    strict: bool = False
    expect_space: str | None = None
    expect_precision: str | None = None
    batch_size: int | None = None
    image_column: str | None = None
    path_column: str | None = None
    allow_remote: tuple[str, ...] = ()
    max_object_mb: int = 64
    shard_size: int | None = None
    ray: str | None = None
    workers: int | None = None
    store: Store = "fp32"
    dims: int | None = None
    scaled_decoding: bool = False
    decode: str = "threads"

    @property
    def columns(self) -> Columns:
        """The columns of images and names in Parquet files."""
        from mimruntime.collection.inputs import Columns

        return Columns(self.image_column, self.path_column)

    @property
    def access(self) -> Access:
        """The remote locations that lists and tables may refer to."""
        from mimruntime.collection.access import Access

        return Access.of(self.inputs, self.allow_remote, self.max_object_mb)

    def opening(self, engine: EngineOptions) -> dict[str, Any]:
        """Return the arguments of `Embedder.open` except the artifact."""
        return {
            **engine.chosen(),
            "batch_size": self.batch_size,
            "expect_space": self.expect_space,
            "expect_precision": self.expect_precision,
            "scaled_decoding": self.scaled_decoding,
            "decode": self.decode,
        }


@click.command(
    "embed",
    cls=Command,
    section="Use",
    examples=(
        "mimexport embed artifacts/mae-tiny-topk photos/ --out vectors.parquet",
        "mimexport embed artifacts/mae-tiny-topk photos/ --out vectors.parquet --store fp16",
        "mimexport embed artifacts/mae-tiny-topk s3://bucket/photos --out s3://bucket/vectors --ray auto",
    ),
)
@click.argument("artifact", type=PATH)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@group(
    "Output",
    option("--out", required=True, metavar="FILE|FOLDER|URL", help="FILE.parquet, FILE.npz, or a folder of shards."),
    option(
        "--store",
        type=click.Choice(["fp32", "fp16", "int8", "bits"]),
        default="fp32",
        show_default=True,
        metavar="NAME",
        help="Storage type of the vectors: fp32, fp16, int8 or bits.",
    ),
    option("--dims", type=COUNT, metavar="N", help="Keep the first N dimensions of whitened vectors.  [default: all]"),
    option("--strict", is_flag=True, help="Stop at the first image that cannot be read."),
    option("--expect-space", metavar="ID", help="Fail if the artifact has another embedding space."),
    option("--expect-precision", metavar="NAME", help="Fail if the engine computes in another precision."),
)
@engine_options
@group(
    "Engine",
    option("--batch-size", type=COUNT, help="Largest batch.  [default: as tuned, or 16]"),
    DECODE,
    SCALED_DECODING,
)
@group(
    "Parquet files and remote images",
    option("--image-column", metavar="NAME", help="Column of bytes or paths.  [default: image, bytes or path]"),
    option("--path-column", metavar="NAME", help="Column of names.  [default: path, else FILE#ROW]"),
    option(
        "--allow-remote",
        multiple=True,
        metavar="URL",
        help="Allow listed URLs with this prefix.  [default: those of INPUT]",
    ),
    option(
        "--max-object-mb",
        type=COUNT,
        default=64,
        show_default=True,
        help="Largest remote image, cell or archive member.",
    ),
)
@group(
    "Folders of shards",
    option("--shard-size", type=COUNT, help="Images per shard.  [default: 1000]"),
    option("--ray", metavar="ADDRESS|auto", help="Run on this Ray cluster; auto finds or starts one."),
    option("--workers", type=COUNT, help="Embedders on Ray.  [default: as CPUs or GPUs allow]"),
)
@gather(lambda: EmbedOptions, "options")
def embed_command(options: EmbedOptions, engine: EngineOptions) -> None:
    """Turn images into a file of vectors, or into a folder of shards.

    INPUT is an image, a folder (searched recursively), a quoted pattern, a Parquet file, a zip or tar, a URL of one of
    these (s3://, gs://, file:// …), or @LIST: a file with one path or URL per line. - reads this list from standard input.

    The output has one row per image, in order: its path, and its vector or an error. A file appears when it is
    complete. A folder or URL is filled shard by shard; after an interruption, the same command continues.
    """
    from mimruntime.termination import ends_on_sigterm
    from mimruntime.vectors import is_file_name

    if is_file := is_file_name(options.out):
        for name in ("shard_size", "ray", "workers"):
            if getattr(options, name) is not None:
                given = name.replace("_", "-")
                raise OptionError(
                    f"--{given} needs a folder of shards, but --out {options.out} is one file; leave it out"
                )
    with ends_on_sigterm(TERMINATED):
        (_embed_to_file if is_file else _embed_to_folder)(options, engine)


def _embed_to_file(options: EmbedOptions, engine: EngineOptions) -> None:
    from mimruntime.batch import embed_rows
    from mimruntime.collection.inputs import find_entries
    from mimruntime.collection.reader import read_images
    from mimruntime.embedder import Embedder
    from mimruntime.storage import codec_for
    from mimruntime.vectors import open_writer

    columns, access, out = options.columns, options.access, Path(options.out)
    entries = list(find_entries(options.inputs, columns, access))
    total = sum(entry.images for entry in entries)
    with Embedder.open(options.artifact, **options.opening(engine)) as embedder:
        about = embedder.describe()
        codec = codec_for(embedder.artifact.manifest, options.store, options.dims)
        with open_writer(out, codec=codec, model=about.name, precision=about.precision) as writer:
            started = time.perf_counter()
            rows = embed_rows(embedder, read_images(entries, columns, access=access))
            errors = _write(show_bar(rows, total), writer, strict=options.strict)
            seconds = time.perf_counter() - started
            if len(errors) == total:
                raise ImageError(f"none of {total} images could be read, nothing is written; first: {errors[0]}")
    _report(total, len(errors), seconds, embedder.times.describe(seconds))
    click.echo(
        f"{out}  {size_text(out.stat().st_size)}, {codec.dim} dimensions, {codec.store}, embedding space {codec.space}"
    )
    click.echo(f"{about.name}, {about.precision}, {about.engine} on {about.provider}")
    if errors:
        click.echo(f"{len(errors)} could not be read (column 'error'); first: {one_line(errors[0])}", err=True)


def _embed_to_folder(options: EmbedOptions, engine: EngineOptions) -> None:
    from mimruntime.collection.run import SHARD_SIZE, embed_collection

    report = embed_collection(
        options.inputs,
        options.out,
        options.columns,
        path=options.artifact,
        shard_size=options.shard_size or SHARD_SIZE,
        access=options.access,
        ray=options.ray,
        workers=options.workers,
        strict=options.strict,
        store=options.store,
        dims=options.dims,
        progress=show_bar,
        **options.opening(engine),
    )
    record = report.record
    if report.found:
        click.echo(f"{report.found} of {record.shards} shards already existed")
    if report.images:
        _report(report.images, report.errors, report.seconds, report.spent)
    click.echo(
        f"{options.out}  {record.shards} shards, {record.images} images, {record.dim} dimensions,"
        f" {record.stored_as}, embedding space {record.embedding_space}"
    )
    click.echo(f"{record.model}, {report.where}")
    if report.errors:
        click.echo(
            f"{report.errors} could not be read (column 'error'); first: {one_line(report.first_error)}", err=True
        )


def _report(images: int, errors: int, seconds: float, spent: str) -> None:
    done = images - errors
    click.echo(f"{done} of {images} images embedded in {seconds:.1f} s, {done / seconds:.1f} images/s")
    if spent:
        click.echo(spent)


def _write(rows: Iterable[Row], writer: Writer, *, strict: bool) -> list[str]:
    """Write all rows and return their errors."""
    errors = []
    for row in rows:
        if row.error is not None:
            if strict:
                raise ImageError(f"{row.error}; --strict stops here, nothing is written")
            errors.append(row.error)
        writer.add(row.path, row.vector, row.error)
    return errors
