"""Write the manifest, the model card and the preprocessor file of a build."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mimexport import graph as graph_file
from mimexport.aggregators import Aggregator
from mimexport.card import write_card
from mimexport.composition import own_sha256
from mimexport.embedding_model import EmbeddingModel
from mimexport.heads import Head
from mimexport.loaded_model import LoadedModel
from mimexport.options import BuildOptions
from mimexport.preprocessing import preprocess_of, write_preprocessor
from mimexport.provenance import tool_versions
from mimruntime import manifest as m
from mimruntime.artifact import seal


@dataclass(frozen=True, slots=True)
class Identity:
    """The records that define the embedding space, and whether the last block is reduced.

    Attributes:
        backbone: record of the backbone.
        aggregator: record of the aggregator.
        embedding: record of the vectors.
        preprocess: record of the preprocessing.
        keep: which patches stay in the encoder; None if all do.
        last_block: "reduced" or "full".

    """

    backbone: m.Backbone
    aggregator: m.Aggregator
    embedding: m.Embedding
    preprocess: m.Preprocess
    keep: m.Keep | None
    last_block: Literal["reduced", "full"]


def identify(
    loaded: LoadedModel, model: EmbeddingModel, head: Head | None, options: BuildOptions, dim: int
) -> Identity:
    """Return the records of a composed network whose vectors have `dim` numbers."""
    whitened = model.whitening is not None
    preprocess = preprocess_of(loaded.config)
    return Identity(
        backbone=_backbone(loaded, model, preprocess.size),
        aggregator=m.Aggregator(
            name=options.agg_name,
            params=model.aggregator.params,
            token_norm=model.token_norm,
            head_sha256=_head_sha256(options.agg, model.aggregator, head, whitened=whitened),
        ),
        embedding=m.Embedding(dim=dim, whitening=f"{dim} dimensions" if whitened else None),
        preprocess=preprocess,
        keep=model.backbone.keep,
        last_block="reduced" if model.backbone.reduced and not model.aggregator.reads_all else "full",
    )


def write_records(
    stage: Path,
    options: BuildOptions,
    identity: Identity,
    ports: tuple[tuple[m.Port, ...], tuple[m.Port, ...]],
    parity: m.Parity,
    conversion: m.Conversion | None,
    statistics: m.Statistics | None,
) -> None:
    """Write all files of an artifact except its graph and reference, and write the manifest with their digests.

    Args:
        stage: the folder; it already holds `model.onnx` and `reference.npz`.
        options: the build options.
        identity: the records that define the embedding space.
        ports: inputs and outputs of the graph.
        parity: comparison of the graph in an engine with torch.
        conversion: loss of a narrower precision; None if not measured.
        statistics: of the vectors of real images; None without images.

    """
    i = identity
    manifest = m.Manifest(
        name=options.out.absolute().name,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        embedding_space=m.embedding_space(i.backbone, i.aggregator, i.embedding, i.preprocess, i.keep),
        backbone=i.backbone,
        aggregator=i.aggregator,
        embedding=i.embedding,
        preprocess=i.preprocess,
        graph=m.Graph(
            file=graph_file.FILE,
            opset=graph_file.OPSET,
            precision=options.precision,
            last_block=i.last_block,
            inputs=ports[0],
            outputs=ports[1],
        ),
        keep=i.keep,
        parity=parity,
        conversion=conversion,
        statistics=statistics,
        versions=tool_versions(),
        files={},
    )
    write_preprocessor(stage, i.preprocess)
    write_card(stage, manifest)
    seal(stage, manifest)


def _backbone(loaded: LoadedModel, model: EmbeddingModel, size: int) -> m.Backbone:
    shape = model.backbone.shape
    return m.Backbone(
        model=loaded.name,
        timm_name=loaded.timm_name,
        source=loaded.source,
        origin=loaded.origin,
        weights_sha256=loaded.sha256,
        license=loaded.license,
        patch=size // shape.grid[0],
        grid=shape.grid,
        prefix_tokens=shape.prefix,
        dim=shape.dim,
        has_cls=shape.has_cls,
        notes=loaded.notes,
    )


def _head_sha256(asked: str | Aggregator, aggregator: Aggregator, head: Head | None, *, whitened: bool) -> str | None:
    """Return the digest of the head or of the user's aggregator; None if name and options define the aggregator."""
    if isinstance(asked, Aggregator):
        return own_sha256(aggregator)
    return head.sha256(whitened=whitened) if head is not None and (head.tensors or whitened) else None
