"""The command `mimexport export-triton`."""

from __future__ import annotations

from pathlib import Path

import click

_POSITIVE = click.IntRange(min=1)


@click.command("export-triton")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("repository", type=click.Path(path_type=Path, file_okay=False))
@click.option("--engine", default="onnxruntime", show_default=True, help="onnxruntime, or tensorrt: a compiled plan.")
@click.option("--ensemble", is_flag=True, help="Also take encoded files: preprocessing step and ensemble.")
@click.option("--instances", default=1, show_default=True, type=_POSITIVE, help="Copies of the graph, on each GPU.")
@click.option("--max-batch", default=8, show_default=True, type=_POSITIVE, help="Images of one run at most.")
@click.option("--gpu", "gpus", multiple=True, type=click.IntRange(min=0), help="Id of a GPU, again for more.")
@click.option("--storage-uri", metavar="URI", help="Where KServe finds the repository.  [default: pvc://models/NAME]")
@click.option("--force", is_flag=True, help="Replace models of the same name.")
def export_triton(
    artifact: Path,
    repository: Path,
    engine: str,
    ensemble: bool,
    instances: int,
    max_batch: int,
    gpus: tuple[int, ...],
    storage_uri: str | None,
    force: bool,
) -> None:
    """Write an artifact into a model repository of Triton, with the manifest that runs it on KServe.

    The model takes pixels; with --ensemble, NAME-images takes encoded files. Without --gpu it runs on the CPU.
    """
    from mimruntime.artifact import Artifact
    from mimruntime.triton.config import Options
    from mimruntime.triton.export import export

    written = export(
        Artifact.open(artifact),
        repository,
        Options(instances=instances, max_batch=max_batch, gpus=gpus),
        engine=engine,
        ensemble=ensemble,
        storage_uri=storage_uri,
        force=force,
    )
    for path in written:
        click.echo(path)


COMMANDS: list[click.Command] = [export_triton]
"""What the program `mimexport` gathers from this package."""
