"""The command `mimexport doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mimruntime.cli.command import Command, option
from mimruntime.cli.options import PATH
from mimruntime.cli.printing import print_table

if TYPE_CHECKING:
    from mimruntime.doctor import AutoReport, EngineReport, Report


@click.command(
    "doctor",
    cls=Command,
    section="Use",
    examples=("mimexport doctor", "mimexport doctor artifacts/mae-tiny-topk"),
)
@click.argument("artifact", type=PATH, required=False)
@option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
def doctor_command(artifact: Path | None, as_json: bool) -> None:
    """Say what this machine runs, what is missing, and what `auto` takes for an artifact.

    The exit status is 1 where nothing runs: the artifact, or without one any engine.
    """
    from mimruntime.artifact import Artifact
    from mimruntime.doctor import examine

    report = examine(None if artifact is None else Artifact.open(artifact))
    if as_json:
        click.echo(json.dumps({**asdict(report), "can_run": report.can_run}, indent=2))
    else:
        print_table(_rows(report))
    sys.exit(not report.can_run)


def _rows(report: Report) -> list[tuple[str, str]]:
    missing = [("missing", f"{purpose}: pip install 'mimexport[{extra}]'") for extra, purpose in report.missing.items()]
    bf16 = "multiplies bf16" if report.bf16 else "does not multiply bf16"
    return [
        ("cpu", f"{report.cpu}; {report.cpus} for this process; {bf16}"),
        ("gpu", report.gpu),
        *(("engine", _engine_line(engine)) for engine in report.engines),
        *missing,
        *([] if report.auto is None else _auto_rows(report.auto)),
        ("verdict", "ready" if report.can_run else "nothing runs here; the lines above say why"),
    ]


def _engine_line(engine: EngineReport) -> str:
    name = engine.name if engine.version is None else f"{engine.name} {engine.version}"
    runs = "; ".join(f"{provider} runs {', '.join(precisions)}" for provider, precisions in engine.runs.items())
    return f"{name}: {'; '.join(part for part in (runs, engine.problem) if part)}"


def _auto_rows(auto: AutoReport) -> list[tuple[str, str]]:
    compiled = [("compiled", f"{key}: {standing}") for key, standing in auto.compiled.items()]
    chosen = f"{auto.engine} ({auto.reason})" if auto.engine else "no engine"
    became = f"opens on {auto.ran}, with torch's vectors" if auto.problem is None else f"does not open: {auto.problem}"
    return [*compiled, ("auto", f"{chosen}; {became}")]
