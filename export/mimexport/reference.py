"""The torch model of an artifact behind the interface of an engine: in float32 what deployed vectors are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mimexport.aggregators import AGGREGATORS, Aggregator
from mimexport.backbone import Backbone, Shape
from mimexport.composition import compose, own_sha256
from mimexport.errors import HeadError, WeightsError
from mimexport.features import Features
from mimexport.foreign_heads import load_foreign_head
from mimexport.heads import embedded_heads, load_head, shipped_heads
from mimexport.loaded_model import LoadedModel
from mimexport.loading import load_any
from mimexport.model import EmbeddingModel, NarrowProducts
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.provenance import code_digest
from mimexport.weights import embedded_file, load_model
from mimruntime.artifact import MANIFEST, Artifact, file_sha256
from mimruntime.engines.base import EMBEDDING, SELECTION, Engine
from mimruntime.errors import ArtifactError, EngineError, OptionError
from mimruntime.manifest import Manifest, Precision, TokenNorm
from mimruntime.reference import load_reference

NAME = "torch"
_LEAST_COSINE = 0.99999
"""Of the rebuilt model to the vectors stored at the build; torch differs from machine to machine by far less."""


@dataclass(frozen=True, slots=True)
class References:
    """What rebuilds the torch models of artifacts.

    Attributes:
        weights: the checkpoint of artifacts whose weights came from a file.
        heads: files of heads that are not part of this package; each is found by its digest.
        models: backbones that were given to `build` from memory or by a loader of one's own; found by their digest too.
        aggregators: likewise, aggregators of one's own.

    """

    weights: Path | None = None
    heads: tuple[Path, ...] = ()
    models: tuple[nn.Module | LoadedModel, ...] = ()
    aggregators: tuple[Aggregator, ...] = ()

    def open(self, artifacts: Sequence[Artifact], *, narrow: bool = False) -> list[TorchReference]:
        """Return the torch model of every artifact; those of one backbone share it and its pass over a batch.

        Args:
            artifacts: of any precision.
            narrow: compute in the precision of the graph instead of float32; nothing is shared then.

        Raises:
            WeightsError: the weights are out of reach, or are not those of the artifact.
            HeadError: a head is not at hand.
            ArtifactError: the rebuilt model does not give the vectors that were stored at the build.

        """
        trunks: dict[tuple[str, object], tuple[LoadedModel, _Trunk]] = {}
        opened = []
        for artifact in artifacts:
            manifest = artifact.manifest
            key = (manifest.backbone.weights_sha256, manifest.preprocess)
            if narrow or key not in trunks:
                loaded = _load(manifest, self.weights, self.models)
                trunks[key] = loaded, _Trunk(Backbone(loaded.model))
            loaded, trunk = trunks[key]
            own = _find_aggregator(manifest, self.aggregators)
            head = None if own is not None else _find_head(manifest, trunk.backbone.shape, self.heads)
            model, _ = compose(loaded, _options(manifest, head, own), trunk.backbone)
            reference = TorchReference(model, trunk, manifest.preprocess.size)
            if manifest.files:  # none: the same manifest with another token norm, which was never built
                _check(artifact, reference)
            if narrow:
                reference.narrow(manifest.graph.precision)
            opened.append(reference)
        return opened

    def build_baseline(self, artifact: Artifact, folder: Path, token_norm: TokenNorm | None = None) -> Artifact:
        """Return the artifact of [cls] (of the mean, where there is none) that `artifact`'s gain is counted from.

        Args:
            artifact: whose backbone, size, precision and whitening it has.
            folder: below which it is built, or lies from a run of the same code before.
            token_norm: of the tokens; None takes the backbone's default, or its whitening's.

        Raises:
            OptionError: int8, which nothing here calibrates.
            MimError: it cannot be built.

        """
        manifest = artifact.manifest
        whitened = manifest.embedding.whitening is not None
        agg = "cls" if manifest.backbone.reads_cls else "mean"
        if manifest.graph.precision == "int8":
            raise OptionError(
                f"{artifact.path} is int8, and a baseline in int8 needs images to calibrate on; build it and name it with"
                f" --baseline: mimexport build --model {manifest.backbone.model} --agg {agg} --precision int8"
                " --calibrate FOLDER"
            )
        head = self._whitening_head(manifest, agg) if whitened else None
        name = f"{agg}-{manifest.graph.precision}-{manifest.backbone.weights_sha256[:12]}-{manifest.preprocess.size}"
        name = name if token_norm is None else f"{name}-{token_norm}"
        name = name if head is None else f"{name}-whitened-{load_head(head).sha256(whitened=True)[:12]}"
        out = folder / code_digest() / name  # what older code built is no baseline of what newer code built
        if (out / MANIFEST).is_file():
            return Artifact.open(out)
        return build(
            BuildOptions(
                model=_load(manifest, self.weights, self.models),
                agg=agg,
                out=out,
                token_norm=token_norm,
                precision=manifest.graph.precision,
                head=None if head is None else str(head),
                whiten=0 if whitened else None,
            )
        )

    def build_plain(self, model: str, agg: str, folder: Path) -> Artifact:
        """Return the artifact in fp32 of an aggregator that learns nothing.

        Args:
            model: alias or timm name.
            agg: name of the aggregator.
            folder: below which it is built, or lies from a run of the same code before.

        Raises:
            MimError: it cannot be built.

        """
        weights = self.weights
        name = f"{agg}-{model}" if weights is None else f"{agg}-{model}-{file_sha256(weights)[:12]}"
        out = folder / code_digest() / name
        if (out / MANIFEST).is_file():
            return Artifact.open(out)
        return build(BuildOptions(model=model, agg=agg, out=out, weights=weights))

    def _whitening_head(self, manifest: Manifest, agg: str) -> Path | None:
        """Return the head that whitens `agg`, which learns nothing else: one that was given, or the shipped one."""
        own = (path for path in self.heads if path.suffix == ".safetensors")
        backbone = manifest.backbone
        shipped = shipped_heads(backbone.model, backbone.source, backbone.weights_sha256)
        return next((path for path in own if load_head(path).agg == agg), shipped.get(agg))


class TorchReference(Engine):
    """The model of one artifact, run by torch in float32 unless it is narrowed."""

    def __init__(self, model: EmbeddingModel, trunk: _Trunk, size: int) -> None:
        self.name, self.provider, self.version = NAME, "cpu", torch.__version__
        self.pixel_shape = (size, size, 3)
        self.outputs = (EMBEDDING, SELECTION) if model.aggregator.has_weights else (EMBEDDING,)
        self.precision = "fp32"
        self._model: EmbeddingModel | None = model
        self._trunk = trunk

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See base class."""
        if self._model is None:
            raise EngineError("this engine is closed")
        with torch.inference_mode(), NarrowProducts():
            embedding, weights = self._model.embed(self._trunk.features(self._model, pixels))
        outputs = {EMBEDDING: embedding.numpy()}
        if weights is not None:
            outputs[SELECTION] = weights.unflatten(1, self._model.backbone.shape.grid).numpy()
        return outputs

    def narrow(self, precision: Precision) -> None:
        """Compute in `precision` from now on; on any CPU torch rounds every product to it."""
        if self._model is not None:
            self._model.set_precision(precision)
            self.precision = precision
            # The vectors of the build do not vouch for these: whatever computes them tells them apart.
            self.version = f"{self.version} {code_digest()}"

    def _close(self) -> None:
        """See base class."""
        self._model = None


