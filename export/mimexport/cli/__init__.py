"""The program `mimexport`: it combines the commands of the three packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import mimeval.cli
import mimruntime.cli
from mimexport.cli.build import build_command
from mimexport.cli.common import BUILDING, let_threads_sleep, show_step
from mimexport.cli.fit import fit_command
from mimexport.cli.listings import aggregators_command, models_command
from mimruntime.cli.bench import bench_command
from mimruntime.cli.command import Command
from mimruntime.errors import needs

if TYPE_CHECKING:
    from mimexport.references import References
    from mimruntime.artifact import Artifact
    from mimruntime.bench.measure import Peer
    from mimruntime.cli.bench import BenchSettings


def _open_peers(artifact: Artifact, weights: Path | None) -> Sequence[Peer]:
    with needs("export", BUILDING):
        from mimexport.peers import open_peers
    return open_peers(artifact, weights)


def _compare_keeps(artifact: Artifact, settings: BenchSettings, engines: Sequence[str]) -> Iterator[str]:
    with needs("export", BUILDING):
        from mimexport.keep_choices import KeepRequest, as_lines, compare_keeps
    from mimruntime.image_paths import find_images

    request = KeepRequest(
        keeps=settings.schedules(),
        rule=settings.keep_by,
        engines=engines,
        batches=settings.sizes(),
        pairs=settings.pairs,
        images=find_images(settings.images) if settings.images else (),
        weights=settings.weights,
        provider=settings.provider,
    )
    return as_lines(compare_keeps(artifact, request, show_step))


def _references(weights: Path | None, heads: tuple[Path, ...], *, device: str) -> References:
    """Return the `References` from which the evaluation rebuilds torch models."""
    let_threads_sleep()
    with needs("export", BUILDING):
        from mimexport.references import References
    return References(weights, heads, device=device)


COMMANDS: list[Command] = [
    models_command,
    aggregators_command,
    fit_command,
    build_command,
    *mimruntime.cli.COMMANDS,
    bench_command(_open_peers, _compare_keeps),
    *mimeval.cli.COMMANDS,
]
"""Every command of the program, in the order of its help."""


def main() -> NoReturn:
    """Run the program `mimexport`."""
    mimruntime.cli.run(COMMANDS, obj=_references)
