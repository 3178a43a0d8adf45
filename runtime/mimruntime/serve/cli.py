"""The command `mimexport serve`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimruntime.cli import engine_options
from mimruntime.errors import OptionError, needs

if TYPE_CHECKING:
    from mimruntime.serve.settings import Settings

_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)
_MB = 1_000_000
_KEY_VARIABLES = ("MIMEXPORT_API_KEY", "MIMEXPORT_API_KEY_FILE")


class _Key(click.types.StringParamType):
    """A text that is one value in a variable too, where click would take every word for one."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


@click.command(context_settings={"auto_envvar_prefix": "MIMEXPORT", "show_default": True})
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), envvar="MIMEXPORT_ARTIFACTS")
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every one.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--workers", default=1, type=_POSITIVE, help="Processes, each with an engine of its own.")
@engine_options
@click.option("--max-batch", type=_POSITIVE, help="Images of one run at most.  [default: tuned, or 8]")
@click.option(
    "--max-delay-ms", default=5.0, type=click.FloatRange(min=0), help="Wait of a batch for images being decoded."
)
@click.option("--decode-threads", type=_POSITIVE, help="Threads that decode.  [default: one per CPU, at most 8]")
@click.option("--max-queue", default=64, type=_POSITIVE, help="Images in flight per artifact, beyond which: 429.")
@click.option("--deadline", default=30.0, type=_SECONDS, metavar="S", help="From admission to answer, else 504.")
@click.option(
    "--grace", default=30, type=_POSITIVE, metavar="S", help="From SIGTERM on, for what was accepted to be answered."
)
@click.option(
    "--body-timeout",
    default=20.0,
    type=_SECONDS,
    metavar="S",
    help="For a request to arrive whole, else 408; for its answer to be taken.",
)
@click.option(
    "--watchdog",
    default=30.0,
    type=_SECONDS,
    metavar="S",
    help="Idle time before a real inference is tried; a run that takes longer is stuck: /live gives 503.",
)
@click.option("--max-body-mb", default=32, type=_POSITIVE, help="One request's body, else 413.")
@click.option("--max-buffered-mb", default=512, type=_POSITIVE, help="All bodies held at once, else 429.")
@click.option("--max-items", default=64, type=_POSITIVE, help="Images of one request, else 413.")
@click.option("--max-pixels", type=_POSITIVE, help="Pixels of one image by its header, else 413.  [default: 89478485]")
@click.option(
    "--max-decode-mb",
    default=1024,
    type=_POSITIVE,
    help="Memory of all images being decoded; one that needs more: 413.",
)
@click.option("--max-connections", default=1024, type=_POSITIVE, help="Open connections, else 503, but for balancers.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    envvar="MIMEXPORT_FORMAT",
    help="All formats let in.  [default: JPEG PNG WebP GIF BMP]",
)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    type=_Key(),
    help="Key asked of clients; better set as MIMEXPORT_API_KEY, which is one key, blanks and all.",
    envvar=_KEY_VARIABLES[0],
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="More keys, one a line; read again at SIGHUP.",
    envvar=_KEY_VARIABLES[1],
)
@click.option(
    "--tls-cert", type=click.Path(path_type=Path, dir_okay=False), help="Serve https: certificate chain, PEM."
)
@click.option("--tls-key", type=click.Path(path_type=Path, dir_okay=False), help="Its private key, PEM, not encrypted.")
@click.option(
    "--remote-host",
    "remote_hosts",
    multiple=True,
    envvar="MIMEXPORT_REMOTE_HOST",
    metavar="HOST[:PORT]",
    help="Fetch https URLs of this host, on port 443 or PORT.  [default: none]",
)
@click.option("--log-json", is_flag=True, help="A JSON line per request on stderr.")
@click.option("--check", is_flag=True, help="Print what would be served, and exit.")
def serve(check: bool, **given: Any) -> None:
    """Serve embeddings over HTTP, in the protocols of OpenAI's and Triton's clients.

    Every option is also an environment variable: --max-batch is MIMEXPORT_MAX_BATCH; lists are separated by spaces,
    MIMEXPORT_ARTIFACTS by colons, and MIMEXPORT_API_KEY is one key.
    """
    with needs("serve", "the service"):
        from mimruntime.serve.server import serve as serve_forever
    for variable in _KEY_VARIABLES:
        if os.environ.get(variable, "set").strip() == "":
            raise OptionError(f"{variable} is there and empty; unset it to serve without a key")
    settings = _settings(**given)
    if check:
        _print_check(settings)
        return
    serve_forever(settings)


COMMANDS: list[click.Command] = [serve]
"""What the program `mimexport` gathers from this package."""


def _settings(
    *,
    deadline: float,
    grace: int,
    body_timeout: float,
    watchdog: float,
    max_body_mb: int,
    max_buffered_mb: int,
    **rest: Any,
) -> Settings:
    """Return the settings, with units as in their names; what was not given keeps its default."""
    from mimruntime.serve.settings import Settings

    return Settings(
        deadline_s=deadline,
        grace_s=grace,
        body_timeout_s=body_timeout,
        watchdog_s=watchdog,
        max_body=max_body_mb * _MB,
        max_buffered=max_buffered_mb * _MB,
        **{name: value for name, value in rest.items() if value is not None and (value != () or name == "artifacts")},
    )


def _print_check(settings: Settings) -> None:
    from mimruntime.serve.admission.keys import Keys
    from mimruntime.serve.execution.model import open_embedder
    from mimruntime.serve.tls import check_certificate

    check_certificate(settings.tls_cert, settings.tls_key)
    keys = Keys(settings.api_keys, settings.api_key_file)
    for path in settings.artifacts:
        with open_embedder(path, settings) as embedder:
            about = embedder.describe()
        click.echo(
            f"{about.name}: {about.precision}, {about.engine} on {about.provider}, {about.compiled or 'not compiled'}"
        )
        click.echo(f"  {path}, {about.dim} dimensions, embedding space {about.space}")
        click.echo(f"  batches of {', '.join(map(str, about.batch_sizes))}")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        shown = f"{len(keys)} set" if field.name == "api_keys" else value
        if field.name != "artifacts":
            click.echo(f"{field.name:<16} {shown}")
