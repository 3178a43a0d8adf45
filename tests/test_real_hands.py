"""A newcomer's whole way, by the commands alone: checkpoints as people have them, a phone's photographs, a service for others.

    pytest -m slow -s tests/test_real_hands.py

prints every command and what it says.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from proxy import nginx
from service import START, running

from mimexport.weights import embedded_file
from mimruntime import Embedder, read_vectors

State = dict[str, torch.Tensor]


def renamed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def as_fine_tuned(state: State) -> State:
    pooled = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value for name, value in state.items()
    }
    return pooled | {"head.weight": torch.ones(10, 192), "head.bias": torch.ones(10)}


HABITS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain.pth": (lambda state: state, ""),
    "mae.pth": (
        lambda state: {
            "model": state | {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 192)},
            "optimizer": {"lr": 1e-3},
            "args": argparse.Namespace(mask_ratio=0.75),
            "epoch": 800,
        },
        "",
    ),
    "lightning.ckpt": (lambda state: {"state_dict": renamed(state, "model.")}, "prefix 'model.' was removed"),
    "wrapped.pth": (
        lambda state: {"state_dict": renamed(state, "module.backbone.")},
        "prefix 'module.backbone.' was removed",
    ),
    "weights.safetensors": (lambda state: state, ""),
    "fine-tuned.pth": (lambda state: {"model": as_fine_tuned(state)}, "has its norm after the average pool"),
    "larger.pth": (lambda state: state, "65 positions were resampled to 145"),
}
"""What a file holds, and what the build must say of it."""
SAME = ("plain", "mae", "lightning", "wrapped", "weights")
"""Habits that hide the same weights."""


def say(*arguments: object, code: int = 0) -> str:
    """Run the program, print the command with its output, and return the output."""
    words = [str(argument) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", START, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    click.echo(f"\n$ mimexport {shlex.join(words)}\n{done.stdout}", nl=False)
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artifact of each habit, by the stem of its file."""
    folder = tmp_path_factory.mktemp("hands")
    state = safetensors.torch.load_file(embedded_file("mae-tiny"))
    for name, (wrap, note) in HABITS.items():
        file = folder / name
        (safetensors.torch.save_file if file.suffix == ".safetensors" else torch.save)(wrap(state), file)
        size = ("--image-size", 96) if file.stem == "larger" else ()
        said = say(
            "build", "--model", "mae-tiny", "--weights", file, "--data-config", "imagenet", "--license", "mine", *size,
            "--out", folder / file.stem,
        )  # fmt: skip
        assert note in said
        assert "licence of the weights: mine" in said
        assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in said
    return {Path(name).stem: folder / Path(name).stem for name in HABITS}


@pytest.mark.slow
def test_seven_habits_of_checkpoints_are_one_command_each(artifacts: dict[str, Path], photos: list[Path]) -> None:
    vectors, spaces = {}, {}
    for name, path in artifacts.items():
        inspected = say("inspect", path)
        assert "licence mine" in inspected
        assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in inspected
        with Embedder.open(path) as embedder:
            vectors[name], spaces[name] = embedder.embed(photos), embedder.space
    assert len({spaces[name] for name in SAME}) == 1
    assert len({*spaces.values()}) == 3
    for name in SAME:
        np.testing.assert_array_equal(vectors[name], vectors["plain"])


@pytest.mark.slow
def test_a_folder_of_a_phone_is_embedded_and_what_is_passed_over_is_named(
    artifacts: dict[str, Path], photos: list[Path], tmp_path: Path
) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    phone = tmp_path / "phone"
    phone.mkdir()
    for number, photo in enumerate(photos[:3]):
        Image.open(photo).convert("RGB").save(phone / f"IMG_{number}.HEIC", "HEIF", quality=90)
    shutil.copy(photos[3], phone)
    (phone / "clip.mov").write_bytes(b"a film")
    (phone / "drawing.svg").write_text("<svg/>")
    said = say("embed", artifacts["mae"], phone, "--out", tmp_path / "vectors.npz")
    assert "4 of 4 images embedded" in said
    assert "2 files were passed over: 1 MOV, 1 SVG" in said
    found = read_vectors(tmp_path / "vectors.npz")
    with Embedder.open(artifacts["mae"]) as embedder:
        exact = embedder.embed(photos[:4])
    assert [Path(path).name for path in found.paths[:3]] == ["IMG_0.HEIC", "IMG_1.HEIC", "IMG_2.HEIC"]
    assert (found.vectors * exact).sum(axis=1).min() > 0.9  # HEIC loses a little


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_versions_are_served_behind_nginx_with_two_keys_and_over_grpc(
    artifacts: dict[str, Path], photos: list[Path], tmp_path: Path
) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    keys, log = tmp_path / "keys", tmp_path / "log"
    keys.write_text("first\nsecond\n")
    served = {"v1": artifacts["mae"], "v2": artifacts["larger"]}
    exact = {}
    for name, path in served.items():
        with Embedder.open(path) as embedder:
            exact[name] = embedder.embed(photos)
    options = ("--api-key-file", keys, "--trusted-proxy", "127.0.0.1", "--log-json", "--grpc-port", 0)
    with (
        running(*(f"{name}={path}" for name, path in served.items()), *options, log=log) as service,
        nginx(service, tmp_path / "nginx") as port,
    ):
        context = ssl.create_default_context(cafile=tmp_path / "nginx/cert.pem")

        def post(path: str, body: bytes, key: str, kind: str) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": kind}
            request = urllib.request.Request(f"https://localhost:{port}{path}", data=body, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                    return answer.status, json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, json.load(error)

        for (name, vectors), key in zip(exact.items(), ("first", "second"), strict=True):
            for photo, vector in zip(photos, vectors, strict=True):
                status, answer = post(f"/v1/embeddings/image?model={name}", photo.read_bytes(), key, "image/jpeg")
                assert (status, answer["model"]) == (200, name)
                assert np.dot(answer["data"][0]["embedding"], vector) > 0.9999
        assert post("/v1/embeddings/image?model=v1", b"", "third", "image/jpeg")[0] == 401
        status, answer = post("/v1/embeddings/image?model=v1", b"no image", "first", "image/jpeg")
        assert status in {400, 415}
        click.echo(f"\nPOST 'no image': {status} {answer['error']['message']}")
        kserve = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["none"]}]}
        assert post("/v2/models/v1/infer", json.dumps(kserve).encode(), "first", "application/json")[0] in {400, 415}
        with triton.InferenceServerClient(service.grpc) as client:
            tensor = triton.InferInput("image", [len(photos)], "BYTES")
            tensor.set_data_from_numpy(np.array([photo.read_bytes() for photo in photos], object))
            found = client.infer("v2", [tensor], headers={"authorization": "Bearer second"}).as_numpy("embedding")
            assert (found * exact["v2"]).sum(axis=1).min() > 0.9999
            with pytest.raises(triton.InferenceServerException, match="send a valid key"):
                client.infer("v2", [tensor])
        counted = service.call("/metrics", Authorization="Bearer first").body.decode()
        click.echo("\n".join(line for line in counted.splitlines() if line.startswith("mimexport_requests_total")))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    click.echo("\n".join(map(json.dumps, entries[:2] + entries[-3:])))
    asked = [entry for entry in entries if entry["message"] == "request" and entry.get("images")]
    assert {(entry["model"], entry["scheme"]) for entry in asked} >= {("v1", "https"), ("v2", "https"), ("v2", "grpc")}
    assert all({"time", "model", "images", "status", "ms", "request_id"} <= {*entry} for entry in asked)
    assert not re.search("first|second", log.read_text())
