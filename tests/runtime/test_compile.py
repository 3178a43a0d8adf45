"""What is compiled is found, is what it was compiled from, and is refused in one line when it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import openvino
import pytest

from mimruntime.artifact import Artifact
from mimruntime.embedder import Embedder
from mimruntime.engines import auto, base, open_engine, record, tuning
from mimruntime.engines import onnxruntime as ort_module
from mimruntime.engines import openvino as ov_module
from mimruntime.engines import openvino_model as ov_model
from mimruntime.engines.compilation import compile_artifact
from mimruntime.engines.compiled import choose_compiled, describe_use, list_compiled
from mimruntime.engines.opening import open_for
from mimruntime.engines.options import CompileOptions, parse_batch
from mimruntime.errors import EngineError, MissingExtraError, OptionError, OutputError, ParityError, UnknownNameError
from mimruntime.reference import check_engine, load_reference
from mimruntime.verification import verify

pytestmark = pytest.mark.cpu

ENGINES = ("onnxruntime", "openvino")


def compiled_with(folder: Path, engine: str, **options: object) -> Path:
    given = {"batch": parse_batch("1,4,4")} | options
    return compile_artifact(folder, CompileOptions(engine=engine, **given)).folder


def rewrite(folder: Path, **changes: object) -> Path:
    """Change a record as another program would have written it: sealed, in the folder its key asks for."""
    path = folder / record.FILE
    changed = msgspec.structs.replace(record.decode(path.read_bytes()), **changes)
    path.write_bytes(record.encode(changed))
    return folder.rename(folder.parent / changed.key)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_compiled_engine_is_found_and_gives_the_same_vectors(toy_copy: Path, photos: list[Path], engine: str) -> None:
    with Embedder.open(toy_copy, engine=engine) as embedder:
        before = embedder.embed(photos)
        assert embedder.describe().compiled is None
    folder = compiled_with(toy_copy, engine)
    assert folder.parent == toy_copy / "engines"
    with Embedder.open(toy_copy, engine=engine) as embedder:
        about = embedder.describe()
        assert (about.compiled, about.batch_sizes[0]) == (folder.name, 4)
        assert np.abs(embedder.embed(photos) - before).max() < 1e-5
        assert embedder.select(photos).shape == (8, 8, 8)


def test_compiling_does_not_break_the_seal_and_leaves_nothing_beside(toy_copy: Path) -> None:
    compiled_with(toy_copy, "openvino")
    compiled_with(toy_copy, "openvino")
    assert len(list_compiled(Artifact.open(toy_copy))) == 1
    assert len(list((toy_copy / "engines").iterdir())) == 1


def test_what_is_compiled_again_takes_the_place_of_another_version_but_not_of_other_options(toy_copy: Path) -> None:
    kept = compiled_with(toy_copy, "onnxruntime", threads=1)
    rewrite(compiled_with(toy_copy, "onnxruntime"), version="1.0")
    fresh = compiled_with(toy_copy, "onnxruntime")
    assert {one.folder for one in list_compiled(Artifact.open(toy_copy))} == {kept, fresh}


def test_of_several_that_fit_the_one_that_is_taken_is_said(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier, later = (compiled_with(toy_copy, "onnxruntime", **options) for options in ({"threads": 1}, {}))
    artifact = Artifact.open(toy_copy)

    def said() -> dict[Path, str]:
        return {one.folder: describe_use(artifact, ort_module, one.record) for one in list_compiled(artifact)}

    assert said()[later] == "fits this machine"
    assert said()[earlier] == "fits this machine, but another one compiled later is used"
    monkeypatch.setattr(ort_module, "other_hardware", lambda record: None)
    gpu = rewrite(earlier, provider="cuda")
    assert choose_compiled(artifact, ort_module).folder == gpu  # whenever it was compiled
    assert choose_compiled(artifact, ort_module, "cpu").folder == later


def test_a_record_for_a_gpu_fits_that_gpu_alone(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_module, "gpu_name", lambda: "NVIDIA L4")
    cuda = {"provider": "cuda", "hardware": ort_module._hardware("cuda")}
    rewrite(compiled_with(toy_copy, "onnxruntime"), **cuda)
    record_of_gpu = list_compiled(Artifact.open(toy_copy))[0].record
    assert ort_module.other_hardware(record_of_gpu) is None
    monkeypatch.setattr(ort_module, "gpu_name", lambda: "no GPU")
    assert "NVIDIA L4; this machine has" in (ort_module.other_hardware(record_of_gpu) or "")


def test_a_library_that_does_not_load_is_said_where_engines_are_listed(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_with(toy_copy, "openvino")
    monkeypatch.setattr(ov_module, "library_version", lambda: (_ for _ in ()).throw(EngineError("does not load")))
    artifact = Artifact.open(toy_copy)
    assert "does not load" in describe_use(artifact, ov_module, list_compiled(artifact)[0].record)


def test_a_failed_compilation_leaves_nothing(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov_module.OpenVinoEngine, "export", lambda *_: (_ for _ in ()).throw(EngineError("no room")))
    with pytest.raises(EngineError, match="no room"):
        compiled_with(toy_copy, "openvino")
    assert not (toy_copy / "engines").exists()


def test_a_compilation_that_gives_other_vectors_is_not_kept(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ov_module.OpenVinoEngine.run
    monkeypatch.setattr(
        ov_module.OpenVinoEngine,
        "run",
        lambda self, pixels: {n: a[:, ::-1].copy() for n, a in run(self, pixels).items()},
    )
    with pytest.raises(ParityError, match="openvino: embeddings differ from the reference"):
        compiled_with(toy_copy, "openvino")
    assert not (toy_copy / "engines").exists()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.0"}, "was compiled with {engine} 1.0, but"),
        ({"graph_sha256": "0" * 64}, "another graph"),
    ],
)
def test_a_stale_record_is_refused_with_the_line_that_mends_it(
    toy_copy: Path, engine: str, changes: dict[str, str], reason: str
) -> None:
    rewrite(compiled_with(toy_copy, engine, threads=1), **changes)
    with pytest.raises(EngineError) as caught:
        open_for(Artifact.open(toy_copy), engine)
    assert reason.format(engine=engine) in str(caught.value)
    assert f"run: mimexport compile {toy_copy} --engine {engine} --batch 1,4,4 --threads 1" in str(caught.value)
    with pytest.raises(EngineError, match="mimexport compile"):
        open_for(Artifact.open(toy_copy), "auto")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_compiled_for_another_machine_is_passed_over(toy_copy: Path, engine: str) -> None:
    rewrite(compiled_with(toy_copy, engine), hardware="riscv64 vector, 512 CPUs")
    with open_for(Artifact.open(toy_copy), engine) as opened:
        assert opened.compiled is None


def test_a_changed_cut_or_missing_file_is_refused(toy_copy: Path) -> None:
    blob = compiled_with(toy_copy, "openvino") / "model.blob"
    raw = blob.read_bytes()
    for damaged in (raw[:-1], raw[:100] + bytes([raw[100] ^ 1]) + raw[101:]):
        blob.write_bytes(damaged)
        with pytest.raises(EngineError, match=r"model\.blob was changed or truncated .*mimexport compile"):
            open_for(Artifact.open(toy_copy), "openvino")
    blob.unlink()
    with pytest.raises(EngineError, match=r"model\.blob cannot be read"):
        open_for(Artifact.open(toy_copy), "openvino")


def test_a_damaged_or_moved_record_is_refused(toy_copy: Path) -> None:
    folder = compiled_with(toy_copy, "onnxruntime")
    path = folder / record.FILE
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"fp32"', b'"fp16"'))
    with pytest.raises(EngineError, match=r"engine\.json was changed after it was written"):
        open_for(Artifact.open(toy_copy), "onnxruntime")
    path.write_bytes(raw)
    folder.rename(folder.parent / "onnxruntime-000000000000")
    with pytest.raises(EngineError, match=r"contains the engine onnxruntime-.*; delete"):
        open_for(Artifact.open(toy_copy), "onnxruntime")


def test_auto_takes_what_was_measured_fastest_here(toy_copy: Path) -> None:
    for engine in ENGINES:
        compiled_with(toy_copy, engine)
    for fastest in ENGINES:
        for one in list_compiled(Artifact.open(toy_copy)):
            rate = 200.0 if one.record.engine == fastest else 100.0
            rewrite(one.folder, tuned=msgspec.structs.replace(one.record.tuned, images_per_second=rate))
        with open_for(Artifact.open(toy_copy), "auto") as opened:
            assert opened.name == fastest


def test_an_engine_that_cannot_be_put_in_place_leaves_the_old_one(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = compiled_with(toy_copy, "onnxruntime")

    def fail(*_: Path) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mimruntime.writing.exchange", fail)
    with pytest.raises(OutputError, match="No space left"):
        compiled_with(toy_copy, "onnxruntime")
    monkeypatch.undo()
    assert [one.folder for one in list_compiled(Artifact.open(toy_copy))] == [folder]


def test_auto_takes_an_engine_that_has_the_provider_asked_for(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_with(toy_copy, "openvino")
    monkeypatch.setattr(ort_module._library(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="provider 'cuda' is not part of onnxruntime"):
        open_for(Artifact.open(toy_copy), "auto", provider="cuda")


def test_auto_is_onnxruntime_where_nothing_is_compiled_and_openvino_for_a_bf16_graph(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Artifact.open(toy_copy)
    assert auto.choose_engine(artifact) == "onnxruntime"
    graph = msgspec.structs.replace(artifact.manifest.graph, precision="bf16")
    in_bf16 = Artifact(artifact.path, msgspec.structs.replace(artifact.manifest, graph=graph))
    assert auto.choose_engine(in_bf16) == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mimexport\[openvino\]'"):
        open_for(in_bf16, "auto")


def test_auto_says_that_what_it_takes_was_compiled_in_another_precision(
    toy_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = rewrite(compiled_with(toy_copy, "openvino"), precision="bf16", options={"precision": "bf16"})
    assert auto.choose_engine(Artifact.open(toy_copy)) == "openvino"
    assert f"{folder} computes in bf16, as requested with `compile --precision`; the graph is fp32" in caplog.text


def test_what_was_compiled_in_bf16_unasked_is_refused_with_the_line_that_mends_it(toy_copy: Path) -> None:
    rewrite(compiled_with(toy_copy, "openvino"), precision="bf16")
    for engine in ("openvino", "auto"):
        with pytest.raises(EngineError, match=r"without --precision bf16; the graph is fp32; run: mimexport compile"):
            open_for(Artifact.open(toy_copy), engine)


def test_an_option_of_another_engine_is_refused(toy_copy: Path) -> None:
    with pytest.raises(OptionError, match="--arch is not an option of the engine 'openvino'; its options are --batch"):
        compile_artifact(toy_copy, CompileOptions(engine="openvino", arch=("sm86",)))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_latency_of_one_image_and_a_batch_of_more_exclude_each_other(toy_copy: Path, engine: str) -> None:
    with pytest.raises(OptionError, match="--hint latency tunes for one image at a time, but --batch has best 8"):
        compile_artifact(toy_copy, CompileOptions(engine=engine, hint="latency", batch=parse_batch("1,8,8")))


def test_a_hint_is_for_a_cpu(toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_module, "_check_available", lambda *_: None)
    with pytest.raises(OptionError, match="--hint latency is for a CPU; with --provider cuda give --batch"):
        compile_artifact(toy_copy, CompileOptions(engine="onnxruntime", provider="cuda", hint="latency"))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_streams_that_were_measured_run(toy_copy: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = record.Trial(batch=4, threads=2, streams=2, images_per_second=100.0)
    monkeypatch.setattr(
        ort_module if engine == "onnxruntime" else ov_module, "tune", lambda *_, **__: (trial, (trial,))
    )
    compile_artifact(toy_copy, CompileOptions(engine=engine))
    artifact = Artifact.open(toy_copy)
    images, _ = load_reference(artifact)
    with open_for(artifact, engine) as opened, open_engine("onnxruntime", artifact.graph) as reference:
        assert (opened.threads, opened.streams, opened.best_batch) == (2, 2, 4)
        for batch in (1, 2, 3, 8):
            ours, theirs = opened.run(images[:batch]), reference.run(images[:batch])
            for name in (base.EMBEDDING, base.SELECTION):
                assert np.abs(ours[name] - theirs[name]).max() < 1e-5
    with open_for(artifact, engine, threads=1) as opened:
        assert (opened.threads, opened.streams) == (1, 1)


@pytest.mark.parametrize(("threads", "streams", "own"), [(8, 1, 8), (8, 2, 7), (8, 8, 1), (2, 2, 1)])
def test_streams_share_the_threads_that_they_do_not_bring(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch, threads: int, streams: int, own: int
) -> None:
    asked = []
    session = ort_module._session
    monkeypatch.setattr(ort_module, "_session", lambda *given: asked.append(given[3]) or session(*given))
    graph = Artifact.open(toy_copy).graph
    with ort_module.open_setting(graph, base.Setting(threads, streams), CompileOptions(engine="onnxruntime")):
        assert asked == [own]


def test_auto_is_no_engine_to_compile_for(toy_copy: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown engine 'auto'; known: onnxruntime"):
        compile_artifact(toy_copy, CompileOptions(engine="auto"))


@pytest.mark.parametrize("text", ["8", "1,2", "a,b,c", "4,2,8", "0,1,2"])
def test_a_batch_profile_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=f"--batch {text}: expected"):
        parse_batch(text)


def test_more_images_than_a_plan_runs_are_refused_with_the_line(toy_artifact: Path) -> None:
    artifact = Artifact.open(toy_artifact)
    with open_engine("onnxruntime", artifact.graph) as engine:
        engine.largest_batch = 4
        with pytest.raises(OptionError, match=r"batch_size 16: .* 4 images at most; .*--batch 1,16,16"):
            Embedder(artifact, engine, batch_size=16)


class TestOpenVino:
    def test_a_graph_in_fp32_is_computed_in_fp32_whatever_the_cpu_multiplies(
        self, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hints = []
        config = ov_model._config

        def seen(setting: base.Setting, precision: str) -> dict[str, object]:
            hints.append(precision)
            return config(setting, precision)

        monkeypatch.setattr(ov_model, "_config", seen)
        monkeypatch.setattr(ov_model, "_capabilities", lambda core: {"fp32", "bf16", "fp16"})
        with open_for(Artifact.open(toy_copy), "openvino") as engine:
            assert engine.precision == "fp32"
        assert record.decode((compiled_with(toy_copy, "openvino") / record.FILE).read_bytes()).precision == "fp32"
        with open_for(Artifact.open(toy_copy), "openvino") as engine:
            assert engine.precision == "fp32"
        assert set(hints) == {"fp32"}

    def test_bf16_that_was_asked_for_is_measured_recorded_and_said(self, toy_copy: Path) -> None:
        if "bf16" not in ov_model._capabilities(openvino.Core()):
            pytest.skip("this CPU does not multiply bf16")
        artifact = Artifact.open(toy_copy)
        said = record.decode((compiled_with(toy_copy, "openvino", precision="bf16") / record.FILE).read_bytes())
        assert (said.precision, said.options["precision"]) == ("bf16", "bf16")
        for threads in (None, 1):
            with open_for(artifact, "openvino", threads=threads) as engine:
                assert engine.precision == "bf16"
                assert 0.98 < check_engine(artifact, engine).worst_cosine < 0.9999999
        assert verify(toy_copy).precision == "bf16"
        with Embedder.open(toy_copy) as embedder:
            assert embedder.describe().precision == "bf16"

    def test_bf16_on_a_cpu_without_it_is_refused_not_dropped(
        self, toy_copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MIMEXPORT_CPU", "plain")
        with pytest.raises(EngineError, match=r"cannot compute in bf16 on this CPU .*leave --precision out"):
            compiled_with(toy_copy, "openvino", precision="bf16")

    def test_a_hint_that_was_dropped_is_seen(self, toy_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ov_model, "_capabilities", lambda core: {"fp32", "bf16"})
        monkeypatch.setitem(ov_model._HINTS, "bf16", "f32")  # as the library does where it cannot follow
        with pytest.raises(EngineError, match="computes in fp32 although bf16 was requested"):
            compiled_with(toy_copy, "openvino", precision="bf16")

    def test_what_no_graph_is_gets_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(b"not a graph")
        for path in (tmp_path / "model.onnx", tmp_path / "gone.onnx"):
            with pytest.raises(EngineError) as caught:
                open_engine("openvino", path)
            assert "\n" not in str(caught.value)

    def test_pixels_of_another_shape_are_refused(self, toy_artifact: Path) -> None:
        with (
            open_engine("openvino", toy_artifact / "model.onnx") as engine,
            pytest.raises(EngineError, match=r"expected uint8 \(B, 64, 64, 3\)"),
        ):
            engine.run(np.zeros((1, 8, 8, 3), np.uint8))

    def test_a_missing_library_gives_the_pip_line(self, toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'mimexport\[openvino\]'"):
            open_engine("openvino", toy_artifact / "model.onnx")


def test_the_smallest_batch_close_to_the_best_is_taken() -> None:
    trials = [record.Trial(batch=b, threads=2, streams=1, images_per_second=r) for b, r in ((1, 90), (4, 99), (8, 100))]
    assert tuning.best_of(trials).batch == 4


def test_few_streams_and_many_are_tried_and_one_thread_for_every_two_cpus() -> None:
    assert [(one.threads, one.streams) for one in tuning.stream_settings(2)] == [(2, 1), (2, 2)]
    assert [(one.threads, one.streams) for one in tuning.stream_settings(16)] == [
        (16, 1), (16, 2), (16, 4), (16, 8), (16, 16), (8, 1), (8, 8),
    ]  # fmt: skip


class Timed(base.Engine):
    """Takes 0.25 s and 0.0625 s an image for every run, on the clock that it is given."""

    name, provider, version, outputs, pixel_shape = "timed", "cpu", "1", (base.EMBEDDING,), (64, 64, 3)

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.clock[0] += 0.25 + len(pixels) / 16
        return {}

    def _close(self) -> None:
        pass


def test_the_batch_of_most_images_a_second_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    best, trials = tuning.tune(lambda _: Timed(clock), [base.Setting(2)], pixels, lambda *_: None, batches=(1, 4, 12))
    assert {trial.batch: trial.images_per_second for trial in trials} == {1: 3.2, 4: 8.0, 12: 12.0}
    assert best.batch == 12


def test_many_streams_are_measured_with_one_and_two_images_each(toy_artifact: Path) -> None:
    opened: list[base.Setting] = []

    def open_with(setting: base.Setting) -> base.Engine:
        opened.append(setting)
        return open_engine("onnxruntime", toy_artifact / "model.onnx", threads=1)

    images, _ = load_reference(Artifact.open(toy_artifact))
    _, trials = tuning.tune(open_with, [base.Setting(24, 24)], images, lambda *_: None)
    assert [trial.batch for trial in trials] == [24, 48]
    _, trials = tuning.tune(open_with, tuning.stream_settings(2), images, lambda *_: None, batches=[3])
    assert [(trial.streams, trial.batch) for trial in trials] == [(1, 3)]
    assert base.Setting(2, 2) not in opened


def test_every_engine_module_has_the_same_names() -> None:
    for module in (ort_module, ov_module):
        for name in (
            "NAME",
            "OPTIONS",
            "library_version",
            "other_hardware",
            "open_engine",
            "check_options",
            "compile_engine",
        ):
            assert hasattr(module, name)


def test_a_product_after_a_reduction_is_right_at_every_batch(tmp_path: Path) -> None:
    """OpenVINO 2026.4 fuses the two, and is wrong for every batch but 1, unless it is kept from it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.random(64, dtype=np.float32)
    constants = {"rows": np.array([0, 64, 3]), "two": np.float32(2), "axis": np.array([2]), "weights": weights}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "rows"], ["tokens"]),
        helper.make_node("Pow", ["tokens", "two"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "axis"], ["energy"], keepdims=0),
        helper.make_node("Mul", ["energy", "weights"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "score",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", 8, 8, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 64])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    pixels = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    expected = np.square(pixels.reshape(4, 64, 3).astype(np.float32)).sum(2) * weights
    with ov_module._open_graph(tmp_path / "m.onnx", base.Setting(2), "fp32") as engine:
        for batch in (1, 2, 4):
            assert np.allclose(engine.run(pixels[:batch])["embedding"], expected[:batch], rtol=1e-5)
