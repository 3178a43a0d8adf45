"""The command `mimexport keygen`."""

from __future__ import annotations

from pathlib import Path

import click

from mimruntime.cli.command import Command
from mimruntime.cli.options import PATH


@click.command(
    "keygen", cls=Command, section="Deploy", examples=("mimexport keygen release", "mimexport keygen ~/keys/release")
)
@click.argument("name", type=PATH)
def keygen_command(name: Path) -> None:
    """Create a key pair: NAME.key signs and stays secret, NAME.pub verifies.

    The keys are in minisign's format, without a password. Keep NAME.key only on the machine that builds artifacts.
    """
    from mimruntime.signatures import SecretKey

    key = SecretKey.generate()
    secret, public = key.write(name)
    click.echo(f"{secret}  keep it secret")
    click.echo(f"{public}  {key.public}")
