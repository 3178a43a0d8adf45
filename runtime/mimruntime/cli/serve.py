"""The command `mimexport serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.options import COUNT, ENGINE_OPTIONS, SCALED_DECODING, SECONDS, Number
from mimruntime.errors import MimError, OptionError, needs

if TYPE_CHECKING:
    from mimruntime.serve.settings import Settings

_FILE = click.Path(path_type=Path, dir_okay=False)
_KEY_VARIABLES = ("MIMEXPORT_API_KEY", "MIMEXPORT_API_KEY_FILE")


class _Key(click.types.StringParamType):
    """A text that is one value in a variable too, where click would take every word for one."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


class _Served(click.Path):
    """A folder, or NAME=FOLDER."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mimruntime.serve.settings import Served

        return Served.parse(str(super().convert(value, param, ctx)))


class _Megabytes(Number):
    """10^6 bytes, handed over in bytes."""

    name = "mb"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 1_000_000 * int(super().convert(value, param, ctx))


_MEGABYTES = _Megabytes(min=1)


def _read_formats(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Take names in any case, several in one text too; an unknown one is left for `Settings` to refuse."""
    from mimruntime.decoding.formats import FORMATS

    known = {name.upper(): name for name in FORMATS}
    names = (name for text in given for name in text.replace(",", " ").split())
    return tuple(dict.fromkeys(known.get(name.upper(), name) for name in names))


def _load_settings() -> type[Settings]:
    with needs("serve", "the service"):
        import mimruntime.serve.server  # noqa: F401
    for variable in _KEY_VARIABLES:
        if os.environ.get(variable, "set").strip() == "":
            raise OptionError(f"{variable} is there and empty; unset it to serve without a key")
    from mimruntime.serve.settings import Settings

    return Settings


