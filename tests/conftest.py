"""Real photographs from installed packages, and a toy artifact that needs no torch."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untraced import untraced

_PHOTOS = {
    "skimage": (
        "data",
        ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
_SIZE, _GRID, _DIM = 64, 8, 16

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Export without coverage's eyes, where a collected file has imported torch: what this project adds also runs outside.

    And leave what was imported out of every collection of garbage: an export makes hundreds of them.
    """
    if torch := sys.modules.get("torch"):
        torch.onnx.export = untraced(torch.onnx.export)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quick_tuning() -> Iterator[None]:
    """Run each setting twice, and not for a third of a second: that what is measured is right, no test asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mimruntime.engines.tuning._LEAST_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Eight colour photographs, JPEG and PNG, 300 to 1411 px."""
    found = []
    for package, (folder, names) in _PHOTOS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} ships the photographs and is not installed"
        assert spec.origin is not None
        found += [Path(spec.origin).parent / folder / name for name in names]
    return found


@pytest.fixture(scope="session")
def photo(photos: list[Path]) -> Path:
    """A JPEG of a rocket, 640x427."""
    return next(path for path in photos if path.name == "rocket.jpg")


@pytest.fixture(scope="module")
def small_alias() -> Iterator[str]:
    """The name of a backbone of two blocks, 48 wide, for 32 px in patches of 8; an alias as long as a module's tests run."""
    from mimexport.aliases import ALIASES, Alias

    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALIASES, "small", Alias("vit_tiny_patch16_224", 32, 8, 16, 48, "mit", kwargs=kwargs))
        yield "small"


@pytest.fixture(scope="session")
def calibration_crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a hundred crops of photographs, others than `open_dataset("crops")` draws without a seed."""
    from mimeval.datasets import open_dataset

    folder = tmp_path_factory.mktemp("calibration")
    crops = open_dataset("crops", cache=tmp_path_factory.mktemp("cache"), limit=100, seed=1).test
    for row in range(len(crops)):
        (folder / f"{row:03}.png").write_bytes(crops.load(row))
    return folder


@pytest.fixture(scope="session")
def toy_artifact(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """A complete artifact, uint8 (B, 64, 64, 3) to a vector of 16 and weights of 8x8 patches. Do not change it."""
    folder = tmp_path_factory.mktemp("artifacts") / "toy"
    folder.mkdir()
    _write_toy_artifact(folder, photos)
    return folder


@pytest.fixture
def toy_copy(toy_artifact: Path, tmp_path: Path) -> Path:
    """A copy of the toy artifact that a test may damage."""
    return Path(shutil.copytree(toy_artifact, tmp_path / "toy"))


@pytest.fixture(scope="session")
def toy_whitened(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy artifact, whose manifest says that its vectors are whitened; in a space of its own. Do not change it."""
    import msgspec

    from mimruntime.artifact import Artifact, seal

    folder = Path(shutil.copytree(toy_artifact, tmp_path_factory.mktemp("whitened") / "toy"))
    found = Artifact.open(folder).manifest
    embedding = msgspec.structs.replace(found.embedding, whitening="16 dimensions")
    (folder / "manifest.json").unlink()
    seal(folder, msgspec.structs.replace(found, embedding=embedding, embedding_space="b1eac4ed" * 2, files={}))
    return folder


@pytest.fixture(scope="session")
def toy_without_selection(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """The toy artifact without the output 'selection'."""
    folder = tmp_path_factory.mktemp("artifacts") / "toy-plain"
    folder.mkdir()
    _write_toy_artifact(folder, photos, selection=False)
    return folder


def _write_toy_artifact(folder: Path, photos: list[Path], *, selection: bool = True) -> None:
    from mimruntime import artifact, engines, parity, storage

    weights = np.random.default_rng(0).standard_normal((_GRID * _GRID * 3, _DIM)).astype(np.float32) / 8
    _save_toy_graph(folder / "model.onnx", weights, selection)
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((_SIZE, _SIZE))) for path in photos])
    embeddings = _toy_embeddings(images, weights)
    np.savez(folder / artifact.REFERENCE, images=images, embedding=embeddings)
    (folder / "README.md").write_text("# toy\n")
    with engines.open_engine("onnxruntime", folder / "model.onnx") as engine:
        measured = parity.measure(
            lambda pixels: engine.run(pixels)["embedding"], images, embeddings, engine="onnxruntime"
        )
    artifact.seal(folder, _toy_manifest(measured, storage.measure_statistics(embeddings), selection))


