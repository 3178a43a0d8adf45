"""Train a model whose [cls] is already good, and measure that pooling its patches gains nothing (docs/results/control.md).

    python tools/make_control.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport

The last blocks of `mae-tiny` are fine-tuned with labels on [cls]. The tokens of the frozen blocks before them are computed
once. The weights (11 MB) are written to artifacts/control.safetensors and are not committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mimeval import knn, linear_probe
from mimeval.datasets import Dataset, Split, open_dataset
from mimeval.statistics import Interval, mean_interval, paired_difference
from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.fitting.stored_features import pool
from mimexport.fitting.tokens import Tokens
from mimexport.fitting.views import WHOLE, show
from mimexport.preprocessing import preprocess_of
from mimexport.weights import load_model

DOCS = Path(__file__).parents[1] / "docs" / "results" / "control.md"
MARKER = "<!-- written by tools/make_control.py, below this line -->"
RIVALS = ("cls", "mean", "topk", "center-weighted", "cls+mean")
BATCH, RATE, DECAY, SMOOTHING = 128, 1e-3, 0.05, 0.1
KEPT = 28
"""Number of random patches of 64 per training step; this regularises and halves the cost."""


@click.command()
@click.argument("data")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("artifacts/control.safetensors"))
@click.option(
    "--blocks", type=click.IntRange(1, 11), default=2, show_default=True, help="Number of last blocks to train."
)
@click.option("--epochs", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--train-limit", type=int, default=30_000, show_default=True, help="Training images.")
@click.option("--limit", type=int, help="Number of test images for a trial run; the docs are then not changed.")
@click.option("--probe/--no-probe", default=True, help="Also measure linear probes, which take most of the time.")
def main(
    data: str, cache: Path, out: Path, blocks: int, epochs: int, train_limit: int, limit: int | None, probe: bool
) -> None:
    """Train unless `out` exists, then measure."""
    dataset = open_dataset(data, cache=cache, limit=limit, train_limit=train_limit)
    if not out.exists():
        started = time.perf_counter()
        trained = fine_tune(dataset, blocks, epochs, cache)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.half().contiguous() for name, value in trained.state_dict().items()}, out)
        click.echo(
            f"{out}: {epochs} epochs of the last {blocks} blocks, {time.perf_counter() - started:.0f} s", err=True
        )
    model = load_model("mae-tiny", weights=out).model
    rows = list(measure(model, dataset, blocks, cache, probe=probe))
    columns = ["vector", "k-NN"] + ["linear probe"] * probe
    table = "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])
    click.echo(table)
    if limit is None:
        prose = DOCS.read_text(encoding="utf-8").split(MARKER)[0]
        sizes = f"{len(dataset.test):,} test images, {len(_train(dataset)):,} training images"
        DOCS.write_text(f"{prose}{MARKER}\n\n{table}\n\n{sizes}.\n", encoding="utf-8")


def fine_tune(dataset: Dataset, blocks: int, epochs: int, cache: Path) -> nn.Module:
    """Return `mae-tiny` with the last blocks fine-tuned on the training labels through [cls]."""
    split = _train(dataset)
    model: Any = load_model("mae-tiny").model
    before, last, labels = model.blocks[-blocks:-1], model.blocks[-1], torch.from_numpy(split.labels)
    tokens = torch.from_numpy(entering(split, blocks, cache))
    torch.manual_seed(0)  # after `entering`, which uses random numbers only if tokens are not stored yet
    head = nn.Linear(model.embed_dim, len(dataset.classes))
    parameters = [p for part in (before, last, model.norm, head) for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    steps = epochs * (len(split) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    loss_of = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for step, rows in enumerate(_batches(len(split), epochs)):
        shown = tokens[rows].float()
        patches = 1 + torch.rand(len(rows), shown.shape[1] - 1).argsort(dim=1)[:, :KEPT]
        kept = torch.cat([torch.zeros(len(rows), 1, dtype=torch.long), patches], dim=1)
        shown = shown.gather(1, kept.unsqueeze(-1).expand(-1, -1, shown.shape[2]))
        optimizer.zero_grad()
        loss = loss_of(head(model.norm(cls_row(last, before(shown)))), labels[rows])
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            click.echo(f"\r  step {step} of {steps}, loss {float(loss):.3f} ", nl=step % 200 == 0, err=True)
    return model.eval()


def cls_row(block: Any, tokens: Tensor) -> Tensor:
    """Return the [cls] row (B, D) of a ViT block's output, without computing the other rows."""
    context, width = block.norm1(tokens), tokens.shape[2]
    weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
    query = nn.functional.linear(context[:, :1], weight[:width], bias[:width])
    key, value = nn.functional.linear(context, weight[width:], bias[width:]).chunk(2, dim=2)
    heads = [part.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    attended = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    row = tokens[:, :1] + block.attn.proj(attended)
    return (row + block.mlp(block.norm2(row)))[:, 0]


def measure(model: nn.Module, dataset: Dataset, blocks: int, cache: Path, *, probe: bool) -> Iterator[str]:
    """Yield a table row per aggregator with differences to [cls]; `model` is the fine-tuned model."""
    train = _train(dataset)
    tokens = [_leave(model, entering(part, blocks, cache), blocks) for part in (train, dataset.test)]
    backbone = Backbone(model)
    methods: dict[str, Callable[..., np.ndarray]] = {"k-NN": knn.predict}
    if probe:
        methods["linear probe"] = linear_probe.predict
    right: dict[tuple[str, str], np.ndarray] = {}
    for rival in RIVALS:
        aggregator = make_aggregator(rival, backbone.shape, {}).eval()
        final = aggregator.token_norm == "final"
        features = [pool(aggregator, part, backbone, final=final).numpy() for part in tokens]
        cells = []
        for name, predict in methods.items():
            found = predict(features[0], train.labels, features[1]) == dataset.test.labels
            right[rival, name] = found
            cells.append(_cell(found, right["cls", name] if rival != "cls" else None))
        yield f"| `{rival}` | {' | '.join(cells)} |"


def entering(split: Split, blocks: int, cache: Path) -> np.ndarray:
    """Return the tokens (n, S, D) float16 that enter the last `blocks` blocks of `mae-tiny`; store them in `cache`."""
    file = cache / f"entering-{blocks}-{split.digest[:24]}.npy"
    if not file.exists():
        loaded = load_model("mae-tiny")
        model: Any = loaded.model
        mean, std = (torch.tensor(loaded.config[name]).view(1, 3, 1, 1) * 255 for name in ("mean", "std"))
        preprocess, parts = preprocess_of(loaded.config), []
        with torch.inference_mode():
            for start in range(0, len(split), BATCH):
                rows = range(start, min(start + BATCH, len(split)))
                pixels = np.stack([show(split.load(row), row, WHOLE, 0, preprocess) for row in rows])
                images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - mean) / std
                tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
                parts.append(model.blocks[:-blocks](tokens).half().numpy())
                click.echo(f"\r  tokens of {rows.stop} of {len(split)} ", nl=rows.stop == len(split), err=True)
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(parts))
        partial.replace(file)
    return np.asarray(np.load(file, mmap_mode="r"))