class _Trunk:
    """A backbone, and what it made of the batch it saw last: several aggregators are asked for the same one."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._pixels: np.ndarray | None = None
        self._tokens = torch.empty(0)
        self._features: dict[TokenNorm, Features] = {}

    def features(self, model: EmbeddingModel, pixels: np.ndarray) -> Features:
        """Return what `model`'s aggregator may read of uint8 pixels (B, H, W, 3)."""
        if self._pixels is not pixels:
            self._tokens, self._features, self._pixels = model.enter(torch.from_numpy(pixels)), {}, pixels
        if model.token_norm not in self._features:
            self._features[model.token_norm] = Features(self.backbone, self._tokens, model.norm)
        return self._features[model.token_norm]


def _load(manifest: Manifest, weights: Path | None, models: Sequence[nn.Module | LoadedModel]) -> LoadedModel:
    """Load the artifact's own weights and no others, with the pixels it was built with."""
    backbone, pixels = manifest.backbone, manifest.preprocess
    given = (load_any(model) for model in models)
    loaded = next((one for one in given if one.sha256 == backbone.weights_sha256), None)
    if loaded is None and backbone.source == "memory":
        raise WeightsError(
            f"the backbone of {manifest.name} was {backbone.origin}; give it: References(models=[model])"
        )
    if loaded is None:
        loaded = _load_by_name(manifest, weights)
    if loaded.sha256 != backbone.weights_sha256:
        raise WeightsError(
            f"{manifest.name} was built from weights {backbone.weights_sha256[:12]}…, found {loaded.sha256[:12]}…"
            f" ({loaded.origin}): no reference can be made; give --weights FILE, or build the artifact again"
        )
    return replace(loaded, config={**loaded.config, "mean": pixels.mean, "std": pixels.std})


