"""Sign and verify artifacts: Ed25519 signatures in minisign's format, compatible with the program `minisign`.

The signature of FILE is FILE.minisig, next to it. The manifest contains the digests of the artifact's files, and an engine
record those of the engine's files, so one signature of each covers all files.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mimruntime.errors import OptionError, OutputError, SignatureError, needs
from mimruntime.writing import write_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SUFFIX = ".minisig"
_KEY, _HASHED = b"Ed", b"ED"
_PLAIN, _CHECKSUM = b"\0\0", b"B2"
_SECRET_SIZE = 158
_PURPOSE = "signatures"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that verifies signatures.

    Attributes:
        id: eight bytes that identify the key.
        raw: the Ed25519 key, 32 bytes.

    """

    id: bytes
    raw: bytes

    @classmethod
    def read(cls, given: str | Path) -> PublicKey:
        """Return the key from its text or from a file.

        Raises:
            OptionError: `given` is neither a minisign public key nor a file with one.

        """
        content = _from_base64(str(given))
        if len(content) != 42:
            content = _from_base64(_line_of(Path(given), "public key"))
        if len(content) != 42 or content[:2] != _KEY:
            raise OptionError(f"{given} is not a minisign public key: expected RW… or a file with it")
        return cls(content[2:10], content[10:])

    def __str__(self) -> str:
        return base64.b64encode(_KEY + self.id + self.raw).decode()

    def check(self, path: Path, content: bytes) -> None:
        """Verify that this key signed `content`, the bytes of the file at `path`, by the signature next to the file.

        Raises:
            SignatureError: the signature is missing, by another key, or of other content.
            MissingExtraError: `cryptography` is not installed.

        """
        with needs("sign", _PURPOSE):
            from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - the one place that needs it
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415
        beside = path.with_name(path.name + SUFFIX)
        signature, comment, over_both = _read_signature(beside, path)
        if signature[2:10] != self.id:
            raise SignatureError(
                f"{beside} is by the key {_name(signature[2:10])}, expected {_name(self.id)}; do not trust it"
            )
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        try:
            key.verify(signature[10:], hashlib.blake2b(content).digest())
            key.verify(over_both, signature[10:] + comment)
        except InvalidSignature as error:
            raise SignatureError(f"{path} is not what the key {_name(self.id)} signed; do not trust it") from error


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key that signs; keep it only on the machine that builds artifacts.

    Attributes:
        id: eight bytes that identify the key.
        seed: the Ed25519 key, 32 bytes.

    """

    id: bytes
    seed: bytes

    @classmethod
    def generate(cls) -> SecretKey:
        """Return a new key."""
        return cls(secrets.token_bytes(8), secrets.token_bytes(32))

    @classmethod
    def read(cls, path: Path) -> SecretKey:
        """Return the key from a file written by `write` or `minisign -G -W`.

        Raises:
            OptionError: the file is missing, contains no secret key, or its key has a password.

        """
        content = _from_base64(_line_of(path, "secret key"))
        if len(content) != _SECRET_SIZE or content[:2] != _KEY:
            raise OptionError(f"{path} contains no minisign secret key; create one: mimexport keygen NAME")
        if content[2:4] != _PLAIN:
            raise OptionError(f"{path} has a password; sign with minisign itself: minisign -S -s {path} -m FILE")
        return cls(content[54:62], content[62:94])

    @property
    def public(self) -> PublicKey:
        """The public key that verifies its signatures."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        return PublicKey(self.id, self._private().public_key().public_bytes(*raw))

    def write(self, stem: Path) -> tuple[Path, Path]:
        """Write `STEM.key`, readable only by its owner, and `STEM.pub`; return both paths.

        Raises:
            OutputError: one of the files exists or cannot be written.
            MissingExtraError: `cryptography` is not installed.

        """
        secret, public = (stem.with_name(stem.name + suffix) for suffix in (".key", ".pub"))
        for path in (secret, public):
            if os.path.lexists(path):
                raise OutputError(f"{path} exists, and keys are never overwritten; choose another name")
        pair = self.seed + self.public.raw
        checksum = hashlib.blake2b(_KEY + self.id + pair, digest_size=32).digest()
        content = _KEY + _PLAIN + _CHECKSUM + bytes(48) + self.id + pair + checksum
        write_file(secret, _lines("minisign secret key", content), mode=0o600)
        write_file(public, _lines(f"minisign public key {_name(self.id)}", _KEY + self.id + self.public.raw))
        return secret, public

    def sign(self, path: Path, comment: str) -> Path:
        """Sign the file at `path`; return the path of the signature next to it.

        Args:
            path: the file to sign.
            comment: one line that the signature also covers.

        Raises:
            OutputError: the signature cannot be written.
            MissingExtraError: `cryptography` is not installed.

        """
        key = self._private()
        signature = key.sign(hashlib.blake2b(path.read_bytes()).digest())
        trusted = f"timestamp:{int(time.time())}\tfile:{path.name}\t{' '.join(comment.split())}"
        over_both = base64.b64encode(key.sign(signature + trusted.encode())).decode()
        beside = path.with_name(path.name + SUFFIX)
        head = _lines(f"signature by the key {_name(self.id)}", _HASHED + self.id + signature)
        write_file(beside, head + f"trusted comment: {trusted}\n{over_both}\n".encode())
        return beside

    def _private(self) -> Ed25519PrivateKey:
        with needs("sign", _PURPOSE):
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415
        return Ed25519PrivateKey.from_private_bytes(self.seed)


def _read_signature(path: Path, signed: Path) -> tuple[bytes, bytes, bytes]:
    """Return algorithm, key and signature; the trusted comment; the signature over both."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise SignatureError(f"{signed} is not signed, but a key is required; sign it: mimexport sign") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SignatureError(f"{path} cannot be read ({error}); sign it again: mimexport sign") from error
    signature, over_both = (_from_base64(lines[at]) if len(lines) > 3 else b"" for at in (1, 3))
    known = len(lines) > 3 and lines[2].startswith("trusted comment: ")
    if not known or (len(signature), len(over_both), signature[:2]) != (74, 64, _HASHED):
        raise SignatureError(
            f"{path} is not a minisign signature (prehashed, its default); sign it again: mimexport sign"
        )
    return signature, lines[2].removeprefix("trusted comment: ").encode(), over_both


def _line_of(path: Path, kind: str) -> str:
    """Return the second line of a key's file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} is neither a {kind} nor a readable file with one ({error})") from error
    return lines[1] if len(lines) > 1 else ""


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _lines(comment: str, content: bytes) -> bytes:
    return f"untrusted comment: {comment}\n{base64.b64encode(content).decode()}\n".encode()


def _name(key: bytes) -> str:
    return f"{int.from_bytes(key, 'little'):016X}"
