"""What a newcomer asks in the first hours: one test for each question, by the commands and over HTTP alone.

    pytest -m slow tests/test_first_hours.py

Nothing of the packages is imported, so the tests run against any version of them, and fail at one that has no answer yet.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import pty
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
from PIL import Image
from service import START, Service, running

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BLOCKS, WIDTH, PATCHES = 12, 192, 64
"""Those of mae-tiny."""
UNDECIDED = 3
"""The exit status of an evaluation of so few images."""
IMAGENET = "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"


def say(*arguments: object, code: int = 0, stdin: str | None = None) -> str:
    """Run the program, which ends with `code`, and return what it says."""
    command = [sys.executable, "-c", START, *map(str, arguments)]
    done = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def on_terminal(*arguments: object) -> str:
    """Run the program as in a terminal, and return what it says."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", START, *map(str, arguments)]
    said = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    assert process.returncode == 0, said.decode()
    return said.decode()


def own_state() -> dict[str, torch.Tensor]:
    """Weights of mae-tiny's shapes that nobody has published."""
    torch.manual_seed(0)

    def linear(name: str, out: int, wide: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.randn(out, wide) * 0.05, f"{name}.bias": torch.zeros(out)}

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.ones(WIDTH), f"{name}.bias": torch.zeros(WIDTH)}

    state = {"cls_token": torch.randn(1, 1, WIDTH), "pos_embed": torch.randn(1, PATCHES + 1, WIDTH)}
    state |= {"patch_embed.proj.weight": torch.randn(WIDTH, 3, 8, 8), "patch_embed.proj.bias": torch.zeros(WIDTH)}
    for block in (f"blocks.{index}" for index in range(BLOCKS)):
        state |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        state |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    return state | norm("norm")