def _load_by_name(manifest: Manifest, weights: Path | None) -> LoadedModel:
    backbone, size = manifest.backbone, manifest.preprocess.size
    if backbone.source == "file" and weights is None:
        raise WeightsError(f"the weights of {manifest.name} came from a file, '{backbone.origin}'; give --weights FILE")
    file, seed = _weights_for(manifest, weights), seed_of(manifest)
    loaded = load_model(backbone.model, weights=file, random_seed=seed)
    if loaded.config["input_size"][-1] != size:
        loaded = load_model(backbone.model, weights=file, random_seed=seed, size=size)
    return loaded


def _find_aggregator(manifest: Manifest, given: Sequence[Aggregator]) -> Aggregator | None:
    """Return the artifact's own aggregator, recognised by its digest; None where it is one of this package."""
    name = manifest.aggregator.name
    if name in AGGREGATORS:
        return None
    for aggregator in given:
        if type(aggregator).__name__ == name and own_sha256(aggregator) == manifest.aggregator.head_sha256:
            return aggregator
    raise HeadError(
        f"the aggregator '{name}' of {manifest.name} is not of this package{' and not among those given' if given else ''}:"
        " no reference can be made; give it: References(aggregators=[aggregator])"
    )


def _weights_for(manifest: Manifest, given: Path | None) -> Path | None:
    """Return the checkpoint, where the artifact's weights came from one or are not part of this installation."""
    backbone = manifest.backbone
    absent = backbone.source == "embedded" and embedded_file(backbone.model) is None
    return given if absent or backbone.source == "file" else None


def seed_of(manifest: Manifest) -> int | None:
    """Return the seed that a backbone's random weights were drawn from; None where they were not."""
    return int(manifest.backbone.origin.removeprefix("seed ")) if manifest.backbone.source == "random" else None


def _find_head(manifest: Manifest, shape: Shape, given: Sequence[Path]) -> Path | None:
    """Return the file of the artifact's head, recognised by its digest."""
    wanted = manifest.aggregator.head_sha256
    if wanted is None:
        return None
    whitened = manifest.embedding.whitening is not None
    for path in (*embedded_heads(manifest.backbone.model).values(), *given):
        own = path.suffix == ".safetensors"
        head = load_head(path) if own else load_foreign_head(path, shape, manifest.aggregator.token_norm)
        # Two heads of one scorer may differ in options only, which are no part of the digest.
        fits = head.whitening is None or head.params == manifest.aggregator.params
        if fits and head.sha256(whitened=whitened) == wanted:
            return path
    raise HeadError(
        f"the head of {manifest.name} (sha256 {wanted[:12]}…) is not part of this package"
        f"{' and not among --head' if given else ''}: no reference can be made; give --head FILE"
    )


def _options(manifest: Manifest, head: Path | None, own: Aggregator | None) -> BuildOptions:
    return BuildOptions(
        model=manifest.backbone.model,
        agg=own or manifest.aggregator.name,
        out=Path(),
        agg_options=manifest.aggregator.params if own is None else {},
        token_norm=manifest.aggregator.token_norm,
        head=None if head is None else str(head),
        whiten=None if manifest.embedding.whitening is None else manifest.embedding.dim,
    )


def _check(artifact: Artifact, reference: TorchReference) -> None:
    images, expected = load_reference(artifact)
    cosines = (reference.run(images)[EMBEDDING] * expected).sum(axis=1)
    if not cosines.min() >= _LEAST_COSINE:  # written so that NaN fails
        raise ArtifactError(
            f"{artifact.path}: the torch model rebuilt from its manifest has cosine {cosines.min():.6f} to the vectors"
            f" of the build, at least {_LEAST_COSINE} is expected; build the artifact again"
        )
