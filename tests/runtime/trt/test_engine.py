"""From `mimexport compile` to vectors: a plan opens where it fits, and is refused in one line where it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder
from mimruntime.engines import engine_module, record
from mimruntime.engines.auto import choose_engine
from mimruntime.engines.compilation import compile_artifact
from mimruntime.engines.compiled import list_compiled
from mimruntime.engines.gpu_name import NO_GPU, gpu_name
from mimruntime.engines.opening import open_for
from mimruntime.engines.options import CompileOptions
from mimruntime.engines.record import BatchProfile
from mimruntime.engines.trt import cuda
from mimruntime.engines.trt.flavour import TENSORRT, TENSORRT_RTX
from mimruntime.engines.trt.plan import PORTABLE, BuildPlan, misfit
from mimruntime.errors import EngineError, MissingExtraError, OptionError, UnknownNameError
from mimruntime.verification import verify

pytestmark = pytest.mark.cpu

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'mimexport[tensorrt-rtx]'")
without_gpu = pytest.mark.skipif(
    gpu_name() != NO_GPU, reason="says what a machine without a driver answers, and this one has a GPU"
)
RTX = "tensorrt-rtx"
BATCH = BatchProfile(least=1, best=4, most=8)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory, toy_artifact):
    folder = Path(shutil.copytree(toy_artifact, tmp_path_factory.mktemp("rtx") / "toy"))
    compile_artifact(folder, CompileOptions(engine=RTX, arch=("sm86", "sm89"), batch=BATCH))
    return folder


@pytest.fixture
def artifact(compiled_once, tmp_path):
    """The toy artifact with a plan for sm86 and sm89, to be damaged."""
    return Path(shutil.copytree(compiled_once, tmp_path / "toy"))


def changed_record(folder, **changes):
    """Make the compiled engine say something else, sealed as if it had always been so."""
    one = list_compiled(Artifact.open(folder))[0]
    changed = msgspec.structs.replace(one.record, **changes)
    (one.folder / record.FILE).write_bytes(record.encode(changed))
    one.folder.rename(one.folder.with_name(changed.key))


def test_the_record_says_what_was_built_and_for_what(compiled_once):
    one = list_compiled(Artifact.open(compiled_once))[0]
    said = one.record
    assert (said.engine, said.version, said.precision) == (RTX, trt.__version__, "fp32")
    assert (said.provider, said.hardware, said.batch) == ("cuda", "sm86, sm89", BATCH)
    assert said.graph_sha256 == Artifact.open(compiled_once).graph_sha256
    assert list(said.files) == ["model.plan"]
    assert said.options == {"arch": "sm86,sm89", "batch": "1,4,8"}


def test_a_second_compilation_takes_the_place_of_the_first(artifact):
    before = list_compiled(Artifact.open(artifact))[0]
    again = compile_artifact(artifact, CompileOptions(engine=RTX, arch=("sm86", "sm89"), batch=BATCH))
    assert again.folder == before.folder
    assert list(again.record.files) == list(before.record.files)
    assert len(list((artifact / "engines").iterdir())) == 1


def test_an_opened_plan_gives_the_vectors_of_torch_and_gives_its_memory_back(artifact, stand_in_runtime, photos):
    checked = verify(artifact, engine=RTX)
    assert checked.parity.worst_cosine > 0.999999
    assert checked.provider == "cuda"
    with Embedder.open(artifact, engine=RTX) as embedder:
        about = embedder.describe()
        vectors = embedder.embed(photos)
    assert (about.engine, about.precision, about.batch_sizes) == (f"{RTX} {trt.__version__}", "fp32", (4, 2, 1))
    assert about.compiled.startswith("tensorrt-rtx-")
    with Embedder.open(artifact, engine="onnxruntime") as embedder:
        np.testing.assert_allclose(vectors, embedder.embed(photos), atol=1e-6)
    assert len(stand_in_runtime) == 2
    assert all(device.closed for device in stand_in_runtime)


def test_auto_takes_the_plan_that_fits_and_says_once_which_it_leaves(artifact, stand_in_runtime, gpu, caplog):
    with Embedder.open(artifact) as embedder:
        assert embedder.describe().engine.startswith(RTX)
    gpu.value = cuda.Gpu("NVIDIA A100", "sm80")
    with Embedder.open(artifact) as embedder:
        assert embedder.describe().engine.startswith("onnxruntime")
    with Embedder.open(artifact):
        (folder,) = artifact.glob("engines/*")
    reason = "which was compiled for sm86, sm89, this GPU is NVIDIA A100 (sm80)"
    assert caplog.messages == [f"onnxruntime is used instead of {folder}, {reason}"], "once, in one sentence"


def test_auto_leaves_out_what_has_not_the_provider_or_takes_no_threads(artifact, stand_in_runtime):
    for options in ({"provider": "cpu"}, {"threads": 1}):
        with Embedder.open(artifact, **options) as embedder:
            assert embedder.describe().engine.startswith("onnxruntime")


def test_pixels_and_batches_that_do_not_fit_are_refused(artifact, stand_in_runtime):
    with open_for(Artifact.open(artifact), RTX) as engine:
        assert engine.largest_batch == 8
        with pytest.raises(EngineError, match="a batch of 9: this plan runs 1 to 8 images at once"):
            engine.run(np.zeros((9, 64, 64, 3), np.uint8))
        with pytest.raises(EngineError, match=r"pixels are float32 .* expected uint8 \(B, 64, 64, 3\)"):
            engine.run(np.zeros((1, 64, 64, 3), np.float32))
    with pytest.raises(OptionError, match=r"batch_size 16: .* runs 8 images at most; .*--batch 1,16,16"):
        Embedder.open(artifact, engine=RTX, batch_size=16)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"provider": "cpu"}, UnknownNameError, "unknown provider of the engine 'tensorrt-rtx' 'cpu'; .*cuda"),
        ({"threads": 2}, OptionError, "--threads 2: the engine 'tensorrt-rtx' runs on the GPU"),
    ],
)
def test_options_of_other_engines_are_refused(artifact, gpu, options, error, message):
    with pytest.raises(error, match=message):
        engine_module(RTX).open_engine(
            artifact / "model.onnx", **{"provider": None, "threads": None, "compiled": None} | options
        )


@without_gpu
def test_without_a_driver_opening_says_so_and_never_touches_the_runtime(artifact, monkeypatch):
    monkeypatch.setattr(trt, "Runtime", lambda *_: pytest.fail("the runtime was touched"))
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU and a recent driver.*cudaErrorInsufficientDriver 35"):
        open_for(Artifact.open(artifact), RTX)


def test_without_a_driver_auto_says_in_a_sentence_what_runs_instead(artifact, monkeypatch, caplog):
    def probe(purpose, extra):
        raise EngineError(f"{purpose} needs an NVIDIA GPU")

    monkeypatch.setattr(cuda, "probe", probe)
    chosen = choose_engine(Artifact.open(artifact))
    (folder,) = artifact.glob("engines/*")
    reason = f"which does not run here: the engine '{RTX}' needs an NVIDIA GPU"
    assert caplog.messages == [f"{chosen} is used instead of {folder}, {reason}"]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (
            cuda.Gpu("NVIDIA A100", "sm80"),
            r"was compiled for sm86, sm89, this GPU is NVIDIA A100 \(sm80\);"
            r" run: mimexport compile .*toy --engine tensorrt-rtx --arch sm80$",
        ),
        (
            cuda.Gpu("NVIDIA H200", "sm90"),
            r"does not run on this GPU, NVIDIA H200 \(sm90\): .*compile on that GPU with --engine tens",
        ),
    ],
)
def test_a_plan_for_another_architecture_is_refused_with_the_line_that_mends_it(artifact, gpu, card, message):
    gpu.value = card
    with pytest.raises(EngineError, match=message):
        open_for(Artifact.open(artifact), RTX)


def test_without_a_plan_the_line_that_makes_one_is_given(toy_artifact, gpu):
    with pytest.raises(
        EngineError,
        match=r"holds no plan of tensorrt-rtx for NVIDIA L4 \(sm89\); run: mimexport compile .* --arch sm89",
    ):
        open_for(Artifact.open(toy_artifact), RTX)


def test_a_plan_of_another_version_or_graph_is_refused_with_the_line_that_mends_it(artifact, gpu):
    changed_record(artifact, version="1.2.0")
    remedy = "run: mimexport compile .* --engine tensorrt-rtx --batch 1,4,8 --arch sm86,sm89"
    with pytest.raises(EngineError, match=f"was compiled with tensorrt-rtx 1.2.0, but 1.7.* is installed; {remedy}"):
        open_for(Artifact.open(artifact), RTX)
    changed_record(artifact, version=trt.__version__, graph_sha256="0" * 64)
    with pytest.raises(EngineError, match=f"was compiled from another graph .*; {remedy}"):
        open_for(Artifact.open(artifact), RTX)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:99] + bytes([raw[99] ^ 1]) + raw[100:]])
def test_a_corrupt_plan_is_refused_by_its_digest(artifact, gpu, monkeypatch, damage):
    monkeypatch.setattr(trt, "Runtime", lambda *_: pytest.fail("the runtime was touched"))
    path = next(artifact.rglob("model.plan"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineError, match=r"model\.plan was changed or truncated .*run: mimexport compile"):
        open_for(Artifact.open(artifact), RTX)


@without_gpu
def test_a_plan_the_library_does_not_take_gives_its_first_cause(artifact, gpu):
    """The real runtime, which without a driver refuses every plan and logs why."""
    with pytest.raises(EngineError, match=r"cannot load .*model\.plan: .*cudaError 35"):
        open_for(Artifact.open(artifact), RTX)


@pytest.mark.parametrize("missing", ["tensorrt_rtx", "cuda.bindings.runtime"])
def test_a_missing_extra_gives_the_pip_line(artifact, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"the engine 'tensorrt-rtx' .*pip install 'mimexport\[tensorrt-rtx\]'"):
        open_for(Artifact.open(artifact), RTX)
    with Embedder.open(artifact) as embedder:  # auto takes what is installed
        assert embedder.describe().engine.startswith("onnxruntime")


@without_gpu
def test_plain_tensorrt_probes_the_driver_before_it_builds(toy_copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(EngineError, match="the engine 'tensorrt' needs an NVIDIA GPU and a recent driver"):
        compile_artifact(toy_copy, CompileOptions(engine="tensorrt"))
    assert not (toy_copy / "engines").exists()


@pytest.mark.parametrize(("compat", "hardware"), [(None, "NVIDIA L4 (sm89)"), ("same", "sm89"), ("ampere+", PORTABLE)])
def test_plain_tensorrt_records_the_gpu_it_built_on(toy_copy, monkeypatch, stand_in_runtime, compat, hardware):
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    compiled = compile_artifact(toy_copy, CompileOptions(engine="tensorrt", hardware_compat=compat))
    assert compiled.record.hardware == hardware
    assert compiled.record.batch == BatchProfile(least=1, best=8, most=32)


L4, L40, T4, H200, RTX50 = (
    cuda.Gpu("NVIDIA L4", "sm89"), cuda.Gpu("NVIDIA L40", "sm89"), cuda.Gpu("Tesla T4", "sm75"),
    cuda.Gpu("NVIDIA H200", "sm90"), cuda.Gpu("NVIDIA GeForce RTX 5090", "sm120"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("flavour", "hardware", "fits", "refuses"),
    [
        (TENSORRT, "NVIDIA L4 (sm89)", [L4], [L40, T4, H200]),
        (TENSORRT, "sm89", [L4, L40], [T4, H200, RTX50]),
        (TENSORRT, PORTABLE, [L4, H200, RTX50], [T4]),
        (TENSORRT_RTX, PORTABLE, [L4, L40, RTX50], [T4, H200]),
        (TENSORRT_RTX, "sm75, sm89", [L4, T4], [RTX50, H200]),
    ],
)
def test_where_a_plan_runs(flavour, hardware, fits, refuses):
    assert [misfit(flavour, hardware, card) for card in fits] == [None] * len(fits)
    for card in refuses:
        assert str(card) in misfit(flavour, hardware, card)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"architectures": ("sm90",)}, OptionError, "--arch sm90: .* compile on that GPU with --engine tensorrt"),
        ({"architectures": ("sm100",)}, OptionError, "--arch sm100: .*--engine tensorrt"),
        ({"architectures": ("sm88",)}, UnknownNameError, "unknown architecture 'sm88'; did you mean sm89"),
        ({"architectures": ("sm89", "sm89")}, OptionError, "names an architecture twice"),
        ({"architectures": ("sm75",)}, OptionError, "--arch sm75: Turing has no fp32 matrix product"),
        ({"architectures": ("sm75",), "precision": "bf16"}, OptionError, "Turing has no bf16 matrix product"),
        ({"workspace_gib": 0.0}, OptionError, r"--workspace 0\.0: expected more than 0"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_library_is_loaded(options, error, message):
    with pytest.raises(error, match=message):
        BuildPlan(**{"flavour": TENSORRT_RTX, "precision": "fp32", "batch": BATCH} | options).check()
    BuildPlan(flavour=TENSORRT_RTX, precision="fp16", batch=BATCH, architectures=("sm75", "sm89")).check()


PROGRAM = """
import sys
from mimruntime.engines.trt import cuda
if sys.argv[1]:
    cuda.probe = lambda purpose, extra: cuda.Gpu("NVIDIA test", sys.argv[1])