def build_own(folder: Path, checkpoint: object, *options: object) -> str:
    """Build an artifact `folder` from a checkpoint file that holds `checkpoint`, and return what is said."""
    file = folder.with_suffix(".pth")
    torch.save(checkpoint, file)
    return say("build", "--model", "mae-tiny", "--weights", file, "--out", folder, *options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, one class each in two folders."""
    root = tmp_path_factory.mktemp("photographs")
    data = Path(str(skimage.__file__)).parent / "data"
    shown = Path(str(sklearn.__file__)).parent / "datasets" / "images"
    named = [*(data / name for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "ihc.png"))]
    whole = [
        Image.open(path).convert("RGB") for path in [*named, shown / "china.jpg", shown / "flower.jpg"] if path.exists()
    ]
    assert len(whole) >= 5
    for number, picture in enumerate(whole):
        for part in range(12):
            place = root / f"class{number % 2}" / f"{number}-{part}.jpg"
            place.parent.mkdir(exist_ok=True)
            wide, high = picture.size
            box = (part * wide // 24, part * high // 24, wide // 2 + part * wide // 24, high // 2 + part * high // 24)
            picture.crop(box).save(place, quality=92)
    return root


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    return min(folder.rglob("*.jpg"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default artifact of mae-tiny, as a first command makes it, with the selection."""
    out = tmp_path_factory.mktemp("artifacts") / "first"
    say("build", "--model", "mae-tiny", "--with-selection", "--out", out)
    return out


@pytest.fixture(scope="module")
def service(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(artifact, log=tmp_path_factory.mktemp("service") / "log") as started:
        yield started


def vectors_of(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(next(stored[name] for name in stored.files if stored[name].ndim == 2))


def test_1_the_pixels_of_an_own_checkpoint_are_said_and_can_be_set(tmp_path: Path) -> None:
    guessed = build_own(tmp_path / "guessed", own_state())
    assert IMAGENET in guessed
    assert "guess" in guessed
    given = build_own(tmp_path / "given", own_state(), "--mean", *["0.5"] * 3, "--std", *["0.25"] * 3)
    assert "mean 0.5 0.5 0.5, std 0.25 0.25 0.25" in given
    assert "mean 0.5 0.5 0.5, std 0.25 0.25 0.25" in say("inspect", tmp_path / "given")
    assert "mae-s16" in say("models")


def test_2_the_licence_of_an_own_checkpoint_is_not_stated_unless_it_is(tmp_path: Path) -> None:
    build_own(tmp_path / "a", own_state())
    assert "not stated" in say("inspect", tmp_path / "a")
    build_own(tmp_path / "b", own_state(), "--license", "mine")
    assert "mine" in say("inspect", tmp_path / "b")


def test_3_a_checkpoint_of_another_image_size_is_resampled_and_this_is_said(tmp_path: Path) -> None:
    said = build_own(tmp_path / "larger", own_state(), "--image-size", "96", "--data-config", "imagenet")
    assert "65 positions were resampled to 145" in said
    assert "resampled" in say("inspect", tmp_path / "larger")


def test_4_checkpoints_open_as_training_codes_write_them(tmp_path: Path) -> None:
    state = own_state()
    pooled = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: state[name] for name in state}
    habits = {
        "mae": {"model": state, "args": argparse.Namespace(mask_ratio=0.75)},
        "lightning": {"state_dict": {f"model.{name}": state[name] for name in state}},
        "wrapped": {"state_dict": {f"module.backbone.{name}": state[name] for name in state}},
        "tuned": {"model": pooled | {"head.weight": torch.ones(9, WIDTH), "head.bias": torch.ones(9)}},
    }
    for name, checkpoint in habits.items():
        build_own(tmp_path / name, checkpoint)


def test_4_an_evaluation_of_an_own_checkpoint_asks_for_it_at_once(folder: Path, tmp_path: Path) -> None:
    build_own(tmp_path / "own", own_state())
    said = say("eval", tmp_path / "own", "--data", f"folder:{folder}", code=1)
    assert "--weights" in said.splitlines()[-1]


def test_5_vectors_of_unlike_photographs_are_unlike(artifact: Path, folder: Path, tmp_path: Path) -> None:
    say("embed", artifact, folder, "--out", tmp_path / "v.npz")
    vectors = vectors_of(tmp_path / "v.npz")
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    assert statistics.median(cosines.tolist()) < 0.5
    assert "demonstration" in say("models")


def test_6_a_client_can_ask_for_a_precision(service: Service, photo: Path) -> None:
    assert service.call("/v1/embeddings/image", photo.read_bytes(), X_Embedding_Precision="fp32").status == 200
    assert service.call("/v1/embeddings/image", photo.read_bytes(), X_Embedding_Precision="int8").status == 409


def test_7_fitting_says_how_long_it_takes_and_why_it_chose(folder: Path, tmp_path: Path) -> None:
    options = ("--data", folder, "--cache", tmp_path / "cache", "--out", tmp_path / "head.safetensors")
    said = on_terminal("fit", "--model", "mae-tiny", "--agg", "topk", "--unlabelled", *options)
    assert re.search(r"\d+ (s|min \d+ s) left", said)
    assert re.search(r"(chosen|chose|taken|took|wins)[^\n]*(because|: )", said)


def test_8_a_report_begins_with_the_answer_in_words(artifact: Path, folder: Path, tmp_path: Path) -> None:
    options = ("--data", f"folder:{folder}", "--metric", "knn", "--cache", tmp_path / "cache")
    say("eval", artifact, *options, "--engine", "onnxruntime", "--out", tmp_path / "report", code=UNDECIDED)
    assert "of 100 images" in (tmp_path / "report.md").read_text().partition("\n## ")[0]
    compared = say("compare", artifact, artifact, *options, "--out", tmp_path / "compared.html")
    assert "of 100 images" in compared
    assert (tmp_path / "compared.html").exists()


def test_9_what_is_passed_over_is_counted_and_archives_and_lists_are_read(
    artifact: Path, photo: Path, tmp_path: Path
) -> None:
    phone = tmp_path / "phone"
    phone.mkdir()
    shutil.copy(photo, phone)
    Image.open(photo).save(phone / "b.avif")
    Image.open(photo).save(phone / "c.jp2")
    (phone / "clip.mov").write_bytes(b"a film")
    said = say("embed", artifact, phone, "--out", tmp_path / "a.npz")
    assert "3 of 3 images" in said
    assert "1 file was passed over: 1 MOV" in said
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        packed.write(photo, "a.jpg")
    assert "1 of 1 images" in say("embed", artifact, tmp_path / "photos.zip", "--out", tmp_path / "b.npz")
    assert "JPEG" in say("serve", artifact, "--format", "jpeg png", "--check")
    assert "1 of 1 images" in say("embed", artifact, "-", "--out", tmp_path / "c.npz", stdin=f"{photo}\n")


def test_10_the_difference_to_timms_pixels_is_stated_as_it_is() -> None:
    assert "25 by two, none by more" in (ROOT / "docs/results/decoding.md").read_text()


def test_11_two_of_one_name_are_refused_by_the_check_and_served_under_their_own(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "second")
    assert "name" in say("serve", artifact, tmp_path / "second", "--check", code=1)
    both = f"v1={artifact}", f"v2={tmp_path / 'second'}"
    with running(*both, log=tmp_path / "log") as service:
        assert {one["id"] for one in service.call("/v1/models").json["data"]} == {"v1", "v2"}


def test_12_the_log_is_json_alone_and_knows_the_client_behind_a_proxy(
    artifact: Path, photo: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with running(artifact, "--log-json", "--trusted-proxy", "127.0.0.1", log=log) as service:
        service.call(
            "/v1/embeddings/image", photo.read_bytes(), X_Forwarded_For="203.0.113.7", X_Forwarded_Proto="https"
        )
        assert b"swagger" in service.call("/docs").body.lower()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    request = next(entry for entry in entries if entry.get("images"))
    assert {"time", "model", "images", "status", "ms", "request_id"} <= {*request}
    assert "203.0.113.7" in json.dumps(request)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "empty list"),
        ("a cat", "is the text 'a cat'"),
        ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", "base64 without its type"),
        ("https://example.org/a.jpg", "is a URL, and this service fetches none"),
        ([{"image": "iVBORw0KGgo"}], 'an object with "image"'),
        ("data:application/pdf;base64,AAAA", "'application/pdf'"),
    ],
)
def test_13_what_is_no_image_is_told_what_to_send(service: Service, given: object, text: str) -> None:
    name = service.call("/v1/models").json["data"][0]["id"]
    message = service.call("/v1/embeddings", {"model": name, "input": given}).json["error"]["message"]
    assert text in message


