"""What a person may set about the service, with the values that hold otherwise."""

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
"""TIFF, AVIF, HEIC and JPEG 2000 are off: their codecs are the largest surface for damage and the least used on the web."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Served:
    """An artifact to serve.

    Attributes:
        folder: where it lies.
        name: what requests call it; None is the name in its manifest.

    """

    folder: Path
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Served:
        """Read "FOLDER" or "NAME=FOLDER"; where a slash stands before the first "=", the whole is a folder.

        Raises:
            OptionError: the name has other signs than letters, digits, ".", "_", "-", or no folder follows it.

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
        artifacts: what is served, each by a name of its own.
        host, port: where to listen.
        grpc_port: where to speak gRPC too, None: nowhere.
        workers: processes, each with engines of its own.
        engine, provider, threads, public_key, check_reference: as `Embedder.open` takes them.
        max_batch: images of one run at most, None as it was tuned or else 8; the sizes run are it and the powers of two below.
        max_delay_ms: how long a batch waits for images that are still being decoded.
        decode_threads: threads that decode, for all artifacts together; None is one per CPU, at most 32.
        max_queue: images in flight per artifact beyond which requests get 429.
        deadline_s: from a request's admission to its answer, else 504.
        grace_s: from SIGTERM or Ctrl-C on, for what was accepted to be answered.
        body_timeout_s: for a request to arrive whole, headers and body, else 408; and for its answer to be taken.
        watchdog_s: idle time after which a real inference is run; a run of this length counts as stuck.
        max_body: bytes of one request.
        max_buffered: bytes of all requests that are held at once, else 429.
        max_items: images of one request.
        max_pixels: pixels of one image, read from its header.
        max_decode_mb: 10^6 bytes for all images that are being decoded; one that alone takes more is refused.
        max_connections: open connections of a process; beyond them idle ones are closed, oldest first, and where there are
            none requests get 503, those of balancers aside.
        formats: those of `mimruntime.decoding.formats.FORMATS` let in.
        api_keys: any of them lets a request in; empty: no key is asked for.
        api_key_file: more of them, a key a line, read again at SIGHUP.
        tls_cert, tls_key: PEM files of a certificate with its chain and of its private key; both or neither.
        remote_hosts: HOST or HOST:PORT whose https URLs are fetched, on port 443 where none is named; empty: no URL is.
        trusted_proxies: addresses or networks whose X-Forwarded-For and X-Forwarded-Proto are believed.
        log_json: every line on stderr is JSON, and there is one per request.

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
        """Refuse what could never work.

        Raises:
            MissingExtraError: what reads a format is not installed.
            OptionError: no artifact, an unknown format, an empty key, half of TLS, what is no host or no network, or one
                body larger than all together.

        """
        if not self.artifacts:
            raise OptionError("nothing to serve: name at least one artifact folder")
        check_readable(self.formats)
        if any(not key.strip() for key in self.api_keys):
            raise OptionError("an API key is empty; leave it out, or no request could be told from a stranger's")
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
    """Return host, in small letters, and port of "HOST" or "HOST:PORT".

    Raises:
        OptionError: it is neither.

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
