"""A model repository that Triton's own protobufs parse, whose graph and steps give the embedder's vectors."""

from __future__ import annotations

import hashlib
import shutil
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import json_format, text_format
from host_gpu import plant
from tritonclient.grpc import model_config_pb2

from mimruntime import Embedder
from mimruntime.artifact import Artifact
from mimruntime.cli.export_triton import export_triton_command as export_triton
from mimruntime.engines.record import BatchProfile, EngineRecord, FileSeal, encode
from mimruntime.errors import EngineError, MimError, OptionError, OutputError
from mimruntime.triton import model as preprocessing
from mimruntime.triton import pbtxt
from mimruntime.triton.config import Options
from mimruntime.triton.export import export

TYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


def parsed(folder: Path):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def exported(artifact: Path, repository: Path, *arguments: str):
    done = CliRunner().invoke(export_triton, [str(artifact), str(repository), *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {path.name: path for path in map(Path, done.output.split())}


@pytest.fixture
def repository(toy_artifact: Path, tmp_path: Path) -> Path:
    exported(toy_artifact, tmp_path / "repo", "--ensemble", "--max-batch", "4", "--instances", "2")
    return tmp_path / "repo"


def test_the_configuration_says_batching_instances_warmup_and_versions(repository: Path, toy_artifact: Path) -> None:
    config = parsed(repository / "toy")
    assert (config.name, config.backend, config.max_batch_size) == ("toy", "onnxruntime", 4)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    (group,) = config.instance_group
    assert (group.count, group.kind) == (2, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    assert [sample.batch_size for sample in config.model_warmup] == [1, 4]
    assert list(config.model_warmup[0].inputs["pixels"].dims) == [64, 64, 3]
    assert config.version_policy.latest.num_versions == 1
    space = Artifact.open(toy_artifact).manifest.embedding_space
    assert config.parameters["embedding_space"].string_value == space
    assert sorted(path.name for path in repository.iterdir()) == [
        "toy", "toy-images", "toy-preprocess", "toy.inferenceservice.yaml",
    ]  # fmt: skip


def test_gpus_become_an_instance_group(toy_artifact: Path, tmp_path: Path) -> None:
    exported(toy_artifact, tmp_path, "--gpu", "0", "--gpu", "3")
    (group,) = parsed(tmp_path / "toy").instance_group
    assert (group.kind, list(group.gpus)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, [0, 3])
    service = yaml.safe_load((tmp_path / "toy.inferenceservice.yaml").read_text())
    assert service["spec"]["predictor"]["model"]["resources"]["limits"] == {"nvidia.com/gpu": "2"}


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_graph_runs_on_exactly_the_inputs_the_configuration_names(
    repository: Path, toy_artifact: Path, photos: list[Path], batch: int
) -> None:
    config = parsed(repository / "toy")
    session = onnxruntime.InferenceSession(repository / "toy" / "1" / config.default_model_filename)
    assert {port.name for port in session.get_inputs()} == {port.name for port in config.input}
    with Embedder.open(toy_artifact, engine="onnxruntime") as embedder:
        pixels = np.stack([embedder.prepare(photo) for photo in photos[:batch]])
        expected = embedder.embed(photos[:batch])
    (port,) = config.input
    assert pixels.shape[1:] == tuple(port.dims)
    assert pixels.dtype == TYPES[model_config_pb2.DataType.Name(port.data_type)]
    answers = session.run([port.name for port in config.output], {port.name: pixels})
    for answer, port in zip(answers, config.output, strict=True):
        assert answer.shape == (batch, *port.dims)
        assert answer.dtype == TYPES[model_config_pb2.DataType.Name(port.data_type)]
    assert np.abs(answers[0] - expected).max() < 1e-6


class FakeTriton(types.ModuleType):
    """What `triton_python_backend_utils` offers a model, over plain arrays."""

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.name, self.array = name, array

        def as_numpy(self) -> np.ndarray:
            return self.array

    class TritonError(str):
        pass

    class InferenceResponse:
        def __init__(self, output_tensors: list, error: object = None) -> None:
            self.output_tensors, self.error = output_tensors, error

    @staticmethod
    def get_input_tensor_by_name(request: dict, name: str) -> object:
        return request[name]


def test_the_ensemble_takes_files_and_gives_the_embedder_s_vectors(
    repository: Path, toy_artifact: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble, step = parsed(repository / "toy-images"), parsed(repository / "toy-preprocess")
    assert [part.model_name for part in ensemble.ensemble_scheduling.step] == ["toy-preprocess", "toy"]
    assert ensemble.platform == "ensemble"
    assert [port.name for port in ensemble.output] == [port.name for port in parsed(repository / "toy").output]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton("triton_python_backend_utils"))
    module = types.ModuleType("model")
    exec((repository / "toy-preprocess" / "1" / "model.py").read_text(), module.__dict__)
    model = module.TritonPythonModel()
    model.initialize({"model_config": json_format.MessageToJson(step, preserving_proto_field_name=True)})
    files = np.array([[photo.read_bytes()] for photo in photos], dtype=object)
    good = {"image": FakeTriton.Tensor("image", files)}
    bad = {"image": FakeTriton.Tensor("image", np.array([[b"<html>"]], dtype=object))}
    answers = model.execute([good, bad])
    model.finalize()
    (tensor,) = answers[0].output_tensors
    assert tensor.name == step.output[0].name == "pixels"
    assert "is not an image" in answers[1].error
    with Embedder.open(toy_artifact) as embedder:
        assert np.array_equal(embedder.run(tensor.array), embedder.embed(photos))


def test_the_step_decodes_on_a_gpu_where_it_is_told_to(
    toy_artifact: Path, photo: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, devices = plant(monkeypatch)
    export(Artifact.open(toy_artifact), tmp_path, Options(1, 8, (0,), "gpu"), ensemble=True)
    step = parsed(tmp_path / "toy-preprocess")
    assert [(group.count, list(group.gpus)) for group in step.instance_group] == [(1, [0])]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton("triton_python_backend_utils"))
    model = preprocessing.TritonPythonModel()
    model.initialize({"model_config": json_format.MessageToJson(step, preserving_proto_field_name=True)})
    files = [photo.read_bytes(), photos[0].read_bytes(), photo.read_bytes()[:5000]]  # a JPEG, a PNG, and none
    requests = [{"image": FakeTriton.Tensor("image", np.array([[file]], dtype=object))} for file in files]
    both = {"image": FakeTriton.Tensor("image", np.array([[file] for file in files[:2]], dtype=object))}
    answers = model.execute([*requests, both])
    model.finalize()
    assert devices[0].closed
    assert codec.decoded == [2]
    assert "truncated" in answers[2].error
    with Embedder.open(toy_artifact) as embedder:
        expected = np.stack([embedder.prepare(file) for file in files[:2]]).astype(int)
    for answer, rows in zip((answers[0], answers[1], answers[3]), (expected[:1], expected[1:], expected), strict=True):
        assert np.abs(answer.output_tensors[0].array - rows).max() <= 2


@pytest.mark.parametrize(("ensemble", "gpus"), [(False, (0,)), (True, ()), (True, (0, 1)), (True, (1,))])
def test_decoding_on_a_gpu_needs_an_ensemble_and_one_gpu(
    toy_artifact: Path, tmp_path: Path, ensemble: bool, gpus: tuple[int, ...]
) -> None:
    with pytest.raises(OptionError, match="add --ensemble --gpu 0"):
        export(Artifact.open(toy_artifact), tmp_path, Options(1, 8, gpus, "gpu"), ensemble=ensemble)


def test_every_tensor_of_the_ensemble_comes_from_its_input_or_an_earlier_step(repository: Path) -> None:
    def tensors(ports: Iterable[Any]) -> dict[str, tuple[int, list[int]]]:
        return {port.name: (port.data_type, list(port.dims)) for port in ports}

    ensemble = parsed(repository / "toy-images")
    known = tensors(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = parsed(repository / step.model_name)
        assert {name: known[source] for name, source in step.input_map.items()} == tensors(model.input)
        given = tensors(model.output)
        assert set(step.output_map) == set(given)
        known |= {step.output_map[name]: tensor for name, tensor in given.items()}
    assert {port.name: known[port.name] for port in ensemble.output} == tensors(ensemble.output)
    assert [port.name for port in ensemble.output] == ["embedding", "selection"]


def test_the_manifest_for_kserve_is_an_inference_service(repository: Path, toy_artifact: Path, tmp_path: Path) -> None:
    service = yaml.safe_load((repository / "toy.inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "triton"}, "v2")
    assert model["storageUri"] == "pvc://models/repo"
    exported(toy_artifact, tmp_path / "other", "--storage-uri", "s3://bucket/repo")
    service = yaml.safe_load((tmp_path / "other" / "toy.inferenceservice.yaml").read_text())
    assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://bucket/repo"


def test_a_model_that_is_there_is_replaced_by_force_only_and_others_stay(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, options = Artifact.open(toy_artifact), Options(instances=1, max_batch=2)
    (tmp_path / "other").mkdir()
    export(artifact, tmp_path, options)
    with pytest.raises(OutputError, match=r"toy exists; replace it with --force"):
        export(artifact, tmp_path, options)
    before = (tmp_path / "toy" / "config.pbtxt").read_text()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("mimruntime.triton.export.shutil.copyfile", fail)
        with pytest.raises(OutputError, match="No space left on device"):
            export(artifact, tmp_path, Options(instances=1, max_batch=16), force=True)
    assert (tmp_path / "toy" / "config.pbtxt").read_text() == before
    export(artifact, tmp_path, Options(instances=1, max_batch=16), force=True)
    assert parsed(tmp_path / "toy").max_batch_size == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "toy", "toy.inferenceservice.yaml"]


def test_the_old_model_comes_back_when_the_new_one_is_stopped_half_way(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, repository = Artifact.open(toy_artifact), tmp_path / "repo"
    export(artifact, repository, Options(1, 2))

    def stopped(*_: Path) -> bool:
        raise SystemExit(143)

    monkeypatch.setattr("mimruntime.writing.exchange", stopped)
    with pytest.raises(SystemExit):
        export(artifact, repository, Options(1, 16), force=True)
    assert parsed(repository / "toy").max_batch_size == 2
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_nothing_half_made_lies_in_the_repository(
    toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile, seen = shutil.copyfile, []

    def watching(source: Path, target: Path) -> None:
        seen.extend((tmp_path / "repo").iterdir())
        copyfile(source, target)

    monkeypatch.setattr("mimruntime.triton.export.shutil.copyfile", watching)
    export(Artifact.open(toy_artifact), tmp_path / "repo", Options(1, 2), ensemble=True)
    assert seen == []


def test_an_ensemble_is_not_left_on_top_of_another_graph(toy_artifact: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(toy_artifact)
    export(artifact, tmp_path, Options(1, 2), ensemble=True)
    with pytest.raises(OutputError, match="toy-images was written for an earlier model; add --ensemble, or remove it"):
        export(artifact, tmp_path, Options(1, 16), force=True)
    assert parsed(tmp_path / "toy").max_batch_size == 2
    export(artifact, tmp_path, Options(1, 16), ensemble=True, force=True)
    assert [parsed(tmp_path / name).max_batch_size for name in ("toy", "toy-images")] == [16, 16]


def planted_plan(artifact: Path, **changes: Any) -> Path:
    """Put bytes in the place of a plan, sealed as `mimexport compile` seals one."""
    values = {
        "engine": "tensorrt", "version": "1", "precision": "fp16", "provider": "cuda", "hardware": "sm90",
        "graph_sha256": Artifact.open(artifact).graph_sha256, "batch": BatchProfile(least=1, best=8, most=16),
        "files": {"model.plan": FileSeal(sha256=hashlib.sha256(b"plan").hexdigest(), size=4)},
    }  # fmt: skip
    record = EngineRecord(**values | changes)
    folder = artifact / "engines" / record.key
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"plan")
    (folder / "engine.json").write_bytes(encode(record))
    return folder


def test_a_tensorrt_plan_is_served_where_there_is_one(toy_copy: Path, tmp_path: Path) -> None:
    planted_plan(toy_copy)
    exported(toy_copy, tmp_path / "repo", "--engine", "tensorrt", "--max-batch", "16", "--gpu", "0")
    config = parsed(tmp_path / "repo" / "toy")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (tmp_path / "repo" / "toy" / "1" / "model.plan").read_bytes() == b"plan"


def test_a_plan_is_warmed_up_with_batches_it_runs(toy_copy: Path, tmp_path: Path) -> None:
    planted_plan(toy_copy, batch=BatchProfile(least=4, best=8, most=16))
    exported(toy_copy, tmp_path / "repo", "--engine", "tensorrt", "--max-batch", "16", "--gpu", "0")
    assert [sample.batch_size for sample in parsed(tmp_path / "repo" / "toy").model_warmup] == [4, 16]


def test_bf16_on_a_cpu_is_refused_and_on_a_gpu_is_not(toy_artifact: Path, tmp_path: Path) -> None:
    artifact = Artifact.open(toy_artifact)
    graph = msgspec.structs.replace(artifact.manifest.graph, precision="bf16")
    bf16 = Artifact(artifact.path, msgspec.structs.replace(artifact.manifest, graph=graph))
    with pytest.raises(OptionError, match="onnxruntime has no bf16 kernels on a CPU; add --gpu"):
        export(bf16, tmp_path / "repo", Options(1, 4))
    assert not (tmp_path / "repo").exists()
    export(bf16, tmp_path / "repo", Options(1, 4, gpus=(0,)))


def test_a_plan_on_a_cpu_is_refused(toy_copy: Path, tmp_path: Path) -> None:
    planted_plan(toy_copy)
    with pytest.raises(OptionError, match="does not run on a CPU; add --gpu 0"):
        export(Artifact.open(toy_copy), tmp_path / "repo", Options(1, 8), engine="tensorrt")
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("engine", "plans", "max_batch", "kind", "says"),
    [
        ("tensorrt", [], 8, OptionError, "contains no TensorRT plan; run: mimexport compile"),
        ("tensorrt", [{}], 32, OptionError, "compiled for batches from 1 to 16"),
        (
            "tensorrt",
            [{"batch": BatchProfile(least=4, best=8, most=16)}],
            2,
            OptionError,
            "compiled for batches from 4 to",
        ),
        ("tensorrt", [{"graph_sha256": "0"}], 8, EngineError, "from another graph; run: mimexport compile"),
        (
            "tensorrt",
            [{"files": {"model.plan": FileSeal(sha256="0", size=4)}}],
            8,
            EngineError,
            "was changed or truncated",
        ),
        ("tensorrt", [{}, {"hardware": "sm80"}], 8, OptionError, r"several TensorRT plans: .*sm80"),
        ("openvino", [], 8, MimError, "unknown engine of Triton 'openvino'"),
    ],
)
def test_what_cannot_be_served_is_said(
    toy_copy: Path, tmp_path: Path, engine: str, plans: list, max_batch: int, kind: type, says: str
) -> None:
    for plan in plans:
        planted_plan(toy_copy, **plan)
    with pytest.raises(kind, match=says):
        export(Artifact.open(toy_copy), tmp_path / "repo", Options(1, max_batch, gpus=(0,)), engine=engine)
    assert not (tmp_path / "repo").exists()


def test_a_damaged_record_is_one_line_and_what_was_put_aside_is_no_plan(toy_copy: Path, tmp_path: Path) -> None:
    folder = planted_plan(toy_copy)
    shutil.copytree(folder, folder.with_name(f".{folder.name}.old"))
    options = Options(1, 8, gpus=(0,))
    export(Artifact.open(toy_copy), tmp_path / "repo", options, engine="tensorrt")
    record = folder / "engine.json"
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"engine\.json is .*; delete .*, then run: mimexport compile"):
        export(Artifact.open(toy_copy), tmp_path / "repo", options, engine="tensorrt", force=True)


def test_text_is_escaped_as_protobuf_reads_it() -> None:
    name = 'a "quoted" \\ name\nç日本\t'
    message = text_format.Parse(pbtxt.text({"name": name}), model_config_pb2.ModelConfig())
    assert message.name == name