def test_14_errors_by_item_leave_the_others_their_vectors(service: Service, photo: Path) -> None:
    name = service.call("/v1/models").json["data"][0]["id"]
    whole = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()).decode()
    body = {"model": name, "input": ["data:image/png;base64,@@", whole]}
    assert service.call("/v1/embeddings", body).status == 400
    answer = service.call("/v1/embeddings", body | {"errors": "item"})
    assert answer.status == 200
    assert [one["index"] for one in answer.json["data"]] == [1]
    assert [one["index"] for one in answer.json["errors"]] == [0]


def test_15_selection_configuration_statistics_and_grpc(
    artifact: Path, service: Service, photo: Path, tmp_path: Path
) -> None:
    name = service.call("/v1/models").json["data"][0]["id"]
    assert service.call(f"/v2/models/{name}/config").json["name"] == name
    assert service.call(f"/v2/models/{name}/stats").json["model_stats"][0]["name"] == name
    answer = service.call("/v1/embeddings/image?selection=true", photo.read_bytes()).json
    assert np.asarray(answer["data"][0]["selection"]).shape == (8, 8)
    triton = pytest.importorskip("tritonclient.grpc")
    with (
        running(artifact, "--grpc-port", 0, log=tmp_path / "log") as other,
        triton.InferenceServerClient(other.grpc) as client,
    ):
        tensor = triton.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([photo.read_bytes()], object))
        assert client.infer(name, [tensor]).as_numpy("embedding").shape == (1, WIDTH)


def test_16_a_page_for_production_names_what_it_takes() -> None:
    page = (ROOT / "docs/how-to/production.md").read_text().lower()
    for needed in ("nginx", "caddy", "systemd", "cuda", "openvino", "keys", "/ready", "alert on"):
        assert needed in page, needed
    assert {"nginx.conf", "Caddyfile", "Containerfile.cuda", "Containerfile.openvino"} <= {
        path.name for path in (ROOT / "deploy").iterdir()
    }


def test_17_doctor_says_what_runs_here_and_what_auto_takes(artifact: Path) -> None:
    said = say("doctor", artifact)
    assert "onnxruntime" in said
    assert "fp32" in said
    assert "auto" in said
    assert "it the engine" not in said
