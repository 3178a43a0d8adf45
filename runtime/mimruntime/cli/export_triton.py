"""The command `mimexport export-triton`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, group, option
from mimruntime.cli.options import COUNT, PATH, Number

if TYPE_CHECKING:
    from mimruntime.triton.config import Decode


@click.command(
    "export-triton",
    cls=Command,
    section="Deploy",
    examples=(
        "mimexport export-triton artifacts/mae-tiny-topk models/",
        "mimexport export-triton artifacts/mae-tiny-topk models/ --ensemble --gpu 0 --gpu 1",
    ),
)
@click.argument("artifact", type=PATH)
@click.argument("repository", type=click.Path(path_type=Path, file_okay=False))
@group(
    "Model",
    option("--engine", default="onnxruntime", show_default=True, help="onnxruntime, or tensorrt for a compiled plan."),
    option("--ensemble", is_flag=True, help="Add a preprocessing model and an ensemble for encoded files."),
    option("--instances", default=1, show_default=True, type=COUNT, help="Copies of the graph, per GPU."),
    option("--max-batch", default=8, show_default=True, type=COUNT, help="Largest batch."),
    option("--gpu", "gpus", multiple=True, type=Number(min=0), help="Id of a GPU; may be repeated.  [default: CPU]"),
    option(
        "--decode",
        type=click.Choice(["threads", "gpu"]),
        default="threads",
        show_default=True,
        metavar="NAME",
        help="What the ensemble decodes with: threads, or gpu (JPEGs).",
    ),
)
@group(
    "Output",
    option("--storage-uri", metavar="URI", help="URI of the repository for KServe.  [default: pvc://models/NAME]"),
    option("--force", is_flag=True, help="Replace models of the same name."),
)
def export_triton_command(
    artifact: Path,
    repository: Path,
    engine: str,
    ensemble: bool,
    instances: int,
    max_batch: int,
    gpus: tuple[int, ...],
    decode: Decode,
    storage_uri: str | None,
    force: bool,
) -> None:
    """Write an artifact into a Triton model repository, with a KServe manifest.

    The model takes pixels. With --ensemble, a model NAME-images takes encoded files. Both run on the CPU unless --gpu is
    given.
    """
    from mimruntime.artifact import Artifact
    from mimruntime.triton.config import Options
    from mimruntime.triton.export import export

    written = export(
        Artifact.open(artifact),
        repository,
        Options(instances=instances, max_batch=max_batch, gpus=gpus, decode=decode),
        engine=engine,
        ensemble=ensemble,
        storage_uri=storage_uri,
        force=force,
    )
    for path in written:
        click.echo(path)
