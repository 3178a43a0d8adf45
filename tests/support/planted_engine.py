"""ONNX Runtime with a planted fault, as a separate engine."""

from __future__ import annotations

import uuid

from mimruntime.engines import onnxruntime
from mimruntime.engines.base import Engine

NAME = "planted"

FAULTS: dict[str, object] = {}
"""The planted faults: 'graph' maps path -> path, 'pixels' and 'embedding' map array -> array."""


def open_engine(graph, **options):
    replaced = FAULTS.get("graph", lambda path: path)(graph)
    return Planted(
        onnxruntime.open_engine(replaced, **options), healthy=replaced == graph and not {*FAULTS} - {"graph"}
    )


class Planted(Engine):
    """Where something is wrong, its version is its own, and so are its features."""

    def __init__(self, engine, *, healthy):
        vars(self).update(vars(engine))
        self.name = NAME
        self._engine = engine
        if not healthy:
            self.version = f"{self.version} {uuid.uuid4()}"

    def _run(self, pixels):
        outputs = self._engine.run(FAULTS.get("pixels", lambda array: array)(pixels))
        outputs["embedding"] = FAULTS.get("embedding", lambda array: array)(outputs["embedding"])
        return outputs

    def _close(self):
        self._engine.close()
