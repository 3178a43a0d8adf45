"""The artifact folder: opened with every digest checked, written so that a crash leaves old, new or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mimruntime import writing
from mimruntime.errors import ArtifactError, OutputError
from mimruntime.manifest import Manifest, decode, encode
from mimruntime.signatures import PublicKey

MANIFEST = "manifest.json"
REFERENCE = "reference.npz"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model ready to embed: a folder and what its manifest says. Whatever takes the folder's path takes this too.

    >>> from mimruntime import Artifact
    >>> Artifact.open("artifacts/tiny").manifest.preprocess.size
    64

    Attributes:
        path: the folder.
        manifest: the checked content of `manifest.json`.
        public_key: what it, and every compiled engine in it, must be signed by; None: nothing need be signed.

    """

    path: Path
    manifest: Manifest
    public_key: PublicKey | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, public_key: str | Path | None = None) -> Artifact:
        """Open the folder at `path` and check the sha256 of every file it lists.

        Args:
            path: the folder.
            public_key: of minisign, as text or in a file: refuse what this key did not sign.

        Raises:
            ArtifactError: missing, broken, foreign, newer than this program, or changed by as much as one byte.
            SignatureError: the key did not sign it.
            OptionError: `public_key` is none.
            MissingExtraError: a key is asked for, and `cryptography` is not installed.

        """
        key = None if public_key is None else PublicKey.read(public_key)
        folder = Path(path)
        if not folder.is_dir():
            raise ArtifactError(f"no artifact at {folder}; build one: mimexport build --model mae-tiny --out {folder}")
        try:
            raw = (folder / MANIFEST).read_bytes()
            if key is not None:
                key.check(folder / MANIFEST, raw)
            manifest = decode(raw)
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder} is not an artifact: it holds no {MANIFEST}") from error
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{folder / MANIFEST}: {error}; or build the artifact again") from error
        if manifest.graph.file not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST}: its graph '{manifest.graph.file}' is not among its files")
        for name, expected in manifest.files.items():
            _check_file(folder, name, expected)
        return cls(folder, manifest, key)

    def check_in_place(self) -> None:
        """Refuse to go on where another artifact was put in the place of this one since it was opened.

        Raises:
            ArtifactError: that is so.

        """
        try:
            same = decode((self.path / MANIFEST).read_bytes()).sha256 == self.manifest.sha256
        except (ValueError, OSError):
            same = False
        if not same:
            raise ArtifactError(f"{self.path} was replaced while it was being opened; open it again")

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.path / self.manifest.graph.file

    @property
    def graph_sha256(self) -> str:
        """What identifies the graph: the sha256 of its file, or of the digests of its files where weights lie apart."""
        name = self.manifest.graph.file
        digests = [digest for file, digest in sorted(self.manifest.files.items()) if file.startswith(name)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def engines(self) -> Path:
        """Where compiled engines lie; not part of what the manifest seals, so that compiling later breaks nothing."""
        return self.path / "engines"

    @property
    def reference(self) -> Path:
        """The images and torch embeddings that parity is measured against, as `.npz`."""
        return self.path / REFERENCE


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, with the digests of all files that lie there."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_bytes(encode(msgspec.structs.replace(manifest, files=files)))


@contextlib.contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `target` that takes its place when the block ends well, and is removed otherwise.

    Args:
        target: a folder that does not exist, is empty, or, with `replace`, is an artifact.
        replace: take the place of an artifact that is there.

    Raises:
        OutputError: `target` is a file, a folder that is no artifact (it is never overwritten), an artifact without
            `replace`, or cannot be written.

    """
    target = target.resolve() if target.is_symlink() else target.absolute()
    if target.exists() and not (target / MANIFEST).is_file() and not _is_empty_folder(target):
        raise OutputError(f"{target} exists and is not an artifact; it is left alone, choose another --out")
    writing.sweep(target.parent, target.name, MANIFEST)
    seen = writing.look(target, MANIFEST)
    if seen is not None and not replace:
        raise OutputError(f"{target} exists; replace it with --force, or choose another --out")
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with writing.staged_folder(target.parent, target.name) as stage:
            yield stage
            if seen is None:
                writing.place(stage, target)
            else:
                writing.replace(stage, target, MANIFEST, seen)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        for folder in made:  # nothing built, nothing left
            with contextlib.suppress(OSError):
                folder.rmdir()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder}: the manifest names '{name}', a file outside the artifact; do not trust it")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is no regular file; build the artifact again")
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); build the artifact again") from error
    if actual != expected:
        raise ArtifactError(
            f"{path} was changed or cut short (sha256 {actual[:12]}…, expected {expected[:12]}…); build it again"
        )
