"""Attack a local service and report broken promises.

    python -m attack [ARTIFACT] [--requests 100000] [--hostile 0.1] [--kills 200]

Seed and number determine a request. The exit status is 1 if a promise was broken; the table shows which.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click

from attack.campaign import attack
from attack.killing import kill
from attack.targets import photographs
from attack.verdict import rows

_TOY = Path(__file__).parents[2] / "tests" / "golden" / "schema-3" / "artifact"


@click.command(context_settings={"show_default": True})
@click.argument("artifact", type=click.Path(exists=True, path_type=Path), default=_TOY)
@click.option("--requests", default=10_000, type=click.IntRange(0), help="Number of requests, correct and hostile.")
@click.option("--first", default=0, type=click.IntRange(0), help="Number of the first request.")
@click.option("--hostile", default=0.1, type=click.FloatRange(0, 1), help="Share of hostile requests.")
@click.option("--clients", default=6, type=click.IntRange(1), help="Number of client processes.")
@click.option("--seed", default=0, help="Seed of all requests.")
@click.option("--kills", default=0, type=click.IntRange(0), help="Processes of build, compile, embed to kill.")
@click.option("--memory-mb", default=4_000, help="Address space of the service.")
@click.option("--files", default=256, help="Descriptors of the service.")
@click.option("--cpus", default=1, help="CPUs of the service.")
@click.option("--out", default=Path("reports/attack"), type=click.Path(path_type=Path), help="Folder for findings.")
def main(artifact: Path, requests: int, kills: int, seed: int, out: Path, **given: object) -> None:
    """Send hostile and correct requests to a service of ARTIFACT, and kill processes that write."""
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"seed": seed, "artifact": str(artifact)}
    broken: list[str] = []
    if requests:
        figures, found = attack(artifact, requests, seed=seed, out=out, **given)  # type: ignore[arg-type]
        broken += found
        report |= rows(figures)
    if kills:
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            try:
                report |= kill(Path(folder), kills, seed, artifact, photographs()[0])
            except AssertionError as error:
                broken.append(f"a kill: {error}")
    report["broken"] = broken
    (out / "attack.json").write_text(json.dumps(report, indent=1))
    print("\n".join(f"{name:<34} {value}" for name, value in report.items() if name != "broken"))
    print("\n".join(f"BROKEN: {line}" for line in broken) or "every promise held")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
