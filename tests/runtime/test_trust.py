"""What runs is what the artifact says: signatures, engines that belong to it, no links, vectors compared at opening."""

from __future__ import annotations

import base64
import io
import os
import pickle
import shutil
from pathlib import Path

import msgspec
import pytest

from mimruntime import artifact as artifacts
from mimruntime import cli
from mimruntime.artifact import Artifact
from mimruntime.batch import BatchEmbedder
from mimruntime.embedder import Embedder
from mimruntime.engines import opening, openvino, record
from mimruntime.engines.compilation import compile_artifact
from mimruntime.engines.compiled import compile_line, list_compiled
from mimruntime.engines.options import CompileOptions
from mimruntime.errors import (
    ArtifactError,
    EngineError,
    MimError,
    OptionError,
    OutputError,
    ParityError,
    SignatureError,
)
from mimruntime.signatures import PublicKey, SecretKey
from mimruntime.verification import verify

# From minisign's own tests: the signature of b"test".
THEIR_KEY = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
THEIR_SIGNATURE = """untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1556193335\tfile:test
y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==
"""


def mimexport(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.run(cli.COMMANDS, [str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def rewrite(folder: Path, **changes: object) -> None:
    """Change a record as its owner could: sealed again."""
    path = folder / record.FILE
    path.write_bytes(record.encode(msgspec.structs.replace(record.decode(path.read_bytes()), **changes)))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a new pair of keys, secret and public."""
    return SecretKey.generate().write(tmp_path / "mine")


@pytest.fixture(scope="module")
def compiled(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(toy_artifact, tmp_path_factory.mktemp("compiled") / "toy"))
    compile_artifact(folder, CompileOptions(engine="onnxruntime", threads=1))
    return folder


@pytest.fixture
def tuned(compiled: Path, tmp_path: Path) -> Path:
    """The toy with an engine that has no files of its own."""
    return Path(shutil.copytree(compiled, tmp_path / "toy"))


class TestSignatures:
    def test_what_minisign_signed_is_accepted_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "test.minisig").write_text(THEIR_SIGNATURE)
        key = PublicKey.read(THEIR_KEY)
        key.check(tmp_path / "test", b"test")
        with pytest.raises(SignatureError, match="is not what the key E7620F1842B4E81F signed"):
            key.check(tmp_path / "test", b"Test")
        (tmp_path / "test.minisig").write_text(THEIR_SIGNATURE.replace("1556193335", "1556193336"))
        with pytest.raises(SignatureError, match="is not what the key"):
            key.check(tmp_path / "test", b"test")
        (tmp_path / "test.minisig").write_text("\n\n\n\n")
        with pytest.raises(SignatureError, match="is not a minisign signature"):
            key.check(tmp_path / "test", b"test")

    def test_a_signed_artifact_opens_with_its_key_alone(self, tuned: Path, keys: tuple[Path, Path]) -> None:
        secret, public = keys
        other = SecretKey.generate().public
        with pytest.raises(SignatureError, match=r"manifest\.json is not signed, but a key is required"):
            Embedder.open(tuned, public_key=public)
        assert mimexport("sign", tuned, "--secret-key", secret) == 0
        with Embedder.open(tuned, public_key=public) as embedder:
            assert embedder.describe().compiled
        assert verify(tuned, public_key=PublicKey.read(public).__str__()).parity.images == 8
        with pytest.raises(SignatureError, match="is by the key"):
            verify(tuned, public_key=str(other))
        # Built again by somebody else, every digest right.
        manifest = Artifact.open(tuned).manifest
        artifacts.seal(tuned, msgspec.structs.replace(manifest, name="evil", files={}))
        with pytest.raises(SignatureError, match="is not what the key"):
            Embedder.open(tuned, public_key=public)

    def test_what_was_opened_with_a_key_needs_it_again(
        self, toy_copy: Path, keys: tuple[Path, Path], photo: Path
    ) -> None:
        secret, public = keys
        assert mimexport("sign", toy_copy, "--secret-key", secret) == 0
        opened = Artifact.open(toy_copy, public_key=public)
        batch = pickle.loads(pickle.dumps(BatchEmbedder(opened, column="path")))
        assert batch({"path": [str(photo)]})["error"].tolist() == [""]
        batch.close()
        (toy_copy / "manifest.json.minisig").unlink()
        for again in (lambda: Embedder.open(opened), lambda: verify(opened), lambda: batch({"path": [str(photo)]})):
            with pytest.raises(SignatureError, match=r"manifest\.json is not signed, but a key is required"):
                again()

    def test_an_engine_that_is_not_signed_is_not_run(self, toy_copy: Path, keys: tuple[Path, Path]) -> None:
        secret, public = keys
        assert mimexport("sign", toy_copy, "--secret-key", secret) == 0
        compile_artifact(toy_copy, CompileOptions(engine="onnxruntime", threads=1))
        with pytest.raises(SignatureError, match=r"engine\.json is not signed"):
            Embedder.open(toy_copy, public_key=public)
        assert mimexport("sign", toy_copy, "--secret-key", secret) == 0
        Embedder.open(toy_copy, public_key=public).close()

    def test_the_command_line_and_the_environment_ask_for_a_key(
        self, toy_copy: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        secret, public = keys
        assert mimexport("verify", toy_copy, "--public-key", public) == 1
        assert "is not signed" in capsys.readouterr().err
        monkeypatch.setenv("MIMEXPORT_PUBLIC_KEY", str(public))
        assert mimexport("verify", toy_copy) == 1
        assert mimexport("sign", toy_copy, "--secret-key", secret) == 0
        assert mimexport("verify", toy_copy) == 0

    def test_keys_are_files_of_their_owner_and_never_replaced(self, tmp_path: Path, keys: tuple[Path, Path]) -> None:
        secret, public = keys
        assert secret.stat().st_mode & 0o077 == 0
        assert SecretKey.read(secret).public == PublicKey.read(public)
        assert mimexport("keygen", tmp_path / "other") == 0
        assert SecretKey.read(tmp_path / "other.key").public == PublicKey.read(tmp_path / "other.pub")
        assert mimexport("keygen", tmp_path / "other") == 1
        with pytest.raises(OutputError, match="keys are never overwritten"):
            SecretKey.generate().write(tmp_path / "mine")
        with pytest.raises(OptionError, match="contains no minisign secret key"):
            SecretKey.read(public)
        with pytest.raises(OptionError, match="is neither a public key"):
            PublicKey.read(tmp_path / "none")

    @pytest.mark.parametrize(
        ("at", "kind", "message"),
        [(0, b"XX", "contains no minisign secret key"), (2, b"Sc", "has a password; sign with minisign itself")],
    )
    def test_a_secret_key_of_another_kind_or_with_a_password_is_refused(
        self, keys: tuple[Path, Path], at: int, kind: bytes, message: str
    ) -> None:
        secret, _ = keys
        comment, content = secret.read_text().splitlines()
        raw = bytearray(base64.b64decode(content))
        raw[at : at + 2] = kind
        secret.write_text(f"{comment}\n{base64.b64encode(raw).decode()}\n")
        with pytest.raises(OptionError, match=message):
            SecretKey.read(secret)


class TestLinks:
    @pytest.mark.parametrize("what", ["engines", "folder", "record"])
    def test_an_engine_that_lies_elsewhere_is_refused(self, tuned: Path, tmp_path: Path, what: str) -> None:
        folder = list_compiled(Artifact.open(tuned))[0].folder
        link = {"engines": folder.parent, "folder": folder, "record": folder / record.FILE}[what]
        link.rename(tmp_path / "elsewhere")
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(EngineError, match="is a link, but compiled engines must lie in the artifact"):
            Embedder.open(tuned)

    def test_a_pipe_in_the_place_of_a_file_is_refused(self, tuned: Path) -> None:
        path = list_compiled(Artifact.open(tuned))[0].folder / record.FILE
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(EngineError, match="is not a regular file"):
            Embedder.open(tuned)
        (tuned / "README.md").unlink()
        os.mkfifo(tuned / "README.md")
        with pytest.raises(ArtifactError, match="is not a regular file"):
            Artifact.open(tuned)


class TestBelonging:
    def test_the_record_names_its_artifact_and_another_one_does_not_run_it(self, tuned: Path) -> None:
        opened = Artifact.open(tuned)
        (one,) = list_compiled(opened)
        assert (one.record.artifact, one.record.artifact_sha256) == ("toy", opened.manifest.sha256)
        artifacts.seal(tuned, msgspec.structs.replace(opened.manifest, created="later", files={}))
        with pytest.raises(EngineError, match=r"was compiled for another artifact \(toy .*run: mimexport compile"):
            Embedder.open(tuned, engine="onnxruntime")

    def test_an_artifact_that_is_replaced_while_it_is_opened_is_not_mixed(
        self, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_engine, manifest = opening.open_engine, Artifact.open(toy_copy).manifest

        def replaced(*args: object, **options: object) -> object:
            artifacts.seal(toy_copy, msgspec.structs.replace(manifest, created="later", files={}))
            return open_engine(*args, **options)

        monkeypatch.setattr(opening, "open_engine", replaced)
        with pytest.raises(ArtifactError, match="was replaced while it was being opened"):
            Embedder.open(toy_copy, engine="onnxruntime")


@pytest.fixture(scope="module")
def foreign_blob(toy_artifact: Path) -> bytes:
    """Another network of the same shape, compiled."""
    import onnx
    import openvino as library

    model = onnx.load(toy_artifact / "model.onnx")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    array = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(array[::-1].copy(), "weights"))
    core = library.Core()
    blob = io.BytesIO()
    core.compile_model(core.read_model(io.BytesIO(model.SerializeToString())), "CPU").export_model(blob)
    return blob.getvalue()


class TestAnotherNetwork:
    @pytest.fixture
    def planted(self, toy_copy: Path, foreign_blob: bytes) -> Path:
        """The toy with an engine that is another network, sealed as its own."""
        folder = compile_artifact(toy_copy, CompileOptions(engine="openvino", threads=1)).folder
        (folder / openvino._BLOB).write_bytes(foreign_blob)
        seal = record.FileSeal(sha256=artifacts.file_sha256(folder / openvino._BLOB), size=len(foreign_blob))
        rewrite(folder, files={openvino._BLOB: seal})
        return toy_copy

    def test_it_is_seen_when_it_is_opened_unless_told_not_to(
        self, planted: Path, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for engine in ("auto", "openvino"):
            with pytest.raises(ParityError, match=r"openvino-.* does not give the vectors of this artifact"):
                Embedder.open(planted, engine=engine)
        Embedder.open(planted, check_reference=False).close()
        embed = ("embed", planted, photo, "--out", tmp_path / "v.npz")
        assert mimexport(*embed) == 1
        assert mimexport(*embed, "--no-check-reference") == 0
        monkeypatch.setenv("MIMEXPORT_CHECK_REFERENCE", "0")
        assert mimexport(*embed) == 0

    def test_a_record_that_names_no_artifact_is_always_compared(self, planted: Path) -> None:
        (one,) = list_compiled(Artifact.open(planted))
        rewrite(one.folder, schema=1, artifact="", artifact_sha256="")
        with pytest.raises(ParityError, match="does not give the vectors"):
            Embedder.open(planted, check_reference=False)
        assert "compile" in compile_line(Artifact.open(planted), one.record)
        with pytest.raises(MimError):
            verify(planted)
