"""Peers run the very weights of an artifact, tuned as the engines are, and `bench` measures them from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from catalogue import built
from click.testing import CliRunner

from mimexport import peers
from mimexport.cli import _open_peers
from mimruntime.artifact import Artifact
from mimruntime.cli.bench import bench_command
from mimruntime.engines import tuning
from mimruntime.errors import OptionError

pytestmark = pytest.mark.cpu

NAMES = ["torch eager fp32", "torch autocast bf16", "timm export, onnxruntime", "timm export, openvino"]


@pytest.fixture(scope="module")
def artifact(small_alias) -> Artifact:
    return built(model=small_alias, agg="cls", token_norm="final", random_seed=3)


@pytest.fixture(scope="module", autouse=True)
def _quick(artifact, tmp_path_factory) -> Iterator[None]:
    """Few batches, no more threads of torch for the tests that follow, and one export, of the one model there is."""
    kept, export = tmp_path_factory.mktemp("plain") / "plain.onnx", torch.onnx.export

    def export_once(model, given, path, **options) -> None:
        if not kept.exists():
            export(model, given, kept, **options)
        shutil.copytree(kept.parent, path.parent, dirs_exist_ok=True)  # weights may lie beside the graph

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "BATCHES", (1, 2))
        patch.setattr(torch, "set_num_threads", lambda count: None)
        patch.setattr(torch.onnx, "export", export_once)
        yield


def test_every_peer_gives_the_vectors_of_the_artifact_s_own_weights(artifact) -> None:
    with np.load(artifact.reference) as arrays:
        pixels, expected = arrays["images"], arrays["embedding"]
    found = peers.open_peers(artifact)
    assert [peer.name for peer in found] == NAMES
    for peer in found:
        with peer.open(pixels) as engine:
            vectors = engine.run(pixels)["embedding"]
            about = (engine.precision, engine.threads, engine.best_batch)
        cosines = (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1)
        assert cosines.min() > (0.99 if about[0] == "bf16" else 0.99999), peer.name
        assert None not in about[:2]
        assert (about[2] is None) == peer.name.startswith("torch")


def test_on_a_gpu_torch_in_half_precision_is_a_peer_too_eager_and_compiled(artifact, monkeypatch) -> None:
    """Without a GPU: that they are there, and that weights cast to half precision, through torch.compile, give the vectors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = {peer.name: peer.on_gpu for peer in peers.open_peers(artifact)}
    assert names["torch fp16, cuda"]
    assert names["torch fp16 compiled, cuda"]
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(model) or model)
    with np.load(artifact.reference) as arrays:
        pixels, expected = arrays["images"], arrays["embedding"]
    loaded = peers.load_model("small", random_seed=3, size=32)
    model = peers.PlainModel(loaded.model, loaded.config).eval()
    with peers.TorchEngine(model, (32, 32, 3), half=torch.bfloat16, compiled=True) as engine:
        vectors = engine.run(pixels)["embedding"]
        assert engine.precision == "bf16"
    assert ((vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1)).min() > 0.99
    assert {value.dtype for value in asked[0].model.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_other_weights_are_refused(artifact, monkeypatch) -> None:
    real = peers.load_model
    monkeypatch.setattr(peers, "load_model", lambda *given, **options: real(*given, **options | {"random_seed": 4}))
    with pytest.raises(
        OptionError, match=r"the weights of small differ from those in .*; give the right file with --weights"
    ):
        peers.open_peers(artifact)


def test_the_command_measures_engines_and_peers_on_photographs(artifact, photo, tmp_path) -> None:
    arguments = [artifact.path, "--peers", "--images", photo, "--images", photo, "--batches", "1,2", "--seconds", 0]
    arguments += ["--pairs", 1, "--json", tmp_path / "b.json"]
    done = CliRunner().invoke(bench_command(_open_peers), list(map(str, arguments)), catch_exceptions=False)
    report = json.loads((tmp_path / "b.json").read_text())
    names = [one["name"] for one in report["runners"]]
    assert names == ["onnxruntime", "openvino", *NAMES]
    assert {"tensorrt", "tensorrt-rtx"} == set(report["left_out"])
    assert len(report["ratios"]) == 5
    assert f"| {NAMES[0]} (peer, fp32," in done.output
