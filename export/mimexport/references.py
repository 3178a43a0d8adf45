"""Rebuild the torch models of artifacts from their manifests, and build baseline artifacts from the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from torch import nn

from mimexport.aggregators import AGGREGATORS, Aggregator
from mimexport.backbone import Backbone, Shape
from mimexport.composition import compose, own_sha256
from mimexport.device import choose_device, describe_device
from mimexport.embedding_model import EmbeddingModel
from mimexport.errors import HeadError, WeightsError
from mimexport.families import family_of
from mimexport.gpu_products import GpuProducts, products_on
from mimexport.heads import embedded_heads, load_head, shipped_heads
from mimexport.loaded_model import LoadedModel
from mimexport.loading import load_any
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.preprocessing import config_of
from mimexport.provenance import code_digest
from mimexport.published_heads import load_published_head
from mimexport.torch_reference import SharedBackbone, TorchReference, check_reference
from mimexport.weights import embedded_file, load_model
from mimruntime.artifact import MANIFEST, Artifact, file_sha256
from mimruntime.errors import OptionError
from mimruntime.manifest import Manifest, TokenNorm


@dataclass(frozen=True, slots=True)
class References:
    """The sources from which the torch models of artifacts are rebuilt.

    Attributes:
        weights: the checkpoint of artifacts whose weights came from a file.
        heads: files of heads that are not part of this package; matched by digest.
        models: backbones that were passed to `build` as models or records; matched by digest.
        aggregators: instances of the user's own aggregators; matched by digest.
        device: where torch computes: "cpu", "cuda", or "auto", the GPU if torch sees one. Always float32, never TF32,
            unless a narrower precision is asked for. Builds stay on the CPU.

    """

    weights: Path | None = None
    heads: tuple[Path, ...] = ()
    models: tuple[nn.Module | LoadedModel, ...] = ()
    aggregators: tuple[Aggregator, ...] = ()
    device: str = "auto"

    @property
    def device_text(self) -> str:
        """The device for a message."""
        return describe_device(choose_device(self.device))

    @property
    def accelerator(self) -> GpuProducts | None:
        """What runs an evaluation's own large products on the GPU; None on the CPU."""
        return products_on(choose_device(self.device))

    def open(self, artifacts: Sequence[Artifact], *, narrow: bool = False) -> list[TorchReference]:
        """Return the torch models of artifacts; models of the same backbone share it and its result for a batch.

        Args:
            artifacts: artifacts of any precision.
            narrow: compute in the precision of the graph instead of float32; then nothing is shared.

        Raises:
            WeightsError: the weights cannot be found, or differ from those of the artifact.
            HeadError: a head or the user's aggregator is missing.
            OptionError: the device is "cuda", and torch sees no GPU.
            ArtifactError: the rebuilt model does not reproduce the vectors stored at the build.

        """
        device = choose_device(self.device)
        trunks: dict[tuple[str, object, object], tuple[LoadedModel, SharedBackbone]] = {}
        opened = []
        for artifact in artifacts:
            manifest = artifact.manifest
            key = (manifest.backbone.weights_sha256, manifest.preprocess, manifest.keep)
            if narrow or key not in trunks:
                loaded = _load(manifest, self.weights, self.models)
                trunks[key] = loaded, SharedBackbone(Backbone(loaded.model, manifest.keep).to(device))
            loaded, trunk = trunks[key]
            own = _find_aggregator(manifest, self.aggregators)
            head = None if own is not None else _find_head(manifest, trunk.backbone.shape, self.heads)
            model, _ = compose(loaded, _options(manifest, head, own), trunk.backbone)
            reference = TorchReference(model.to(device), trunk, manifest.preprocess.size)
            if manifest.files:
                check_reference(artifact, reference)
            else:  # the manifest was copied with another token norm and never built
                reference.mark_code()
            if narrow:
                reference.set_precision(manifest.graph.precision)
            opened.append(reference)
        return opened

    def model_keeping(self, artifact: Artifact, keep: str | None, rule: str | None) -> EmbeddingModel:
        """Return an artifact's torch model with other patches kept; counts of patches become shares of what is left.

        If the head is only a whitening, the model has none: it would fit no other patches than those of its fit.

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
        if head is not None and head.suffix == ".safetensors" and not load_head(head).tensors:
            options = replace(options, head=None, whiten=None)
        if "k" in options.agg_options:
            patches = manifest.keep.stages[-1].patches if manifest.keep else shape.patches
            share = f"{100 * options.agg_options['k'] / patches}%"
            options = replace(options, agg_options={**options.agg_options, "k": share})
        return compose(loaded, replace(options, keep=keep, keep_by=rule))[0]

    def build_baseline(self, artifact: Artifact, folder: Path, token_norm: TokenNorm | None = None) -> Artifact:
        """Return the baseline for `artifact`: the artifact of [cls], or of the mean if the backbone has no [cls].

        Args:
            artifact: the baseline has the same backbone, preprocessing and precision, and is whitened if this is.
            folder: folder in which it is built, or found if the same code built it before.
            token_norm: token norm of the baseline; None takes the default of the backbone or of the whitening's head.

        Raises:
            OptionError: the precision is int8 and `calibrate` is None.
            MimError: the build failed.

        """
        manifest = artifact.manifest
        whitened = manifest.embedding.whitening is not None
        agg = "cls" if manifest.backbone.reads_cls else "mean"
        if manifest.graph.precision == "int8":
            raise OptionError(
                f"{artifact.path} is int8, and an int8 baseline needs calibration images; build it and pass it with"
                f" --baseline: mimexport build --model {manifest.backbone.model} --agg {agg} --precision int8"
                " --calibrate FOLDER"
            )
        head = self._whitening_head(manifest, agg) if whitened else None
        pixels = hashlib.sha256(msgspec.json.encode(manifest.preprocess)).hexdigest()[:8]
        weights, size = manifest.backbone.weights_sha256[:12], manifest.preprocess.size
        name = f"{agg}-{manifest.graph.precision}-{weights}-{size}-{pixels}"
        name = name if token_norm is None else f"{name}-{token_norm}"
        name = name if head is None else f"{name}-whitened-{load_head(head).sha256(whitened=True)[:12]}"
        out = folder / code_digest() / name  # do not reuse baselines built by other code
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
        """Return the fp32 artifact of an aggregator that learns nothing.

        Args:
            model: alias or timm name.
            agg: name of the aggregator.
            folder: folder in which it is built, or found if the same code built it before.

        Raises:
            MimError: the build failed.

        """
        weights = self.weights
        name = f"{agg}-{model}" if weights is None else f"{agg}-{model}-{file_sha256(weights)[:12]}"
        out = folder / code_digest() / name
        if (out / MANIFEST).is_file():
            return Artifact.open(out)
        return build(BuildOptions(model=model, agg=agg, out=out, weights=weights))

    def _whitening_head(self, manifest: Manifest, agg: str) -> Path | None:
        """Return the head with the whitening of `agg`: one of `heads`, else this package's; None if there is none."""
        own = ((path, load_head(path)) for path in self.heads if path.suffix == ".safetensors")
        backbone = manifest.backbone
        shipped = shipped_heads(backbone.model, backbone.source, backbone.weights_sha256)
        return next((path for path, head in own if head.agg == agg and head.keep is None), shipped.get(agg))


