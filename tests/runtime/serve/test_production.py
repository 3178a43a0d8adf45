"""The files of `deploy/`: nginx before two versions with two keys, and what the others name."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import ssl
import subprocess
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from proxy import nginx
from service import free_port, running

from mimruntime import Embedder
from mimruntime.cli.serve import serve_command

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_two_versions_behind_nginx_with_two_keys(toy_artifact: Path, toy_whitened: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    options = ("--api-key-file", keys, "--trusted-proxy", "127.0.0.1", "--log-json", "--grpc-port", 0)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    Image.fromarray(noise).save(png := io.BytesIO(), "PNG")
    image = png.getvalue()
    assert len(image) > 2**21  # more than nginx takes unasked
    with (
        running(f"v1={toy_artifact}", f"v2={toy_whitened}", *options, log=tmp_path / "log") as service,
        nginx(service, tmp_path / "nginx") as port,
    ):
        context = ssl.create_default_context(cafile=tmp_path / "nginx/cert.pem")

        def ask(path: str, body: bytes | None = None, key: str = "first", **headers: str) -> tuple[int, bytes]:
            named = {
                "Authorization": f"Bearer {key}",
                **{name.replace("_", "-"): text for name, text in headers.items()},
            }
            request = urllib.request.Request(f"https://localhost:{port}{path}", data=body, headers=named)
            try:
                with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

        spaces = set()
        for version, key in (("v1", "first"), ("v2", "second")):
            spoofed = {"X_Forwarded_For": "203.0.113.7", "X_Request_Id": f"ask-{version}"}
            status, answer = ask(f"/v1/embeddings/image?model={version}", image, key, **spoofed)
            assert (status, json.loads(answer)["model"]) == (200, version)
            spaces.add(json.loads(answer)["embedding_space"])
        assert len(spaces) == 2
        assert ask("/v1/models", key="third")[0] == 401
        assert ask("/v1/embeddings/image?model=v1", bytes(33_000_000))[0] == 413
        closed = ("/metrics", "/info", "/docs", "/docs/start.js", "/openapi.json")
        assert {path: ask(path)[0] for path in closed} == dict.fromkeys(closed, 403)
        assert ask("/ready", key="")[0] == 200
        credentials = grpc.ssl_channel_credentials((tmp_path / "nginx/cert.pem").read_bytes())
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            about = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            assert b"mimexport" in about(b"", timeout=20, metadata=[("authorization", "Bearer second")])
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                about(b"", timeout=20)
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    asked = [entry for entry in entries if str(entry.get("request_id")).startswith("ask-")]
    assert [(entry["model"], entry["client"], entry["scheme"]) for entry in asked] == [
        ("v1", "127.0.0.1", "https"),
        ("v2", "127.0.0.1", "https"),
    ]


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
def test_caddy_takes_its_file(tmp_path: Path) -> None:
    command = ["caddy", "adapt", "--validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile"]
    env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert "not formatted" not in done.stderr


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.openvino", "Containerfile.cuda", "mimexport.service"])
def test_what_a_file_names_is_there(name: str) -> None:
    text = (DEPLOY / name).read_text()
    variables = {option.envvar or f"MIMEXPORT_{option.name.upper()}" for option in serve_command.params}
    assert {*re.findall(r"MIMEXPORT_[A-Z_]+", text)} <= variables
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    assert all((ROOT / path).exists() for paths in copied for path in paths.split())
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    chosen = {extra for group in re.findall(r"'\.\[(.*?)\]'", text) for extra in group.split(",")}
    assert chosen <= {*extras} - {"export", "eval", "dev"}
    assert bool(chosen) == name.startswith("Containerfile")


IN_CONTAINER = """
import json, os, signal, subprocess, sys, time, urllib.request
os.environ |= {"MIMEXPORT_HOST": "127.0.0.1", "MIMEXPORT_PORT": sys.argv[2]}
service = subprocess.Popen(json.loads(sys.argv[1]))
url = f"http://127.0.0.1:{sys.argv[2]}"
while True:
    try:
        urllib.request.urlopen(f"{url}/ready").close()
        break
    except OSError:
        assert service.poll() is None
        time.sleep(0.1)
with open("/photo", "rb") as photo, urllib.request.urlopen(f"{url}/v1/embeddings/image", photo.read()) as answer:
    print(json.dumps({"answer": json.load(answer), "user": os.getuid()}))
service.send_signal(signal.SIGTERM)
sys.exit(service.wait())
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("buildah") is None, reason="buildah is not installed")
@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.openvino"])
def test_a_container_is_built_and_serves(name: str, toy_artifact: Path, photo: Path) -> None:
    """With buildah alone, which Debian has and which needs no daemon; its base image comes from a registry."""

    def buildah(*arguments: object) -> str:
        done = subprocess.run(
            ["buildah", *map(str, arguments)], env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()

    image = f"localhost/mimexport-{name.lower()}"
    base = re.findall(r"^FROM (\S+)$", (DEPLOY / name).read_text(), re.MULTILINE)[0]
    if subprocess.run(["buildah", "pull", "--policy", "missing", base], capture_output=True, check=False).returncode:
        pytest.skip(f"no {base} here, and its registry is out of reach")
    buildah("build", "--network", "host", "--pull-never", "-f", DEPLOY / name, "-t", image, ROOT)
    container = buildah("from", "--pull-never", image)
    try:
        entry = json.dumps(json.loads(buildah("inspect", container))["OCIv1"]["config"]["Entrypoint"])
        mounts = ("-v", f"{toy_artifact}:/artifact:ro", "-v", f"{photo}:/photo:ro")
        python = "/opt/mimexport/bin/python"
        said = buildah(
            "run", "--network", "host", *mounts, container, "--", python, "-c", IN_CONTAINER, entry, free_port()
        )
        found = json.loads(said.splitlines()[-1])
        with Embedder.open(toy_artifact) as embedder:
            exact = embedder.embed([photo])[0]
        assert np.dot(found["answer"]["data"][0]["embedding"], exact) > 0.9999
        assert found["user"] == 65534
    finally:
        buildah("rm", container)
