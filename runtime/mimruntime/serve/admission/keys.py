"""API keys from the command line and from a file that is read again at SIGHUP."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import signal
from collections.abc import Iterable
from pathlib import Path

from mimruntime.errors import OptionError

_LOG = logging.getLogger("mimexport")


class Keys:
    """The accepted API keys; without a key and a file, every request is accepted.

    Args:
        fixed: keys for the life of the process.
        file: UTF-8, one key a line; spaces around a key and empty lines are ignored.

    Raises:
        OptionError: the file cannot be read or holds no key.

    """

    def __init__(self, fixed: Iterable[str], file: Path | None) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._digests = self._read()

    def __len__(self) -> int:
        return len(self._digests)

    def is_known(self, authorization: bytes) -> bool:
        """Return whether the value of an `Authorization` header is `Bearer KEY` with an accepted key."""
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(_utf8(key.strip())).digest()
        # Compare every key in constant time, so that the time reveals nothing about the keys.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)

    def install(self) -> None:
        """Read the file again at every SIGHUP; called in the event loop. If that fails, the keys stay unchanged."""
        if self._file is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._read_again)

    def _read_again(self) -> None:
        try:
            self._digests = self._read()
        except OptionError as error:
            _LOG.error("%s; the keys stay as they were", error)
        else:
            _LOG.info("%d API keys are known now", len(self))

    def _read(self) -> tuple[bytes, ...]:
        keys = [key.strip() for key in (*self._fixed, *(() if self._file is None else _lines(self._file)))]
        return tuple({hashlib.sha256(key.encode(errors="surrogateescape")).digest() for key in keys})


def _lines(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"the file of API keys {file} cannot be read: {error}") from error
    if not lines:
        raise OptionError(f"the file of API keys {file} holds no key; write one a line")
    return lines


def _utf8(key: bytes) -> bytes:
    """Return a key as UTF-8: clients encode other characters than ASCII as UTF-8 or Latin-1."""
    try:
        key.decode()
    except UnicodeDecodeError:
        return key.decode("latin-1").encode()
    return key
