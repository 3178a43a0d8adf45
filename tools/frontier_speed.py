"""The graphs of every row of `frontier.py`, and their images/s in turn with the full encoder's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from frontier_rows import FULL, Row
from frontier_vectors import network_of

from mimexport.graph import FILE, export_graph
from mimexport.keep_choices import run_in_turn
from mimexport.loading import load_any
from mimexport.provenance import code_digest
from mimruntime.cpus import available_cpus, multiplies_bf16
from mimruntime.engines import engine_module
from mimruntime.engines.base import Engine, Setting
from mimruntime.engines.options import CompileOptions

ENGINES = (("onnxruntime", None), ("openvino", "bf16" if multiplies_bf16() else "fp32"))
"""Engines and precisions in which speed is measured."""
BATCH = 16


def engine_titles() -> list[str]:
    """Return the engines with their precisions, as the results name them."""
    return [f"{name} {precision or 'fp32'}" for name, precision in ENGINES]


class Stopwatch:
    """Measures the speed of rows of one backbone.

    Args:
        model: an embedded backbone.
        work: folder of the graphs.

    """

    def __init__(self, model: str, work: Path) -> None:
        self._model, self._work = model, work / code_digest()  # so that graphs of other code are not reused

    def graph(self, row: Row) -> Path:
        """Return the ONNX file of a row; export it if it is missing."""
        folder = self._work / self._model / row.folder
        if not (folder / FILE).exists():
            stage = folder.with_name(f".{folder.name}.partial")
            stage.mkdir(parents=True, exist_ok=True)
            export_graph(
                network_of(self._model, row), stage, load_any(self._model, size=row.size).config["input_size"][-1]
            )
            stage.rename(folder)
        return folder / FILE

    def rates(self, row: Row, pairs: int) -> dict[str, list[float]]:
        """Return the speed by engine, as a list of the fields of `Speed`."""
        found = {}
        for title, (name, precision) in zip(engine_titles(), ENGINES, strict=True):
            with self._open(row, name, precision) as ours, self._open(FULL, name, precision) as full:
                batches = tuple(
                    np.random.default_rng(0).integers(0, 256, (BATCH, *engine.pixel_shape), np.uint8)
                    for engine in (ours, full)
                )
                speed = run_in_turn(ours, full, (batches[0], batches[1]), pairs)
            found[title] = [round(part, 3) for part in speed]
        return found

    def _open(self, row: Row, name: str, precision: str | None) -> Engine:
        options = CompileOptions(engine=name, precision=precision)
        module: Any = engine_module(name)
        engine: Engine = module.open_setting(self.graph(row), Setting(available_cpus()), options)
        return engine