def _toy_embeddings(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what the toy graph computes: tanh of linear patches, weighted by the softmax of their norm, L2."""
    edge = _SIZE // _GRID
    patches = (images.astype(np.float32) / 255).reshape(-1, _GRID, edge, _GRID, edge, 3).transpose(0, 1, 3, 2, 4, 5)
    tokens = np.tanh(patches.reshape(len(images), _GRID * _GRID, -1) @ weights)
    scores = np.exp(np.linalg.norm(tokens, axis=2, keepdims=True))
    pooled = (tokens * scores / scores.sum(axis=1, keepdims=True)).sum(axis=1)
    return (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)


def _save_toy_graph(path: Path, weights: np.ndarray, selection: bool) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    edge, patches = _SIZE // _GRID, _GRID * _GRID
    constants = {
        "weights": weights,
        "white": np.float32(255),
        "split": np.array([0, _GRID, edge, _GRID, edge, 3]),
        "rows": np.array([0, patches, edge * edge * 3]),
        "grid": np.array([0, _GRID, _GRID]),
        "one": np.array([1]),
        "two": np.array([2]),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "white"], ["unit"]),
        helper.make_node("Reshape", ["unit", "split"], ["blocks"]),
        helper.make_node("Transpose", ["blocks"], ["ordered"], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Reshape", ["ordered", "rows"], ["patches"]),
        helper.make_node("MatMul", ["patches", "weights"], ["linear"]),
        helper.make_node("Tanh", ["linear"], ["tokens"]),
        helper.make_node("ReduceL2", ["tokens", "two"], ["norms"], keepdims=1),
        helper.make_node("Softmax", ["norms"], ["attention"], axis=1),
        helper.make_node("Mul", ["tokens", "attention"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["pooled"], keepdims=0),
        helper.make_node("ReduceL2", ["pooled", "one"], ["length"], keepdims=1),
        helper.make_node("Div", ["pooled", "length"], ["embedding"]),
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", _DIM])]
    if selection:
        nodes.append(helper.make_node("Reshape", ["attention", "grid"], ["selection"]))
        outputs.append(helper.make_tensor_value_info("selection", TensorProto.FLOAT, ["B", _GRID, _GRID]))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", _SIZE, _SIZE, 3])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _toy_manifest(measured: object, statistics: object, selection: bool) -> object:
    from mimruntime import manifest

    backbone = manifest.Backbone(
        model="toy",
        timm_name="toy",
        source="random",
        origin="seed 0",
        weights_sha256="0" * 64,
        license="none",
        patch=_SIZE // _GRID,
        grid=(_GRID, _GRID),
        prefix_tokens=0,
        dim=_DIM,
    )
    aggregator = manifest.Aggregator(name="attn-mean", params={}, token_norm="raw")
    embedding = manifest.Embedding(dim=_DIM)
    preprocess = manifest.Preprocess(
        size=_SIZE, resize=73, mode="shortest", interpolation="bicubic", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    outputs = [manifest.Port(name="embedding", dtype="float32", shape=("B", _DIM))]
    if selection:
        outputs.append(manifest.Port(name="selection", dtype="float32", shape=("B", _GRID, _GRID)))
    return manifest.Manifest(
        name="toy",
        created="2026-01-01T00:00:00Z",
        embedding_space=manifest.embedding_space(backbone, aggregator, embedding, preprocess),
        backbone=backbone,
        aggregator=aggregator,
        embedding=embedding,
        preprocess=preprocess,
        graph=manifest.Graph(
            file="model.onnx",
            opset=18,
            precision="fp32",
            last_block="full",
            inputs=(manifest.Port(name="pixels", dtype="uint8", shape=("B", _SIZE, _SIZE, 3)),),
            outputs=tuple(outputs),
        ),
        parity=measured,
        statistics=statistics,
        versions={"onnx": "1"},
        files={},
    )
