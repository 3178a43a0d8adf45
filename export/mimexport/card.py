"""Write the artifact's README.md: description, usage, measurements and licence of the weights."""

from __future__ import annotations

from pathlib import Path

from mimruntime.manifest import Manifest, Preprocess

_TEMPLATE = """\
# {m.name}

Image embeddings for retrieval: one unit vector of {m.embedding.dim} float32 numbers per image, computed by
{backbone.model} with the aggregator **{agg.name}**.
{warning}
```python
from mimruntime import Embedder

with Embedder.open("{m.name}") as embedder:
    vectors = embedder.embed(["photo.jpg"])  # (1, {m.embedding.dim})
```

| | |
|---|---|
| backbone | {backbone.model} (timm: {backbone.timm_name}) |
| weights | {backbone.source}: {backbone.origin} |
| licence of the weights | **{backbone.license}** |{notes}
| aggregator | {agg.name} ({params}), token norm {agg.token_norm} |
| embedding space | `{m.embedding_space}`; never mix vectors of different spaces in one index |
| input | RGB image, {resize} ({pre.interpolation}), then centre crop to {size}×{size} px |
| pixels | {pre.normalisation}; the graph applies them |{whitening}
| tokens | {backbone.grid[0]}×{backbone.grid[1]} patches, {backbone.prefix_tokens} prefix tokens, width {backbone.dim} |{kept}
| graph | ONNX opset {m.graph.opset}, {m.graph.precision}, last block {m.graph.last_block} |

## Measured when it was built

The graph in {m.parity.engine} was compared with the torch model in fp32 on {m.parity.images} images, in batches of {batches}.

| | |
|---|---|
| worst cosine | {m.parity.worst_cosine:.7f} |
| median cosine | {m.parity.median_cosine:.7f} |
| largest absolute difference | {m.parity.worst_abs_diff:.1e} |
| largest difference between an image alone and in a batch | {m.parity.batch_invariance:.1e} |

Run `mimexport verify` to repeat the comparison on another machine. It does not measure accuracy on labelled images.
"""
_RANDOM = "\n**The weights are random. Use these vectors for tests only: they carry no meaning.**\n"


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write `README.md` into an artifact folder."""
    text = _TEMPLATE.format(
        m=manifest,
        pre=manifest.preprocess,
        backbone=manifest.backbone,
        agg=manifest.aggregator,
        params=", ".join(f"{key} = {value}" for key, value in manifest.aggregator.params.items()) or "no options",
        size=manifest.preprocess.size,
        resize=_resize(manifest.preprocess),
        batches=", ".join(map(str, manifest.parity.batches)),
        kept="" if manifest.keep is None else f"\n| patches kept in the encoder | {manifest.keep} |",
        notes="".join(f"\n| note | {note} |" for note in manifest.backbone.notes),
        whitening="" if manifest.embedding.whitening is None else f"\n| whitening | {manifest.embedding.whitening} |",
        warning=_RANDOM if manifest.backbone.source == "random" else "",
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _resize(preprocess: Preprocess) -> str:
    edge = preprocess.resize
    return f"shortest edge resized to {edge} px" if preprocess.mode == "shortest" else f"resized to {edge}×{edge} px"