def _leave(model: Any, stored: np.ndarray, blocks: int) -> Tokens:
    """Return tokens in the form that `fit` stores, from tokens `stored` that enter the last blocks of `model`."""
    patches, cls, energy = [], [], []
    with torch.inference_mode():
        for start in range(0, len(stored), BATCH):
            last = model.blocks[-blocks:-1](torch.from_numpy(stored[start : start + BATCH]).float())
            left = model.blocks[-1](last)
            patches.append(left[:, 1:].half().numpy())
            cls.append(left[:, 0].half().numpy())
            energy.append(last[:, 1:].square().sum(dim=2).numpy())
    count, grid = len(stored), stored.shape[1] - 1
    attention = np.zeros((count, 0, grid), np.float16)
    return Tokens(np.concatenate(patches), np.concatenate(cls), np.concatenate(energy), attention)


def _batches(count: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count)[: count // BATCH * BATCH].split(BATCH)


def _train(dataset: Dataset) -> Split:
    if dataset.train is None:
        raise click.UsageError(f"{dataset.name} has no training images")
    return dataset.train


def _cell(right: np.ndarray, baseline: np.ndarray | None) -> str:
    accuracy = _percent(mean_interval(right.astype(float)))
    return accuracy if baseline is None else f"{accuracy}, to [cls] {_percent(paired_difference(right, baseline), '+')}"


def _percent(found: Interval, sign: str = "") -> str:
    return f"{100 * found.value:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


if __name__ == "__main__":
    main()
