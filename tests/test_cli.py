"""The program as a user types it: what it prints, where, and with which exit status."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import skimage
from catalogue import built, take
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from mimexport.cli import main
from mimexport.cli.build import build_command as build
from mimexport.cli.fit import fit_command as fit
from mimexport.options import BuildOptions
from mimexport.weights import load_model
from mimruntime.artifact import Artifact
from mimruntime.synthetic import draw_scenes

PROGRAM = Path(sys.executable).parent / "mimexport"


def in_a_process(*arguments, cwd):
    """Run the installed program."""
    return subprocess.run([PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def mimexport(*arguments, cwd="."):
    """Run the program here, where torch is imported already."""
    out, error, on_sigterm = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    typed = mock.patch.object(sys, "argv", ["mimexport", *arguments])
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), typed:
            main()
    except SystemExit as ended:
        return subprocess.CompletedProcess(arguments, ended.code or 0, out.getvalue(), error.getvalue())
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which the sentence users type was typed."""
    folder = tmp_path_factory.mktemp("work")
    with mock.patch("mimexport.pipeline.build", partial(take, with_selection=True, whiten_by_default=False)):
        done = mimexport("build", "--model", "mae-tiny", "--agg", "topk", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("artifacts/mae-tiny-topk: 192 dimensions, embedding space ")
    return folder


@pytest.mark.parametrize(
    ("given", "asked"), [([], (None, True)), (["--no-whiten"], (None, False)), (["--whiten", "64"], (64, False))]
)
def test_vectors_are_whitened_by_default_and_not_where_that_is_declined(tmp_path, given, asked):
    seen = []
    artifact = built(model="mae-tiny", agg="topk", with_selection=True)
    with mock.patch("mimexport.pipeline.build", lambda options, *_: seen.append(options) or artifact):
        mimexport("build", "--model", "mae-tiny", *given, cwd=tmp_path)
    assert [(options.whiten, options.whiten_by_default) for options in seen] == [asked]


def test_from_a_name_to_vectors(workplace):
    photos = Path(skimage.__file__).parent / "data"
    done = mimexport("embed", "artifacts/mae-tiny-topk", str(photos / "coffee.png"), "--out", "v.npz", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 images embedded" in done.stdout
    assert (workplace / "v.npz").exists()


def test_inspect_and_verify_agree_with_the_build(workplace):
    inspected = mimexport("inspect", "artifacts/mae-tiny-topk", "--json", cwd=workplace)
    assert json.loads(inspected.stdout)["aggregator"]["params"] == {"k": 48, "score": "center-norm"}
    verified = mimexport("verify", "artifacts/mae-tiny-topk", cwd=workplace)
    assert verified.returncode == 0
    assert "every digest as built" in verified.stdout


@pytest.mark.usefixtures("small_alias")
def test_random_weights_are_said_loudly(tmp_path):
    done = mimexport("build", "--model", "small", "--random-weights", "--agg", "mean", "--out", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING: the weights are random" in done.stderr


def captured(monkeypatch, name, command, arguments):
    """The options that a command hands on; what it hands them to is never run."""

    class HandedOnError(Exception):
        pass

    def take(options, *_, **__):
        raise HandedOnError(options)

    monkeypatch.setattr(name, take)
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert isinstance(done.exception, HandedOnError), done.output
    (options,) = done.exception.args
    return options


def test_build_hands_every_option_on(monkeypatch, tmp_path):
    arguments = [
        "--model", "mae-tiny", "--agg", "topk", "--out", tmp_path, "--k", "25%", "--score", "norm", "--token-norm", "final",
        "--precision", "bf16", "--calibrate", "photos", "--image-size", 96, "--with-selection", "--head", "mine",
        "--whiten", 64, "--weights", "w.pth", "--force",
    ]  # fmt: skip
    assert captured(monkeypatch, "mimexport.pipeline.build", build, arguments) == BuildOptions(
        model="mae-tiny", agg="topk", out=tmp_path, agg_options={"k": "25%", "score": "norm"}, token_norm="final",
        precision="bf16", calibrate=Path("photos"), size=96, with_selection=True, head="mine", whiten=64,
        weights=Path("w.pth"), force=True,
    )  # fmt: skip


def test_fit_hands_every_option_on(monkeypatch, tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    arguments = [
        "--model", "mae-tiny", "--agg", "abmilp", "--data", tmp_path, "--out", tmp_path / "h.safetensors", "--prior", "center",
        "--depth", 2, "--queries", 8, "--score", "norm", "--k", "25%", "--token-norm", "raw", "--weights", "w.pth",
        "--seed", 7, "--cache", tmp_path / "cache",
    ]  # fmt: skip
    options = captured(monkeypatch, "mimexport.fitting.fitter.Fitter", fit, arguments)
    assert options.agg_options == {"prior": "center", "depth": 2, "queries": 8, "score": "norm", "k": "25%"}
    assert (options.model, options.agg, options.token_norm, options.seed) == ("mae-tiny", "abmilp", "raw", 7)
    assert (options.weights, options.random_seed, options.cache) == (Path("w.pth"), None, tmp_path / "cache")
    assert (len(options.images), len(options.labels)) == (3, 3)
    unlabelled = captured(monkeypatch, "mimexport.fitting.fitter.Fitter", fit, [*arguments, "--unlabelled"])
    assert unlabelled.labels is None


def test_build_with_an_engine_compiles_for_it(monkeypatch, toy_copy):
    monkeypatch.setattr("mimexport.pipeline.build", lambda *_, **__: Artifact.open(toy_copy))
    arguments = ["--model", "mae-tiny", "--engine", "onnxruntime", "--threads", "1"]
    done = CliRunner().invoke(build, arguments, catch_exceptions=False)
    assert "<- taken" in done.output
    (record,) = toy_copy.glob("engines/onnxruntime-*/engine.json")
    assert json.loads(record.read_text())["options"] == {"threads": "1"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["build", "--model", "mae-tinny"], 1, "error: unknown model 'mae-tinny'; did you mean mae-tiny"),
        (["build", "--model", "mae-tiny", "--agg", "topq"], 1, "error: unknown aggregator 'topq'; did you mean topk"),
        (["build", "--model", "mae-tiny", "--k", "65"], 1, "error: --k 65: expected a count from 1 to 64"),
        (["build", "--model", "mae-tiny", "--agg", "mean", "--k", "3"], 1, "error: aggregator mean takes no options"),
        (["build", "--model", "mae-tiny", "--weights", "none.pth"], 1, "error: no weights file at none.pth"),
        (["build", "--model", "mae-tiny", "--weights", "x", "--random-weights"], 2, "exclude each other"),
        (["build"], 2, "Missing option '--model'"),
        (["build", "--model", "mae-tiny", "--whiten", "--no-whiten"], 2, "--whiten and --no-whiten exclude each other"),
        (["build", "--model", "mae-tiny", "--precision", "fp12"], 2, "is not one of 'fp32', 'fp16'"),
        (["inspect", "nowhere"], 1, "error: no artifact at nowhere"),
        (["quantize"], 2, "No such command 'quantize'"),
    ],
)
def test_what_goes_wrong_is_one_line_with_its_exit_status(arguments, status, message, tmp_path):
    done = mimexport(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not any(tmp_path.rglob("*.onnx"))


def test_debug_gives_the_trace(tmp_path):
    assert "Traceback" in in_a_process("inspect", "nowhere", "--debug", cwd=tmp_path).stderr


def test_models_and_aggregators_are_listed_for_people_and_programs():
    models = json.loads(mimexport("models", "--json").stdout)
    assert {"alias", "timm", "size", "patch", "tokens", "dim", "license", "note"} == set(models[0])
    assert "mae-l16" in mimexport("models").stdout
    aggregators = mimexport("aggregators").stdout
    assert "1/k Σ x_i over the k patches of best score" in aggregators


def test_without_the_torch_side_build_says_what_to_install(tmp_path):
    """The commands of the runtime work where torch is not installed."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mimexport.cli import main; main()"
    for arguments, message in [
        (["build", "--model", "mae-tiny"], "needs an optional package; run: pip install 'mimexport[export]'"),
        (["inspect", "nowhere"], "error: no artifact at nowhere"),
        (["models"], ""),
    ]:  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, tmp_path, *arguments], capture_output=True, text=True, check=False
        )
        assert message in done.stderr
        assert done.returncode == (1 if message else 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of drawn scenes, forty pictures each."""
    folder = tmp_path_factory.mktemp("data")
    for i, scene in enumerate(draw_scenes(80, 64)):
        path = folder / ("plain", "red")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        if i % 2:
            scene[16:48, 16:48] = (255, 40, 40)
        Image.fromarray(scene).save(path)
    return folder


@pytest.mark.usefixtures("small_alias")
def test_from_images_to_a_head_to_an_artifact(data, tmp_path):
    save_file(load_model("small", random_seed=0).model.state_dict(), tmp_path / "w.safetensors")
    common = ["--model", "small", "--weights", "w.safetensors", "--agg", "topk"]
    learned = ["--data", str(data), "--out", "h.safetensors", "--cache", str(tmp_path / "cache"), "--unlabelled"]
    fitted = mimexport("fit", *common, *learned, cwd=tmp_path)
    assert fitted.returncode == 0, fitted.stderr
    assert "k-NN" in fitted.stdout
    assert "linear probe" in fitted.stdout
    assert "recall@1 between two views of an image:" in fitted.stdout
    assert re.search(r"^\| 50% \| [\d.]+ × fewer \| [\d.]+ % \| [\d.]+ % \|$", fitted.stdout, re.MULTILINE)
    assert "as often as with everything: --keep " in fitted.stdout
    built = mimexport("build", *common, "--head", "h.safetensors", "--whiten", "32", "--out", "a", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    inspected = json.loads(mimexport("inspect", "a", "--json", cwd=tmp_path).stdout)
    assert inspected["embedding"]["dim"] == 32
    assert inspected["aggregator"]["head_sha256"]


def test_a_place_that_takes_no_result_is_found_out_before_the_work(data, tmp_path):
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "h.safetensors")
    cache = ["--data", str(data), "--cache", str(tmp_path / "cache")]
    fitted = mimexport("fit", "--model", "mae-tiny", "--agg", "abmilp", "--unlabelled", *cache, "--out", place)
    measured = mimexport("bench", "none", "--json", place)
    for done in (fitted, measured):
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: cannot write {place}: File exists\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_are_for_peers():
    done = mimexport("bench", "none", "--weights", "none.pth")
    assert done.returncode == 2
    assert "--weights needs --peers" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--agg", "abmilp", "--data", "none"], 1, "error: no folder or zip at none"),
        (["--agg", "abmilp", "--data", "."], 1, "no images in"),
        (["--agg", "abmilp", "--data", ".", "--out", "h.pth"], 2, "the name of a head file must end in .safetensors"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(arguments, status, message, tmp_path):
    done = mimexport("fit", "--model", "mae-tiny", "--out", "h.safetensors", *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert not any(tmp_path.iterdir())
