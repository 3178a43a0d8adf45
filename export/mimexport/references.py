"""What an artifact was built from, found again by its digests: torch references, and baselines built from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from mimexport.aggregators import AGGREGATORS, Aggregator
from mimexport.backbone import Backbone, Shape
from mimexport.composition import compose, own_sha256
from mimexport.embedding_model import EmbeddingModel
from mimexport.errors import HeadError, WeightsError
from mimexport.families import family_of
from mimexport.heads import embedded_heads, load_head, shipped_heads
from mimexport.loaded_model import LoadedModel
from mimexport.loading import load_any
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.provenance import code_digest
from mimexport.published_heads import load_published_head
from mimexport.torch_reference import SharedBackbone, TorchReference, check_reference
from mimexport.weights import embedded_file, load_model
from mimruntime.artifact import MANIFEST, Artifact, file_sha256
from mimruntime.errors import OptionError
from mimruntime.manifest import Manifest, TokenNorm


@dataclass(frozen=True, slots=True)
class References:
    """What rebuilds the torch models of artifacts.

    Attributes:
        weights: the checkpoint of artifacts whose weights came from a file.
        heads: files of heads that are not part of this package; each is found by its digest.
        models: backbones that were given to `build` from memory or by a loader of one's own; found by their digest too.
        aggregators: likewise, aggregators of one's own.
        calibrate: folder of real images that baselines in int8 are calibrated on; without it none is built.

    """

    weights: Path | None = None
    heads: tuple[Path, ...] = ()
    models: tuple[nn.Module | LoadedModel, ...] = ()
    aggregators: tuple[Aggregator, ...] = ()
    calibrate: Path | None = None

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
        trunks: dict[tuple[str, object, object], tuple[LoadedModel, SharedBackbone]] = {}
        opened = []
        for artifact in artifacts:
            manifest = artifact.manifest
            key = (manifest.backbone.weights_sha256, manifest.preprocess, manifest.keep)
            if narrow or key not in trunks:
                loaded = _load(manifest, self.weights, self.models)
                trunks[key] = loaded, SharedBackbone(Backbone(loaded.model, manifest.keep))
            loaded, trunk = trunks[key]
            own = _find_aggregator(manifest, self.aggregators)
            head = None if own is not None else _find_head(manifest, trunk.backbone.shape, self.heads)
            model, _ = compose(loaded, _options(manifest, head, own), trunk.backbone)
            reference = TorchReference(model, trunk, manifest.preprocess.size)
            if manifest.files:  # none: the same manifest with another token norm, which was never built
                check_reference(artifact, reference)
            if narrow:
                reference.set_precision(manifest.graph.precision)
            opened.append(reference)
        return opened

    def model_keeping(self, artifact: Artifact, keep: str | None, rule: str | None) -> EmbeddingModel:
        """Return an artifact's torch model with other patches kept; counts of patches become shares of what is left.

        Args:
            artifact: of any precision; the model is in float32.
            keep: as `build` takes it.
            rule: likewise.

        Raises:
            OptionError: a schedule that does not fit the backbone.
            MimError: the weights or the head are out of reach, or the head does not fit what is kept.

        """
        manifest = artifact.manifest
        loaded = _load(manifest, self.weights, self.models)
        own = _find_aggregator(manifest, self.aggregators)
        shape = family_of(loaded.model).shape(loaded.model)
        head = None if own is not None else _find_head(manifest, shape, self.heads)
        options = _options(manifest, head, own)
        if "k" in options.agg_options:
            patches = manifest.keep.stages[-1].patches if manifest.keep else shape.patches
            share = f"{100 * options.agg_options['k'] / patches}%"
            options = replace(options, agg_options={**options.agg_options, "k": share})
        return compose(loaded, replace(options, keep=keep, keep_by=rule))[0]

    def build_baseline(self, artifact: Artifact, folder: Path, token_norm: TokenNorm | None = None) -> Artifact:
        """Return the artifact of [cls] (of the mean, where there is none) that `artifact`'s gain is counted from.

        Args:
            artifact: whose backbone, size, precision and whitening it has.
            folder: below which it is built, or lies from a run of the same code before.
            token_norm: of the tokens; None takes the backbone's default, or its whitening's.

        Raises:
            OptionError: int8, and `calibrate` is not given.
            MimError: it cannot be built.

        """
        manifest = artifact.manifest
        whitened = manifest.embedding.whitening is not None
        agg = "cls" if manifest.backbone.reads_cls else "mean"
        int8 = manifest.graph.precision == "int8"
        if int8 and self.calibrate is None:
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
                calibrate=self.calibrate if int8 else None,
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
        own = ((path, load_head(path)) for path in self.heads if path.suffix == ".safetensors")
        backbone = manifest.backbone
        shipped = shipped_heads(backbone.model, backbone.source, backbone.weights_sha256)
        return next((path for path, head in own if head.agg == agg and head.keep is None), shipped.get(agg))


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
        head = load_head(path) if own else load_published_head(path, shape, manifest.aggregator.token_norm)
        # Two heads of one scorer may differ in options only, which are no part of the digest.
        fits = head.whitening is None or head.params == manifest.aggregator.params
        if fits and head.keep == manifest.keep and head.sha256(whitened=whitened) == wanted:
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