from mimruntime import cli
cli.run(cli.COMMANDS, sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("arch", "arguments", "message"),
    [
        pytest.param("", ["verify", "--engine", RTX], "needs an NVIDIA GPU and a recent driver", marks=without_gpu),
        ("sm80", ["verify", "--engine", RTX], "was compiled for sm86, sm89, this GPU is NVIDIA test (sm80)"),
        pytest.param("sm89", ["verify", "--engine", RTX], "cannot load", marks=without_gpu),
        ("", ["verify", "--engine", "tensorrt"], "pip install 'mimexport[tensorrt]'"),
        ("", ["compile", "--engine", RTX, "--arch", "sm90"], "compile on that GPU with --engine tensorrt"),
        ("", ["compile", "--engine", RTX, "--timing-cache", "x"], "--timing-cache is not an option of the engine"),
    ],
    ids=["no driver", "wrong architecture", "unloadable", "no extra", "no such architecture", "no such option"],
)
def test_the_program_answers_in_one_line_and_exits_with_1(compiled_once, arch, arguments, message):
    if arguments[2] == "tensorrt":
        try:
            import tensorrt  # noqa: F401
        except ModuleNotFoundError:
            pass
        else:
            pytest.skip("tensorrt is installed")
    command = [sys.executable, "-c", PROGRAM, arch, arguments[0], str(compiled_once), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
