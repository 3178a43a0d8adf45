"""Open an artifact folder with all digests checked, and write one atomically."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mimruntime import writing
from mimruntime.errors import ArtifactError, OutputError, SpaceError
from mimruntime.manifest import Manifest, decode, encode
from mimruntime.signatures import PublicKey

MANIFEST = "manifest.json"
REFERENCE = "reference.npz"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact folder and its manifest. Functions that take the folder's path also accept this.

    >>> from mimruntime import Artifact
    >>> Artifact.open("artifacts/tiny").manifest.preprocess.size
    64

    Attributes:
        path: the folder.
        manifest: the verified content of `manifest.json`.
        public_key: key that must have signed the manifest and all compiled engines; None requires no signatures.

    """

    path: Path
    manifest: Manifest
    public_key: PublicKey | None = None

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, expect_space: str | None = None, public_key: str | Path | None = None
    ) -> Artifact:
        """Open the folder at `path` and check the sha256 of every file it lists.

        Args:
            path: the folder; an opened artifact is read again, and its key still required.
            expect_space: raise SpaceError unless the artifact has this embedding space.
            public_key: a minisign public key, as text or file; require a signature by this key.

        Raises:
            ArtifactError: the folder is missing, damaged, not an artifact, changed, or newer than this program.
            SpaceError: the embedding space is not `expect_space`.
            SignatureError: the key did not sign it.
            OptionError: `public_key` is not a minisign public key.
            MissingExtraError: a key was given, but `cryptography` is not installed.

        """
        given = key_of(path, public_key)
        key = None if given is None else PublicKey.read(given)
        folder = Path(path)
        if not folder.is_dir():
            raise ArtifactError(f"no artifact at {folder}; build one: mimexport build --model mae-tiny --out {folder}")
        try:
            raw = (folder / MANIFEST).read_bytes()
            if key is not None:
                key.check(folder / MANIFEST, raw)
            manifest = decode(raw)
        except FileNotFoundError as error:
            raise ArtifactError(f"{folder} is not an artifact: it contains no {MANIFEST}") from error
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{folder / MANIFEST}: {error}; or build the artifact again") from error
        if manifest.graph.file not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST}: its graph '{manifest.graph.file}' is not among its files")
        for name, expected in manifest.files.items():
            _check_file(folder, name, expected)
        space = manifest.embedding_space
        if expect_space is not None and expect_space != space:
            raise SpaceError(f"{folder} embeds into space {space}, expected {expect_space}; vectors would not compare")
        return cls(folder, manifest, key)

    def check_in_place(self) -> None:
        """Check that the folder still holds this artifact.

        Raises:
            ArtifactError: another artifact replaced it since it was opened.

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
        """Digest of the graph: the sha256 of its file, or of its files' digests if the weights are in separate files."""
        name = self.manifest.graph.file
        digests = [digest for file, digest in sorted(self.manifest.files.items()) if file.startswith(name)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def engines(self) -> Path:
        """Folder of the compiled engines. The manifest does not list it, so engines can be added later."""
        return self.path / "engines"

    @property
    def reference(self) -> Path:
        """The `.npz` file of images and torch embeddings for parity checks."""
        return self.path / REFERENCE


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, with the digests of all files in it."""
    files = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_bytes(encode(msgspec.structs.replace(manifest, files=files)))


@contextlib.contextmanager
def staged_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder next to `target`; rename it to `target` if the block succeeds, else remove it.

    Args:
        target: a folder that does not exist, is empty, or, with `replace`, is an artifact.
        replace: replace an existing artifact.

    Raises:
        OutputError: `target` is a file, a folder that is not an artifact (never overwritten), an artifact without
            `replace`, or not writable.

    """
    target = target.resolve() if target.is_symlink() else target.absolute()
    if target.exists() and not (target / MANIFEST).is_file() and not _is_empty_folder(target):
        raise OutputError(f"{target} exists and is not an artifact, so it is not overwritten; choose another --out")
    writing.sweep(target.parent, target.name, MANIFEST)
    seen = writing.look(target, MANIFEST)
    if seen is not None and not replace:
        raise OutputError(f"{target} exists; replace it with --force (in Python: force=True), or choose another --out")
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
        for folder in made:  # remove new parent folders if they are still empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def key_of(path: str | os.PathLike[str], public_key: str | Path | None) -> str | Path | None:
    """Return the key that must have signed `path`: `public_key`, else the one that an opened artifact was opened with."""
    if public_key is None and isinstance(path, Artifact) and path.public_key is not None:
        return str(path.public_key)
    return public_key


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder}: the manifest names '{name}', a file outside the artifact; do not trust it")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path} is not a regular file; build the artifact again")
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); build the artifact again") from error
    if actual != expected:
        raise ArtifactError(
            f"{path} was changed or truncated (sha256 {actual[:12]}…, expected {expected[:12]}…); build it again"
        )
