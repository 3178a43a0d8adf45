"""Measure early selection: accuracy against images/s of rules, counts, smaller images and token merging.

    python tools/frontier.py ../shared/data/tiny-imagenet-64.zip --model mae-tiny --model mae-small
    python tools/frontier.py ../shared/data/tiny-imagenet-64.zip --model mae-tiny --rates
    python tools/frontier.py ../shared/data/tiny-imagenet-64.zip --model mae-tiny --explore --training 3000

The first command measures accuracy with vectors from torch, in bf16 if the CPU supports it. The second builds every row and
runs it in two engines, in turn with the full encoder; it needs a quiet machine. The third compares rules on training images.
Results are stored in `--results`, and the page is written from them. Vectors are stored in `--work`. [cls] and the full
encoder are those in `aggregators-MODEL.json`, measured on the same images in fp32.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aggregator_tables
import click
import numpy as np
import torch
from frontier_page import SAME_CLASS, write_page
from frontier_rows import FULL, ROWS, Row
from measure_aggregators import beginning

from mimeval import knn, linear_probe
from mimeval.datasets import Dataset, Split, open_dataset
from mimeval.neighbours import nearest
from mimexport.aggregators import make_aggregator
from mimexport.composition import compose
from mimexport.embedding_model import EmbeddingModel
from mimexport.graph import FILE, export_graph
from mimexport.keep_choices import run_in_turn
from mimexport.loading import load_any
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.preprocessing import preprocess_of
from mimexport.torch_reference import SharedBackbone
from mimruntime.cpus import available_cpus, describe_cpu, multiplies_bf16
from mimruntime.decode import decode
from mimruntime.engines import engine_module
from mimruntime.engines.base import Engine, Setting
from mimruntime.engines.options import CompileOptions
from mimruntime.manifest import Precision
from mimruntime.preprocess import to_pixels

PRECISION: Precision = "bf16" if multiplies_bf16() else "fp32"
ENGINES = (("onnxruntime", None), ("openvino", PRECISION))
"""Engines and precisions in which speed is measured."""
MEASURED = Path(__file__).parents[1] / "docs" / "results"
BATCH = 16
NEIGHBOURS = 20
METRICS = ("k-NN", "linear probe")
AGGREGATORS = ("topk", "center-weighted")
_CHUNK = 50


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--model", "models", multiple=True, required=True, help="Embedded backbones.")
@click.option("--training", default=10_000, show_default=True, help="Number of training images.")
@click.option("--images", default=10_000, show_default=True, help="Number of test images.")
@click.option("--row", "titles", multiple=True, help="Measure only these rows, again; keep the others.")
@click.option("--rates", is_flag=True, help="Measure speed alone.")
@click.option("--probe", is_flag=True, help="Also measure linear probes.")
@click.option("--explore", is_flag=True, help="Compare rules on training images, in order to choose one.")
@click.option(
    "--pairs", default=9, show_default=True, help="Number of runs of each row, in turn with the full encoder."
)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/frontier"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("docs/results"), show_default=True)
def main(
    archive: Path, models: tuple[str, ...], training: int, images: int, titles: tuple[str, ...], rates: bool, probe: bool,
    explore: bool, pairs: int, work: Path, results: Path,
) -> None:  # fmt: skip
    """Measure rows that are missing in the results, and measure named rows again."""
    if unknown := set(titles) - {row.title for row in ROWS}:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(r.title for r in ROWS)}")
    data = beginning(open_dataset(f"zip:{archive}", cache=work), training, images)
    for model in models:
        bench = Bench(model, data, work)
        file = results / f"early-selection-{model}{'-explored' if explore else ''}.json"
        stored = aggregator_tables.read(file) if file.exists() else bench.describe(explore=explore)
        for row in [row for row in ROWS if not titles or row.title in titles]:
            found = stored["rows"].setdefault(row.title, {"operations": bench.operations(row)})
            wanted = SAME_CLASS if explore else "rates" if rates else "linear probe" if probe else "k-NN"
            if wanted in found and not titles:
                continue
            started = time.perf_counter()
            if explore:
                found[SAME_CLASS] = bench.same_class(row)
            else:
                found |= {"rates": bench.rates(row, pairs)} if rates else bench.accuracy(row, probe=probe)
            aggregator_tables.write(stored, file)
            click.echo(f"{model} {row.title}: {time.perf_counter() - started:.0f} s", err=True)
    write_page(results)


class Bench:
    """A backbone and the images, with its networks and stored vectors."""

    def __init__(self, model: str, data: Dataset, work: Path) -> None:
        self._model, self._data, self._work = model, data, work
        self._networks: dict[Row, EmbeddingModel] = {}

    def describe(self, *, explore: bool) -> dict[str, Any]:
        """Return the results before any row is measured."""
        loaded = load_any(self._model)
        if explore:
            return {"model": self._model, "images": len(self._parts()[0]), "precision": PRECISION, "rows": {}}
        engines = [f"{name} {precision or 'fp32'}" for name, precision in ENGINES]
        whole = aggregator_tables.read(MEASURED / f"aggregators-{self._model}.json")
        sizes = [len(part) for part in self._parts()]
        training, images = whole["sizes"]["centred"]
        if training != sizes[0] or images < sizes[1]:
            raise click.UsageError(f"[cls] was measured on {training} and {images} images; {sizes} were asked for")
        known = {"[cls]": aggregator_tables.strongest(whole, ""), FULL.title: aggregator_tables.DEFAULT}
        known[replace(FULL, agg="center-weighted").title] = "`center-weighted`"
        rows = {
            title: {"operations": 1.0}
            | {metric: scores[: sizes[1]] for metric, scores in whole["rows"][name].items() if metric in METRICS}
            for title, name in known.items()
        }
        return {
            "model": self._model, "weights_sha256": loaded.sha256, "sizes": sizes,
            "machine": describe_cpu(), "engines": engines, "batch": BATCH, "rows": rows,
        }  # fmt: skip

    def operations(self, row: Row) -> float:
        """Return the share of the full encoder's operations in blocks that a row needs."""
        loaded = load_any(self._model)
        model: Any = loaded.model
        grid = model.patch_embed.grid_size[0] if row.size is None else row.size // model.patch_embed.patch_size[0]
        counts = [1 + n for n in row.tokens(grid**2, len(model.blocks))]
        whole = 1 + model.patch_embed.grid_size[0] ** 2
        need = [24 * n * model.embed_dim**2 + 4 * n**2 * model.embed_dim for n in [*counts, whole]]
        return sum(need[:-1]) / (need[-1] * len(counts))

    def accuracy(self, row: Row, *, probe: bool) -> dict[str, np.ndarray]:
        """Return the correctness of every test image."""
        train, test = (self._vectors(row, part) for part in self._parts())
        learned, truth = (part.labels for part in self._parts())
        if probe:
            return {"linear probe": linear_probe.predict(train, learned, test) == truth}
        return {"k-NN": knn.predict(train, learned, test) == truth}

    def same_class(self, row: Row) -> np.ndarray:
        """Return for each training image the share of its 20 nearest neighbours that have its class, (n,)."""
        part = self._parts()[0]
        indices, _ = nearest(*[self._vectors(row, part)] * 2, NEIGHBOURS, leave_one_out=True)
        return np.asarray((part.labels[indices] == part.labels[:, None]).mean(1))

    def rates(self, row: Row, pairs: int) -> dict[str, list[float]]:
        """Return the speed by engine, as a list of the fields of `Speed`."""
        found = {}
        for name, precision in ENGINES:
            with self._open(row, name, precision) as ours, self._open(FULL, name, precision) as full:
                batches = tuple(np.zeros((BATCH, *engine.pixel_shape), np.uint8) for engine in (ours, full))
                speed = run_in_turn(ours, full, batches, pairs)
            found[f"{name} {precision or 'fp32'}"] = [round(part, 3) for part in speed]
        return found

    def _parts(self) -> tuple[Split, Split]:
        if self._data.train is None:
            raise click.UsageError(f"{self._data.name} has no images to learn from")
        return self._data.train, self._data.test

    def _vectors(self, row: Row, part: Split) -> np.ndarray:
        """Return the vectors (n, D) of a row; one pass of the encoder computes those of all `AGGREGATORS`."""
        folder = self._work / "vectors"
        files = {
            agg: folder / f"{self._model}-{replace(row, agg=agg).folder}-{part.digest[:12]}.npy" for agg in AGGREGATORS
        }
        if not files[row.agg].exists():
            folder.mkdir(parents=True, exist_ok=True)
            for agg, vectors in self._encode(row, part).items():
                np.save(files[agg], vectors)
        return np.asarray(np.load(files[row.agg]))

    def _encode(self, row: Row, part: Split) -> dict[str, np.ndarray]:
        models = {agg: self._network(replace(row, agg=agg)) for agg in AGGREGATORS}
        preprocess = preprocess_of(load_any(self._model, size=row.size).config)
        found: dict[str, list[np.ndarray]] = {agg: [] for agg in AGGREGATORS}
        trunk = SharedBackbone(next(iter(models.values())).backbone)
        for start in range(0, len(part), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(part)))
            pixels = np.stack([to_pixels(decode(part.load(index)), preprocess) for index in chunk])
            with torch.inference_mode():
                for agg, model in models.items():
                    if row.merge:
                        vectors = model(torch.from_numpy(pixels))[0]
                    else:
                        vectors, _ = model.embed(trunk.features(model, pixels))
                    found[agg].append(vectors.numpy())
        return {agg: np.concatenate(parts) for agg, parts in found.items()}

    def _network(self, row: Row) -> EmbeddingModel:
        """Return the network of a row; networks with the same encoder share one backbone."""
        key = replace(row, agg="topk")
        if key not in self._networks:
            options = self._options(key, Path())
            self._networks = {key: compose(load_any(self._model, size=row.size), options)[0]}
            self._networks[key].set_precision(PRECISION)
        first = self._networks[key]
        if row.merge:
            return row.merging(first).eval()
        aggregator = make_aggregator(row.agg, first.backbone.shape, {})
        model = EmbeddingModel(first.backbone, aggregator, "raw", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
        model.mean, model.std, model.dtype = first.mean, first.std, first.dtype
        return model

    def _open(self, row: Row, name: str, precision: str | None) -> Engine:
        options = CompileOptions(engine=name, precision=precision)
        module: Any = engine_module(name)
        engine: Engine = module.open_setting(self._graph(row), Setting(available_cpus()), options)
        return engine

    def _graph(self, row: Row) -> Path:
        """Return the ONNX file of a row; build it if it is missing."""
        folder = self._work / self._model / row.folder
        if (folder / FILE).exists():
            return folder / FILE
        if not row.merge:
            return build(self._options(row, folder)).graph
        folder.mkdir(parents=True, exist_ok=True)
        loaded = load_any(self._model, size=row.size)
        model = row.merging(compose(loaded, self._options(row, folder))[0]).eval()
        export_graph(model, folder, loaded.config["input_size"][-1])
        return folder / FILE

    def _options(self, row: Row, out: Path) -> BuildOptions:
        return BuildOptions(
            model=self._model, agg=row.agg, out=out, size=row.size, keep=row.keep, keep_by=row.by, force=True
        )


if __name__ == "__main__":
    main()
