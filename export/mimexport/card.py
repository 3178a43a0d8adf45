"""The artifact's README.md: what it is, how it is used, what was measured, under which licence its weights are."""

from __future__ import annotations

from pathlib import Path

from mimruntime.manifest import Manifest

_TEMPLATE = """\
# {m.name}

{backbone.model} ({backbone.timm_name}), weights: {backbone.source} ({backbone.origin}), aggregated by **{agg.name}**
({params}; token norm: {agg.token_norm}) into unit vectors of {m.embedding.dim} float32 numbers.
{warning}
```python
from mimruntime import Embedder

with Embedder.open("{m.name}") as embedder:
    vectors = embedder.embed(["photo.jpg"])  # (1, {m.embedding.dim})
```

| | |
|---|---|
| embedding space | `{m.embedding_space}` (vectors of another space must not meet these in one index) |
| input | {size}×{size} px: {pre.mode} edge to {pre.resize} px ({pre.interpolation}), centre crop |
| tokens | {backbone.grid[0]}×{backbone.grid[1]} patches, {backbone.prefix_tokens} prefix, {backbone.dim} wide |{kept}
| graph | ONNX opset {m.graph.opset}, {m.graph.precision}, last block {m.graph.last_block} |
| licence of the weights | **{backbone.license}** |{notes}

## Measured at the build

{m.parity.engine} against torch in fp32 on {m.parity.images} images, batches of {batches}:
worst cosine {m.parity.worst_cosine:.7f}, median {m.parity.median_cosine:.7f}, worst absolute difference
{m.parity.worst_abs_diff:.1e}, an image alone against the same image in a batch {m.parity.batch_invariance:.1e}.
`mimexport verify` repeats this wherever the artifact is deployed. It says nothing of accuracy on labelled images.
"""
_RANDOM = "\n**The weights are random: these vectors mean nothing and serve tests only.**\n"


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write `README.md` into an artifact folder."""
    text = _TEMPLATE.format(
        m=manifest,
        pre=manifest.preprocess,
        backbone=manifest.backbone,
        agg=manifest.aggregator,
        params=", ".join(f"{key} = {value}" for key, value in manifest.aggregator.params.items()) or "no options",
        size=manifest.preprocess.size,
        batches=", ".join(map(str, manifest.parity.batches)),
        kept="" if manifest.keep is None else f"\n| patches kept in the encoder | {manifest.keep} |",
        notes="".join(f"\n| note | {note} |" for note in manifest.backbone.notes),
        warning=_RANDOM if manifest.backbone.source == "random" else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
