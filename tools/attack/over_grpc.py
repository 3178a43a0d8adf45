"""Attack the gRPC port of a local service: garbage, mutated messages and calls that are given up, among correct ones.

python -m attack.over_grpc [ARTIFACT] [--requests 3000] [--seed 0]
"""

from __future__ import annotations

import random
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import grpc
import numpy as np
from service import Service, running

from attack.bodies import Target
from attack.correct import TOLERANCE
from attack.targets import photographs, read_target
from mimruntime.serve.rpc.messages import MESSAGES, SERVICE

_TOY = Path(__file__).parents[2] / "tests" / "golden" / "schema-3" / "artifact"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_LEGAL = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "CANCELLED"}
_TIMEOUT_S = 30
_GROWTH = 200_000_000
"""Bytes that the service may have grown by at the end."""


def attack(service: Service, target: Target, requests: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Send `requests` calls and connections, and return how they were answered and which promises were broken."""
    answers: Counter[str] = Counter()
    broken: list[str] = []
    before = service.resident_bytes()
    with grpc.insecure_channel(service.grpc) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for number in range(requests):
            draw = random.Random(f"{seed}/{number}")
            image = draw.randrange(len(target.photos))
            message = _message(target.model, target.photos[image])
            kind = draw.choice(("correct", "mutated", "given up", "garbage"))
            if kind == "garbage":
                _send_garbage(service.grpc, draw)
            elif kind == "given up":
                infer.future(message, timeout=_TIMEOUT_S).cancel()
            elif kind == "mutated":
                answers[f"mutated: {_code(infer, _mutated(draw, message))}"] += 1
            elif wrong := _wrong(infer(message, timeout=_TIMEOUT_S), target.vectors[image]):
                broken.append(f"{seed}/{number}: {wrong}")
            answers[kind] += 1
    illegal = {name for name in answers if name.startswith("mutated: ")} - {f"mutated: {code}" for code in _LEGAL}
    broken += [f"{name}, {answers[name]} times" for name in sorted(illegal)]
    if service.call("/ready").status != 200:
        broken.append("the service is not ready")
    if (grown := service.resident_bytes() - before) > _GROWTH:
        broken.append(f"the service grew by {grown / 1e6:.0f} MB")
    if "Traceback" in service.log.read_text(errors="replace"):
        broken.append("a traceback in the log")
    return answers, broken


def _message(model: str, photo: bytes) -> bytes:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [photo]}}
    return bytes(MESSAGES["ModelInferRequest"](model_name=model, inputs=[tensor]).SerializeToString())


def _mutated(draw: random.Random, message: bytes) -> bytes:
    """Return a message with some bytes of its head changed, and sometimes cut short."""
    changed = bytearray(message)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(min(len(changed), 60))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.3 else changed)


def _send_garbage(address: str, draw: random.Random) -> None:
    """Connect and send bytes, or frames of HTTP/2, that say nothing."""
    host, port = address.split(":")
    data = draw.randbytes(draw.randrange(1, 4000))
    if draw.random() < 0.5:
        frames = [draw.randbytes(draw.randrange(60)) for _ in range(30)]
        heads = [len(frame).to_bytes(3, "big") + bytes([draw.randrange(11), draw.randrange(256)]) for frame in frames]
        streams = [draw.randrange(9).to_bytes(4, "big") for _ in frames]
        data = _PREFACE + b"".join(b"".join(parts) for parts in zip(heads, streams, frames, strict=True))
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
            connection.sendall(data)
    except ConnectionError:  # it hung up first
        return


def _code(infer: Callable[..., object], message: bytes) -> str:
    try:
        infer(message, timeout=_TIMEOUT_S)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _wrong(answer: bytes, expected: list[float]) -> str | None:
    raw = MESSAGES["ModelInferResponse"].FromString(answer).raw_output_contents[0]
    difference = float(np.abs(np.frombuffer(raw, "<f4") - np.array(expected)).max())
    return f"a vector differs by {difference:.2g}" if difference > TOLERANCE else None


@click.command(context_settings={"show_default": True})
@click.argument("artifact", type=click.Path(exists=True, path_type=Path), default=_TOY)
@click.option("--requests", default=3000, type=click.IntRange(1), help="Number of calls and connections.")
@click.option("--seed", default=0, help="Seed of all of them.")
def main(artifact: Path, requests: int, seed: int) -> None:
    """Attack a service of ARTIFACT, and exit with 1 where a promise was broken."""
    target = read_target(artifact, photographs())
    with (
        tempfile.TemporaryDirectory(prefix="attack-") as folder,
        running(artifact, "--grpc-port", 0, log=Path(folder) / "log") as service,
    ):
        answers, broken = attack(service, target, requests, seed)
    print("\n".join(f"{name:<34} {count}" for name, count in sorted(answers.items())))
    print("\n".join(f"BROKEN: {line}" for line in broken) or "every promise held")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
