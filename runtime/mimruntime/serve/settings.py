"""The service's settings and their defaults."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mimruntime.decode import MAX_PIXELS
from mimruntime.decoding.budget import DEFAULT_MB
from mimruntime.decoding.formats import check_readable
from mimruntime.errors import OptionError

DEFAULT_FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP")
"""TIFF, AVIF, HEIC and JPEG 2000 are off: their codecs have the largest attack surface and are rare on the web."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Served:
    """An artifact to serve.

    Attributes:
        folder: the artifact folder.
        name: its name in requests; None takes the name in its manifest.

    """

    folder: Path
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Served:
        """Read "FOLDER" or "NAME=FOLDER"; with a slash before the first "=", the whole text is a folder.

        Raises:
            OptionError: the name has characters other than letters, digits, ".", "_" and "-", or the folder is missing.

        """
        name, sign, folder = text.partition("=")
        if not sign or "/" in name:
            return cls(Path(text))
        if not _NAME.fullmatch(name) or not folder:
            raise OptionError(
                f"'{text}' is no NAME=FOLDER; a name has letters, digits, '.', '_' and '-', 128 at most;"
                f" a folder with '=' in its name is written ./{text}"
            )
        return cls(Path(folder), name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every limit of the service; `mimexport serve --help` describes each.

    Attributes:
        artifacts: the artifacts to serve, each with a unique name.
        host, port: the address for HTTP.
        grpc_port: the port for gRPC; None turns gRPC off.
        workers: number of processes; each opens its own engines.
        engine, provider, threads, public_key, check_reference: as in `Embedder.open`.
        max_batch: largest batch, in images; None takes the tuned size, or 16. Batches have this size or a smaller power of two.
        max_delay_ms: longest time that a batch waits for images that are still being decoded.
        decode_threads: decoding threads for all artifacts together; None takes one per CPU, at most 32.
        scaled_decoding: as in `Embedder.open`.
        max_queue: images in flight per artifact; beyond it requests get 429.
        deadline_s: time from admission to answer; later answers become 504.
        grace_s: time after SIGTERM or Ctrl-C for accepted requests to finish.
        body_timeout_s: time for a request's headers and body to arrive, else 408; also for the client to read the answer. Over
            https the time for the first headers includes the handshake.
        watchdog_s: idle time after which a test inference runs; a run that takes this long counts as stuck.
        max_body: largest request body, in bytes.
        max_buffered: bytes of all request bodies and fetched images in memory; beyond it requests get 429.
        max_items: largest number of images in a request.
        max_pixels: largest number of pixels of an image, by its header.
        max_decode_mb: memory in 10^6 bytes for all images that are being decoded; an image that needs more is refused.
        max_connections: open connections of a process. Beyond it the oldest idle connection is closed; if none is idle,
            requests get 503, except those of load balancers.
        formats: allowed names of `mimruntime.decoding.formats.FORMATS`.
        api_keys: accepted keys; if there are none and no `api_key_file`, no key is needed.
        api_key_file: a file of more keys, one a line; read again at SIGHUP.
        tls_cert, tls_key: PEM files of a certificate with its chain and of its private key; both or neither.
        remote_hosts: each HOST or HOST:PORT whose https URLs are fetched, by default on port 443; empty fetches none.
        trusted_proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are trusted.
        log_json: write every line on stderr as JSON, and one line per request.

    """

    artifacts: tuple[Served, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    workers: int = 1
    engine: str = "auto"
    provider: str | None = None
    threads: int | None = None
    public_key: str | None = None
    check_reference: bool = True
    max_batch: int | None = None
    max_delay_ms: float = 5.0
    decode_threads: int | None = None
    scaled_decoding: bool = False
    max_queue: int = 64
    deadline_s: float = 30.0
    grace_s: int = 30
    body_timeout_s: float = 20.0
    watchdog_s: float = 30.0
    max_body: int = 32_000_000
    max_buffered: int = 512_000_000
    max_items: int = 64
    max_pixels: int = MAX_PIXELS
    max_decode_mb: int = DEFAULT_MB
    max_connections: int = 1024
    formats: tuple[str, ...] = DEFAULT_FORMATS
    api_keys: tuple[str, ...] = ()
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    remote_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    log_json: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            MissingExtraError: the library for a format is not installed.
            OptionError: no artifact, an unknown format, an empty key, only one of the two TLS files, an invalid host or
                network, or `max_body` larger than `max_buffered`.

        """
        if not self.artifacts:
            raise OptionError("nothing to serve: name at least one artifact folder")
        check_readable(self.formats)
        if any(not key.strip() for key in self.api_keys):
            raise OptionError("an API key is empty; leave it out, or give a key")
        for host in self.remote_hosts:
            parse_remote_host(host)
        for proxy in self.trusted_proxies:
            _check_network(proxy)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise OptionError("--tls-cert and --tls-key go together: one is missing")
        if self.grpc_port == 0 and self.workers > 1:
            raise OptionError("--grpc-port 0 gives each worker another port; name one")
        if self.max_body > self.max_buffered:
            raise OptionError(f"max_body {self.max_body} is more than max_buffered {self.max_buffered} bytes")


def _check_network(given: str) -> None:
    try:
        ipaddress.ip_network(given)
    except ValueError as error:
        raise OptionError(f"--trusted-proxy {given}: {error}; give an address or a network, as 10.0.0.0/8") from error


def parse_remote_host(given: str) -> tuple[str, int]:
    """Return the host in lower case and the port of "HOST" or "HOST:PORT".

    Raises:
        OptionError: the text has another form.

    """
    try:
        parts = urlsplit(f"//{given}")
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host = None
    if not host or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise OptionError(
            f"a remote host is HOST or HOST:PORT, got '{given}'; give example.org, not https://example.org/"
        )
    return host, port
