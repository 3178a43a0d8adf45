"""The command `mimexport inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, option
from mimruntime.cli.options import PATH
from mimruntime.cli.printing import print_table, size_text

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.engines.record import EngineRecord


@click.command(
    "inspect",
    cls=Command,
    section="Use",
    examples=("mimexport inspect artifacts/mae-tiny-topk", "mimexport inspect artifacts/mae-tiny-topk --json"),
)
@click.argument("artifact", type=PATH)
@option("--json", "as_json", is_flag=True, help="Print the manifest as JSON, with file sizes.")
def inspect_command(artifact: Path, as_json: bool) -> None:
    """Check an artifact's digests and print its description."""
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
    print_table([*_inspected(opened, sizes), *(("engine", _engine_line(*engine)) for engine in engines)])


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
        ("artifact", f"{opened.path}, {size_text(sum(sizes.values()))}, built {manifest.created}"),
        ("name", manifest.name),
        ("space", manifest.embedding_space),
        (
            "backbone",
            f"{backbone.timm_name}, weights {backbone.source} ({backbone.origin}), licence {backbone.license}",
        ),
        *(("note", note) for note in backbone.notes),
        (
            "tokens",
            f"{backbone.grid[0]}x{backbone.grid[1]} patches of {backbone.patch} px, {backbone.prefix_tokens} prefix",
        ),
        *([("kept", f"{manifest.keep}")] if manifest.keep else []),
        ("aggregator", f"{aggregator.name}{params}, {aggregator.token_norm} tokens"),
        ("embedding", f"{manifest.embedding.dim} x {manifest.embedding.dtype}"),
        *([("whitening", manifest.embedding.whitening)] if manifest.embedding.whitening else []),
        (
            "preprocess",
            f"{preprocess.mode} to {preprocess.resize} px, crop {preprocess.size} px, {preprocess.interpolation},"
            f" {preprocess.normalisation}",
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
        *(("file", f"{name}  {size_text(size)}") for name, size in sizes.items()),
    ]


def _compiled_engines(opened: Artifact) -> list[tuple[str, EngineRecord, str]]:
    """Return key, record and usability on this machine of each engine in `engines/`."""
    from mimruntime.engines import engine_module
    from mimruntime.engines.compiled import describe_use, list_compiled

    return [
        (one.folder.name, one.record, describe_use(opened, engine_module(one.record.engine), one.record))
        for one in list_compiled(opened)
    ]


def _engine_line(key: str, record: EngineRecord, standing: str) -> str:
    tuned = record.tuned
    best = f", {tuned.images_per_second:.1f} images/s at batch {tuned.batch}" if tuned else ""
    size = size_text(sum(file.size for file in record.files.values()))
    return f"{key}, {record.version}, {record.precision} on {record.provider}, {size}{best}: {standing}"