def _load(manifest: Manifest, weights: Path | None, models: Sequence[nn.Module | LoadedModel]) -> LoadedModel:
    """Load the weights the artifact was built from, with its preprocessing; raise WeightsError if they differ."""
    backbone = manifest.backbone
    given = (load_any(model) for model in models)
    loaded = next((one for one in given if one.sha256 == backbone.weights_sha256), None)
    if loaded is None and backbone.source == "memory":
        raise WeightsError(
            f"the backbone of {manifest.name} was {backbone.origin}; pass it with References(models=[model])"
        )
    if loaded is None:
        loaded = _load_by_name(manifest, weights)
    if loaded.sha256 != backbone.weights_sha256:
        raise WeightsError(
            f"{manifest.name} was built from weights {backbone.weights_sha256[:12]}…, found {loaded.sha256[:12]}…"
            f" ({loaded.origin}); give the right file with --weights FILE, or build the artifact again"
        )
    return replace(loaded, config={**loaded.config, **config_of(manifest.preprocess)})


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
    """Return the user's aggregator of the artifact, found by its digest; None if it is a built-in one."""
    name = manifest.aggregator.name
    if name in AGGREGATORS:
        return None
    for aggregator in given:
        if type(aggregator).__name__ == name and own_sha256(aggregator) == manifest.aggregator.head_sha256:
            return aggregator
    raise HeadError(
        f"the aggregator '{name}' of {manifest.name} is not in this package{' and not among those given' if given else ''};"
        " pass it with References(aggregators=[aggregator])"
    )


def _weights_for(manifest: Manifest, given: Path | None) -> Path | None:
    """Return `given` if the artifact's weights came from a file or are missing in this installation, else None."""
    backbone = manifest.backbone
    absent = backbone.source == "embedded" and embedded_file(backbone.model) is None
    return given if absent or backbone.source == "file" else None


def seed_of(manifest: Manifest) -> int | None:
    """Return the seed of a backbone's random weights; None if they are not random."""
    return int(manifest.backbone.origin.removeprefix("seed ")) if manifest.backbone.source == "random" else None


def _find_head(manifest: Manifest, shape: Shape, given: Sequence[Path]) -> Path | None:
    """Return the file of the artifact's head, found by its digest; None if it has no head."""
    wanted = manifest.aggregator.head_sha256
    if wanted is None:
        return None
    whitened = manifest.embedding.whitening is not None
    for path in (*embedded_heads(manifest.backbone.model).values(), *given):
        own = path.suffix == ".safetensors"
        head = load_head(path) if own else load_published_head(path, shape, manifest.aggregator.token_norm)
        # Two heads of one scorer may differ only in options, which the digest does not include.
        fits = head.whitening is None or head.params == manifest.aggregator.params
        if fits and head.keep == manifest.keep and head.sha256(whitened=whitened) == wanted:
            return path
    raise HeadError(
        f"the head of {manifest.name} (sha256 {wanted[:12]}…) is not part of this package"
        f"{' and not among --head' if given else ''}; give it with --head FILE"
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
