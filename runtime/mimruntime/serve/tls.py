"""The certificate of https, checked before an engine is opened."""

from __future__ import annotations

import ssl
from pathlib import Path

from mimruntime.errors import OptionError


def check_certificate(cert: Path | None, key: Path | None) -> None:
    """Refuse a certificate and key that cannot serve https; None for both means plain HTTP.

    Raises:
        OptionError: a file cannot be read, is not PEM, is encrypted, or the two do not match.

    """
    if cert is None or key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=b"")  # else OpenSSL asks for it
    except (OSError, ValueError) as error:
        raise OptionError(f"--tls-cert {cert} and --tls-key {key} cannot be used: {error}") from error