@click.command(
    "serve",
    cls=Command,
    section="Use",
    examples=(
        "mimexport serve artifacts/mae-tiny-topk",
        "mimexport serve artifacts/a next=artifacts/b --host 0.0.0.0 --port 80 --api-key-file keys.txt",
    ),
    context_settings={"auto_envvar_prefix": "MIMEXPORT", "show_default": True},
)
@click.argument("artifacts", nargs=-1, required=True, type=_Served(), envvar="MIMEXPORT_ARTIFACTS")
@group(
    "Address",
    option("--host", default="127.0.0.1", metavar="IP", help="Address to listen on; 0.0.0.0 for all."),
    option("--port", default=8000, type=Number(0, 65535), help="Port to listen on."),
    option("--grpc-port", type=Number(0, 65535), help="Port for KServe's protocol over gRPC.  [default: none]"),
    option("--tls-cert", type=_FILE, metavar="FILE", help="Serve https: certificate chain, PEM."),
    option("--tls-key", type=_FILE, metavar="FILE", help="Private key of the certificate, PEM, unencrypted."),
)
@ENGINE_OPTIONS
@group(
    "Engine",
    option("--max-batch", type=COUNT, help="Largest batch.  [default: as tuned, or 16]"),
    option(
        "--max-delay-ms", default=5.0, type=click.FloatRange(min=0), metavar="MS", help="Longest wait to fill a batch."
    ),
    option("--workers", default=1, type=COUNT, help="Processes, each with its own engine."),
    option("--decode-threads", type=COUNT, help="Decoding threads.  [default: one per CPU, at most 32]"),
    SCALED_DECODING,
)
@group(
    "Times",
    option(
        "--deadline",
        "deadline_s",
        default=30.0,
        type=SECONDS,
        envvar="MIMEXPORT_DEADLINE",
        help="Time from admission to answer, else 504.",
    ),
    option(
        "--grace",
        "grace_s",
        default=30,
        type=COUNT,
        metavar="S",
        envvar="MIMEXPORT_GRACE",
        help="Time after SIGTERM for accepted requests to finish.",
    ),
    option(
        "--body-timeout",
        "body_timeout_s",
        default=20.0,
        type=SECONDS,
        envvar="MIMEXPORT_BODY_TIMEOUT",
        help="Time to receive a request, else 408, or to answer.",
    ),
    option(
        "--watchdog",
        "watchdog_s",
        default=30.0,
        type=SECONDS,
        envvar="MIMEXPORT_WATCHDOG",
        help="A longer run counts as stuck: /live gives 503.",
    ),
)
@group(
    "Limits",
    option("--max-queue", default=64, type=COUNT, help="Images in flight per artifact, else 429."),
    option("--max-items", default=64, type=COUNT, help="Images of one request, else 413."),
    option(
        "--max-body-mb",
        "max_body",
        default=32,
        type=_MEGABYTES,
        envvar="MIMEXPORT_MAX_BODY_MB",
        help="Body of one request, else 413.",
    ),
    option(
        "--max-buffered-mb",
        "max_buffered",
        default=512,
        type=_MEGABYTES,
        envvar="MIMEXPORT_MAX_BUFFERED_MB",
        help="Bodies and fetched images in memory, else 429.",
    ),
    option("--max-pixels", type=COUNT, help="Pixels of one image, else 413.  [default: 89478485]"),
    option(
        "--max-decode-mb",
        default=1024,
        type=COUNT,
        metavar="MB",
        help="Memory for decoding; larger images get 413.",
    ),
    option("--max-connections", default=1024, type=COUNT, help="Open connections, else 503."),
)
@group(
    "Access",
    option(
        "--format",
        "formats",
        multiple=True,
        envvar="MIMEXPORT_FORMAT",
        metavar="NAME",
        callback=_read_formats,
        help="Allowed formats; repeat for more.  [default: JPEG PNG WebP GIF BMP]",
    ),
    option(
        "--api-key",
        "api_keys",
        multiple=True,
        type=_Key(),
        metavar="KEY",
        envvar=_KEY_VARIABLES[0],
        help="Key that clients must send; safer in MIMEXPORT_API_KEY.",
    ),
    option(
        "--api-key-file",
        type=_FILE,
        metavar="FILE",
        envvar=_KEY_VARIABLES[1],
        help="More keys, one a line; read again at SIGHUP.",
    ),
    option(
        "--remote-host",
        "remote_hosts",
        multiple=True,
        envvar="MIMEXPORT_REMOTE_HOST",
        metavar="HOST[:PORT]",
        help="Fetch https URLs of this host.  [default: none]",
    ),
    option(
        "--trusted-proxy",
        "trusted_proxies",
        multiple=True,
        envvar="MIMEXPORT_TRUSTED_PROXY",
        metavar="IP|NET",
        help="Trust X-Forwarded-For and -Proto from this address.",
    ),
)
@group(
    "Output",
    option("--log-json", is_flag=True, help="Write only JSON to stderr, with a line per request."),
    option("--check", is_flag=True, help="Print what would be served, and exit."),
)
@gather(_load_settings, "settings")
def serve_command(settings: Settings, check: bool) -> None:
    """Serve embeddings over HTTP, in the protocols of OpenAI's and Triton's clients.

    NAME=FOLDER serves an artifact by another name. Every option is also a variable (MIMEXPORT_PORT).
    Lists are separated by spaces, MIMEXPORT_ARTIFACTS by colons; MIMEXPORT_API_KEY is one key.
    """
    from mimruntime.serve.server import serve

    if check:
        _print_check(settings)
        return
    try:
        serve(settings)
    except MimError as error:
        if not settings.log_json:
            raise
        logging.getLogger("mimexport").critical("%s", error)
        raise SystemExit(1) from error


def _print_check(settings: Settings) -> None:
    from mimruntime.serve.admission.keys import Keys
    from mimruntime.serve.execution.opening import open_embedders
    from mimruntime.serve.tls import check_certificate

    check_certificate(settings.tls_cert, settings.tls_key)
    keys = Keys(settings.api_keys, settings.api_key_file)
    with contextlib.ExitStack() as stack:
        opened = [(name, each.artifact.path, each.describe()) for name, each in open_embedders(settings, stack)]
    for name, path, about in opened:
        click.echo(f"{name}: {about.precision}, {about.engine} on {about.provider}, {about.compiled or 'not compiled'}")
        click.echo(f"  {path}, {about.dim} dimensions, embedding space {about.space}")
        click.echo(f"  batches of {', '.join(map(str, about.batch_sizes))}")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        shown = f"{len(keys)} set" if field.name == "api_keys" else value
        if field.name != "artifacts":
            click.echo(f"{field.name:<16} {shown}")
