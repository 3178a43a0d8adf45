"""The commands say what they did, and each failure is one line and the right exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import pytest

from mimruntime import cli
from mimruntime.cli import frame
from mimruntime.cpus import available_cpus
from mimruntime.engines.tuning import BATCHES
from mimruntime.serve.settings import Served, Settings
from mimruntime.vectors import read_vectors


def mimexport(*arguments: object, commands: list[click.Command] | None = None) -> int:
    """Run the program in this process and return its exit code."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.run(commands or cli.COMMANDS, [str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, previous)
    return int(stop.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, photos: list[Path]) -> Path:
    """Three photographs, an empty file and a page of text with names of images."""
    target = tmp_path / "photos"
    (target / "sub").mkdir(parents=True)
    for index, photo in enumerate(photos[5:8]):
        (target / f"{index}{photo.suffix}").write_bytes(photo.read_bytes())
    (target / "1b.jpg").touch()
    (target / "sub" / "page.png").write_text("<html>")
    return target


@pytest.fixture
def session_threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of every session of ONNX Runtime, as it says itself."""
    threads: list[int] = []
    real = onnxruntime.InferenceSession

    def opened(*arguments: Any, **options: Any) -> onnxruntime.InferenceSession:
        session = real(*arguments, **options)
        threads.append(session.get_session_options().intra_op_num_threads)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    return threads


class TestEmbed:
    @pytest.mark.parametrize("suffix", [".parquet", ".npz"])
    def test_a_folder_becomes_a_file_with_a_row_per_image(
        self, toy_artifact: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
    ) -> None:
        out = tmp_path / f"v{suffix}"
        assert mimexport("embed", toy_artifact, folder, "--out", out, "--engine", "onnxruntime") == 0
        said = capsys.readouterr()
        assert "3 of 5 images embedded" in said.out
        assert "images/s" in said.out
        assert str(out) in said.out
        assert "onnxruntime" in said.out
        assert "2 could not be read" in said.err
        assert "1b.jpg: is empty" in said.err
        read = read_vectors(out)
        assert [Path(path).name for path in read.paths] == ["0.jpg", "1.jpg", "1b.jpg", "2.jpg", "page.png"]
        assert [error is None for error in read.errors] == [True, True, False, True, False]
        assert np.abs(np.linalg.norm(read.vectors[[0, 1, 3]], axis=1) - 1).max() < 1e-6

    def test_strict_stops_at_the_first_and_leaves_nothing(
        self, toy_artifact: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert mimexport("embed", toy_artifact, folder, "--out", tmp_path / "v.npz", "--strict") == 1
        assert "1b.jpg: is empty, 0 bytes; --strict stops here" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["photos"]

    @pytest.mark.parametrize("options", [[], ["--strict"]], ids=["all", "strict"])
    def test_a_name_that_a_terminal_would_obey_is_escaped(
        self, toy_artifact: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
    ) -> None:
        hostile = tmp_path / "x\x1b]0;title\x07\ny.jpg"
        hostile.write_bytes(b"none")
        mimexport("embed", toy_artifact, hostile, folder / "0.jpg", "--out", tmp_path / "v.npz", *options)
        said = capsys.readouterr().err
        assert r"x\x1b]0;title\x07" in said
        assert not {"\x1b", "\x07"} & set(said)

    def test_all_images_broken_is_a_failure(
        self, toy_artifact: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert mimexport("embed", toy_artifact, folder / "sub", "--out", tmp_path / "v.npz") == 1
        assert "none of 1 images could be read" in capsys.readouterr().err
        assert not (tmp_path / "v.npz").exists()

    def test_options_reach_the_engine(
        self, toy_artifact: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        embed = ("embed", toy_artifact, folder, "--out", tmp_path / "v.npz")
        assert mimexport(*embed, "--threads", 1, "--batch-size", 2, "--engine", "onnxruntime", "--provider", "cpu") == 0
        assert mimexport(*embed, "--provider", "cuda") == 1
        assert "provider 'cuda' is not part of" in capsys.readouterr().err

    @pytest.mark.parametrize("out", ["v.npz", "shards"])
    def test_the_threads_asked_for_run(
        self, toy_artifact: Path, photo: Path, tmp_path: Path, session_threads: list[int], out: str
    ) -> None:
        threads = available_cpus() + 1
        embed = ("embed", toy_artifact, photo, "--out", tmp_path / out, "--engine", "onnxruntime")
        assert mimexport(*embed, "--threads", threads) == 0
        assert session_threads == [threads]

    @pytest.mark.parametrize(
        ("arguments", "code", "line"),
        [
            (("{artifact}", "{photos}", "--out", "v.csv"), 1, "must end in .npz or .parquet"),
            (("{artifact}", "gone", "--out", "v.npz"), 1, "gone: no such file or folder"),
            (("gone", "{photos}", "--out", "v.npz"), 1, "no artifact at gone"),
            (("{artifact}", "{photos}", "--out", "/proc/v.npz"), 1, "cannot write /proc/v.npz"),
            (("{artifact}", "{photos}", "--out", "v.npz", "--expect-space", "feed"), 1, "expected feed"),
            (("{artifact}", "{photos}", "--out", "v.npz", "--engine", "tensort"), 1, "unknown engine 'tensort'"),
            (("{artifact}", "{photos}"), 2, "Missing option '--out'"),
            (("{artifact}", "--out", "v.npz"), 2, "Missing argument 'INPUT...'"),
            (("{artifact}", "{photos}", "--out", "v.npz", "--batch-size", "0"), 2, "--batch-size"),
            (("{artifact}", "{photos}", "--out", "v.npz", "--fast"), 2, "No such option"),
        ],
    )
    def test_each_mistake_gets_its_line_and_exit_code(
        self,
        toy_artifact: Path,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        code: int,
        line: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        filled = [argument.format(artifact=toy_artifact, photos=folder) for argument in arguments]
        assert mimexport("embed", *filled) == code
        said = capsys.readouterr().err
        assert line in said
        assert "Traceback" not in said
        if code == 1:
            assert len(said.splitlines()) == 1
            assert said.startswith("error: ")
        assert [path.name for path in tmp_path.iterdir()] == ["photos"]

    def test_a_terminal_gets_a_progress_bar_and_a_pipe_does_not(
        self,
        toy_artifact: Path,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert mimexport("embed", toy_artifact, folder / "0.jpg", "--out", tmp_path / "v.npz") == 0
        assert capsys.readouterr().err == ""
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert mimexport("embed", toy_artifact, folder / "0.jpg", "--out", tmp_path / "v.npz") == 0
        assert "embedding" in capsys.readouterr().err

    def test_a_name_that_is_not_utf8_is_written_and_said(
        self, toy_artifact: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = tmp_path / "in"
        source.mkdir()
        (source / os.fsdecode(b"caf\xe9.jpg")).write_bytes(photo.read_bytes())
        (source / os.fsdecode(b"bad\xe9\n.jpg")).touch()
        for suffix in (".parquet", ".npz"):
            assert mimexport("embed", toy_artifact, source, "--out", tmp_path / f"v{suffix}") == 0
            assert read_vectors(tmp_path / f"v{suffix}").paths[1].endswith("caf\\xe9.jpg")
        assert mimexport("embed", toy_artifact, source, "--out", tmp_path / "v.npz", "--strict") == 1
        assert len(capsys.readouterr().err.splitlines()[-1:]) == 1


class TestInspect:
    def test_the_table_names_what_matters(self, toy_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert mimexport("inspect", toy_artifact) == 0
        said = capsys.readouterr().out
        for word in ("attn-mean", "fp32", "opset 18", "model.onnx", "bicubic", "worst cosine"):
            assert word in said

    def test_the_table_says_that_vectors_are_whitened(
        self, toy_artifact: Path, toy_whitened: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for artifact, expected in ((toy_artifact, []), (toy_whitened, ["whitening   16 dimensions"])):
            assert mimexport("inspect", artifact) == 0
            assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("whitening")] == expected

    def test_json_is_the_manifest_with_the_sizes(self, toy_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert mimexport("inspect", toy_artifact, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        sizes = document.pop("file_sizes")
        assert document.pop("engines") == []
        assert document == json.loads((toy_artifact / "manifest.json").read_text())
        assert sizes["model.onnx"] == (toy_artifact / "model.onnx").stat().st_size


class TestCompile:
    @staticmethod
    def compiled(artifact: Path, engine: str, *options: object) -> tuple[Path, dict[str, Any]]:
        """Compile, and return the engine's folder and its record."""
        assert mimexport("compile", artifact, "--engine", engine, *options) == 0
        (folder,) = (artifact / "engines").iterdir()
        return folder, json.loads((folder / "engine.json").read_text())

    def test_every_measurement_is_printed_and_the_one_that_is_taken_marked(
        self, toy_copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, record = self.compiled(toy_copy, "onnxruntime")
        tuned = record["tuned"]
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(f"{folder}: onnxruntime ")
        assert said[0].endswith(", fp32 on cpu")
        assert said[1].startswith("  for ")
        assert len([line for line in said if line.startswith("  batch ")]) >= len(BATCHES)
        (taken,) = (line for line in said if line.endswith("  <- taken"))
        assert taken.split()[:2] == ["batch", str(tuned["batch"])]
        assert f": {tuned['images_per_second']:.1f} images/s  <- taken" in taken

    def test_inspect_says_what_is_compiled_and_whether_it_fits(
        self, toy_copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, record = self.compiled(toy_copy, "onnxruntime")
        tuned = record["tuned"]
        capsys.readouterr()
        assert mimexport("inspect", toy_copy) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("engine "))
        assert line.split()[1] == f"{folder.name},"
        rate = f"{tuned['images_per_second']:.1f} images/s at batch {tuned['batch']}"
        assert line.endswith(f", {rate}: fits this machine")
        assert mimexport("inspect", toy_copy, "--json") == 0
        (engine,) = json.loads(capsys.readouterr().out)["engines"]
        assert (engine["key"], engine["standing"], engine["tuned"]) == (folder.name, "fits this machine", tuned)

    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_latency_is_tuned_with_one_image_in_one_stream(self, toy_copy: Path, engine: str) -> None:
        _, record = self.compiled(toy_copy, engine, "--hint", "latency")
        (trial,) = record["trials"]
        assert (trial["batch"], trial["streams"], trial["threads"]) == (1, 1, available_cpus())


class TestVerify:
    @pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
    def test_the_engine_asked_for_is_checked(
        self, toy_artifact: Path, capsys: pytest.CaptureFixture[str], engine: str
    ) -> None:
        assert mimexport("verify", toy_artifact, "--engine", engine, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["engine"], said["precision"]) == (engine, "fp32")

    def test_the_provider_asked_for_is_checked(
        self, toy_artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        assert mimexport("verify", toy_artifact, "--engine", "onnxruntime", "--provider", "cuda") == 1
        assert "provider 'cuda' is not part of onnxruntime" in capsys.readouterr().err

    def test_the_threads_asked_for_run(self, toy_artifact: Path, session_threads: list[int]) -> None:
        threads = available_cpus() + 1
        assert mimexport("verify", toy_artifact, "--engine", "onnxruntime", "--threads", threads) == 0
        assert session_threads == [threads]

    def test_the_figures_are_printed(self, toy_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert mimexport("verify", toy_artifact, "--engine", "onnxruntime") == 0
        said = capsys.readouterr().out
        assert "worst 1.0000000" in said
        assert "onnxruntime on cpu, in fp32" in said
        assert mimexport("verify", toy_artifact, "--json") == 0
        assert json.loads(capsys.readouterr().out)["deterministic"] is True

    def test_a_flipped_byte_is_exit_1(self, toy_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        raw = bytearray((toy_copy / "reference.npz").read_bytes())
        raw[100] ^= 1
        (toy_copy / "reference.npz").write_bytes(raw)
        assert mimexport("verify", toy_copy) == 1
        assert "reference.npz was changed or truncated" in capsys.readouterr().err


class TestServe:
    @pytest.fixture
    def served(self, monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
        """What the service is started with."""
        seen: list[Settings] = []
        monkeypatch.setattr("mimruntime.serve.server.serve", seen.append)
        return seen

    def test_what_is_not_given_is_as_in_the_settings(self, served: list[Settings]) -> None:
        assert mimexport("serve", "a", "b") == 0
        assert served == [Settings(artifacts=(Served(Path("a")), Served(Path("b"))))]

    def test_times_and_sizes_reach_the_settings_from_options_and_variables(
        self, served: list[Settings], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "DEADLINE": "5",
            "MAX_BUFFERED_MB": "64",
            "ARTIFACTS": "a:new=b",
            "CHECK_REFERENCE": "0",
        }.items():
            monkeypatch.setenv(f"MIMEXPORT_{name}", value)
        assert mimexport("serve", "--grace", 3, "--max-body-mb", 8, "--watchdog", 1.5) == 0
        (settings,) = served
        assert (settings.deadline_s, settings.grace_s, settings.watchdog_s) == (5.0, 3, 1.5)
        assert (settings.max_body, settings.max_buffered) == (8_000_000, 64_000_000)
        assert (settings.artifacts, settings.check_reference) == ((Served(Path("a")), Served(Path("b"), "new")), False)

    @pytest.mark.parametrize("given", [["jpeg", "png"], ["JPEG PNG"], ["jpeg,Png"], ["jpeg", "png jpeg"]])
    def test_formats_are_named_in_any_case_one_by_one_or_together(
        self, served: list[Settings], given: list[str]
    ) -> None:
        assert mimexport("serve", "a", *(part for name in given for part in ("--format", name))) == 0
        assert served[0].formats == ("JPEG", "PNG")

    def test_a_format_that_does_not_exist_is_one_line(
        self, served: list[Settings], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert mimexport("serve", "a", "--format", "jpeg svg") == 1
        assert capsys.readouterr().err.startswith("error: unknown image format 'svg'; known: JPEG")


class TestFrame:
    @staticmethod
    def command(error: BaseException) -> list[click.Command]:
        def fail() -> None:
            raise error

        return [click.Command("fail", callback=fail)]

    def test_a_bug_is_one_line_too_and_debug_gives_the_trace(self, capsys: pytest.CaptureFixture[str]) -> None:
        commands = self.command(ZeroDivisionError("division\nby zero"))
        assert mimexport("fail", commands=commands) == 1
        assert capsys.readouterr().err == "error: unexpected ZeroDivisionError: division by zero (--debug says where)\n"
        for arguments in (("--debug", "fail"), ("fail", "--debug")):
            assert mimexport(*arguments, commands=commands) == 1
            assert "Traceback (most recent call last)" in capsys.readouterr().err

    def test_ctrl_c_is_130_and_quiet(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert mimexport("fail", commands=self.command(KeyboardInterrupt())) == 130
        assert capsys.readouterr().err.strip() == ""

    def test_an_exit_code_of_a_command_is_kept(self) -> None:
        assert mimexport("fail", commands=self.command(click.exceptions.Exit(3))) == 3

    def test_no_command_an_unknown_one_and_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert mimexport("nonsense") == 2
        assert "No such command 'nonsense'" in capsys.readouterr().err
        assert mimexport("--help") == 0
        said = capsys.readouterr().out
        assert all(word in said for word in ("embed", "inspect", "verify", "--debug", "--version"))

    def test_debug_after_two_dashes_is_a_name(self) -> None:
        assert frame._without_debug(["embed", "--debug", "--", "--debug"]) == (["embed", "--", "--debug"], True)
        assert frame._without_debug(["embed", "--", "--debug"]) == (["embed", "--", "--debug"], False)

    def test_a_reader_that_goes_away_is_no_trace(self, toy_artifact: Path) -> None:
        script = f"from mimruntime import cli; cli.run(cli.COMMANDS, ['inspect', {str(toy_artifact)!r}, '--json'])"
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert done.stderr == b""

    @pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_stopped_job_leaves_no_output(
        self, toy_artifact: Path, photo: Path, tmp_path: Path, stop: signal.Signals, code: int
    ) -> None:
        script = "import sys; from mimruntime import cli; cli.run(cli.COMMANDS)"
        arguments = ["embed", str(toy_artifact), *[str(photo)] * 5000, "--out", str(tmp_path / "v.npz")]
        job = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 20
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.iterdir()), "the job never began to write"
        job.send_signal(stop)
        _, said = job.communicate(timeout=30)
        assert job.returncode == code
        assert said.strip() == b""
        assert list(tmp_path.iterdir()) == []
