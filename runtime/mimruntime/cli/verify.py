"""The command `mimexport verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mimruntime.cli.command import Command, option
from mimruntime.cli.options import PATH, EngineOptions, engine_options
from mimruntime.cli.printing import print_table
from mimruntime.errors import OptionError


@click.command(
    "verify",
    cls=Command,
    section="Use",
    examples=(
        "mimexport verify artifacts/mae-tiny-topk",
        "mimexport verify artifacts/mae-tiny-topk --engine openvino --json",
    ),
)
@click.argument("artifact", type=PATH)
@engine_options
@option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def verify_command(artifact: Path, engine: EngineOptions, as_json: bool) -> None:
    """Check an artifact's digests, and compare its vectors with torch's from the build."""
    import msgspec

    from mimruntime.verification import verify

    if not engine.check_reference:
        raise OptionError("--no-check-reference: verify always compares with the reference; leave the option out")
    checked = verify(
        artifact,
        engine=engine.engine,
        provider=engine.provider,
        threads=engine.threads,
        public_key=engine.public_key,
    )
    parity = checked.parity
    if as_json:
        figures = {**msgspec.to_builtins(parity), "provider": checked.provider, "precision": checked.precision}
        click.echo(json.dumps(figures, indent=2))
        return
    print_table(
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
