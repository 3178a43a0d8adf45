"""The command `mimexport sign`."""

from __future__ import annotations

from pathlib import Path

import click

from mimruntime.cli.command import Command, option
from mimruntime.cli.options import PATH


@click.command(
    "sign",
    cls=Command,
    section="Deploy",
    examples=(
        "mimexport sign artifacts/mae-tiny-topk --secret-key release.key",
        "mimexport sign /srv/artifacts/photos --secret-key ~/keys/release.key",
    ),
)
@click.argument("artifact", type=PATH)
@option("--secret-key", required=True, type=PATH, metavar="FILE", help="Secret key from `mimexport keygen`.")
def sign_command(artifact: Path, secret_key: Path) -> None:
    """Sign an artifact and its compiled engines in minisign's format.

    All digests are checked first. Sign again after `mimexport compile`.
    """
    from mimruntime.artifact import MANIFEST, Artifact
    from mimruntime.engines.compiled import check_files, list_compiled
    from mimruntime.engines.record import FILE
    from mimruntime.signatures import SecretKey

    key = SecretKey.read(secret_key)
    opened = Artifact.open(artifact)
    compiled = list_compiled(opened)
    for one in compiled:
        check_files(opened, one)
    about = f"artifact:{opened.manifest.name} space:{opened.manifest.embedding_space}"
    for path in (opened.path / MANIFEST, *(one.folder / FILE for one in compiled)):
        click.echo(key.sign(path, about))
    click.echo(f"check it with: --public-key {key.public}")
