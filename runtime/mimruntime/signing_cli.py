"""The commands `mimexport keygen` and `mimexport sign`."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("name", type=_PATH)
def keygen(name: Path) -> None:
    """Make a pair of keys: NAME.key, which signs and stays with you, and NAME.pub, which checks.

    They are minisign's, without a password: keep NAME.key where artifacts are built, and nowhere else.
    """
    from mimruntime.signatures import SecretKey

    key = SecretKey.generate()
    secret, public = key.write(name)
    click.echo(f"{secret}  keep it secret")
    click.echo(f"{public}  {key.public}")


@click.command()
@click.argument("artifact", type=_PATH)
@click.option("--secret-key", required=True, type=_PATH, metavar="FILE", help="What `mimexport keygen` made.")
def sign(artifact: Path, secret_key: Path) -> None:
    """Sign an artifact and every engine that is compiled in it, in minisign's format.

    Every digest is checked first. Sign again after `mimexport compile`.
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


COMMANDS: list[click.Command] = [keygen, sign]
"""What the program `mimexport` gathers from this package."""
