"""Group artifacts into models, one per embedding space with its precisions, and find their baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from mimruntime.artifact import Artifact
from mimruntime.errors import OptionError
from mimruntime.manifest import Manifest, Preprocess, TokenNorm

BASELINES = ("cls", "mean")
"""Aggregators from which gains are counted: [cls], or the mean if a backbone has no [cls]."""
Family = tuple[str, Preprocess, bool]


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The artifacts of one embedding space.

    Attributes:
        title: the shortest name of its artifacts, or the path if another model has the same name.
        space: the manifests' `embedding_space`.
        artifacts: its artifacts, one per precision.
        baseline: title of the model its gain is counted from; None for a baseline itself.
        judged: whether its gain is judged; False for a baseline.

    """

    title: str
    space: str
    artifacts: tuple[Artifact, ...]
    baseline: str | None
    judged: bool

    @property
    def family(self) -> Family:
        """The properties that models must share to be compared."""
        return family_of(self.artifacts[0].manifest)

    @property
    def token_norm(self) -> TokenNorm:
        """The norm of the tokens that it aggregates."""
        return self.artifacts[0].manifest.aggregator.token_norm


def group_models(artifacts: Sequence[Artifact], baselines: Sequence[Artifact]) -> list[Model]:
    """Return the models of `artifacts` and `baselines`, baselines first.

    A backbone may have two baselines, one per token norm. Gains are counted from the first until `baselines.choose` knows
    the stronger.

    Raises:
        OptionError: two artifacts have the same space and precision; or an artifact has no baseline of its backbone and
            whitening, or two that differ in more than the token norm.

    """
    spaces: dict[str, dict[str, Artifact]] = {}
    for artifact in (*baselines, *artifacts):
        by_precision = spaces.setdefault(artifact.manifest.embedding_space, {})
        precision = artifact.manifest.graph.precision
        known = by_precision.setdefault(precision, artifact)
        if known.path.resolve() != artifact.path.resolve():
            raise OptionError(
                f"{known.path} and {artifact.path} are the same space in the same precision ({precision}); give one"
            )
    titles = _titles(spaces)
    families: dict[Family, dict[str, str]] = {}
    for artifact in baselines:
        manifest = artifact.manifest
        known_spaces = families.setdefault(family_of(manifest), {})
        known_spaces.setdefault(manifest.embedding_space, manifest.aggregator.name)
        if len(known_spaces) > len(get_args(TokenNorm)) or len(set(known_spaces.values())) > 1:
            raise OptionError(f"{artifact.path} is a second baseline of its backbone; give one alone by --baseline")
    models = []
    for space, found in spaces.items():
        first = next(iter(found.values()))
        family = families.get(family_of(first.manifest))
        if family is None:
            raise OptionError(f"no baseline for {first.path}: give the artifact of [cls] with --baseline")
        itself = space in family
        models.append(
            Model(
                titles[space], space, tuple(found.values()), None if itself else titles[next(iter(family))], not itself
            )
        )
    return sorted(models, key=lambda model: model.baseline is not None)


def find_baselines(
    artifacts: Sequence[Artifact], given: Sequence[Artifact] = ()
) -> tuple[list[Artifact], list[Artifact]]:
    """Return the baselines, and the artifacts without a baseline of their family and precision.

    A backbone's baseline is the given one, with any aggregator; else [cls]; or the mean, if it has no [cls].

    Raises:
        OptionError: a baseline was given, but not in the precision of an artifact.

    """
    found, lacking = list(given), []
    chosen = {family_of(artifact.manifest) for artifact in given}
    for artifact in artifacts:
        if family_of(artifact.manifest) in chosen:
            continue
        manifest = artifact.manifest
        plain = BASELINES[0] if manifest.backbone.reads_cls else BASELINES[1]
        if manifest.keep is None and manifest.aggregator.name == plain:
            found.append(artifact)
    have = {(family_of(artifact.manifest), artifact.manifest.graph.precision) for artifact in found}
    for artifact in artifacts:
        key = (family_of(artifact.manifest), artifact.manifest.graph.precision)
        if key not in have and key[0] in chosen:
            raise OptionError(f"{artifact.path} is {key[1]}, and no --baseline is; give one in that precision too")
        if key not in have:
            have.add(key)
            lacking.append(artifact)
    return found, lacking


def family_of(manifest: Manifest) -> Family:
    """Return the properties that artifacts must share to be compared: weights, preprocessing, and whether they are whitened."""
    return manifest.backbone.weights_sha256, manifest.preprocess, manifest.embedding.whitening is not None


def labels_of(models: Sequence[Model]) -> dict[str, str]:
    """Return the display names of [cls] models: [cls], with its token norm if there are two."""
    manifests = {model.title: model.artifacts[0].manifest for model in models}
    plain = {
        title: "whitened [cls]" if manifest.embedding.whitening else "[cls]"
        for title, manifest in manifests.items()
        if manifest.aggregator.name == BASELINES[0] and manifest.keep is None
    }
    many = Counter(plain.values())
    labels = {
        title: label if many[label] == 1 else f"{label} ({manifests[title].aggregator.token_norm})"
        for title, label in plain.items()
    }
    return {title: label for title, label in labels.items() if list(labels.values()).count(label) == 1}


def _titles(spaces: Mapping[str, Mapping[str, Artifact]]) -> dict[str, str]:
    """Return a unique title for every space, by which scores are stored."""
    shortest = {
        space: min(found.values(), key=lambda artifact: len(artifact.manifest.name)) for space, found in spaces.items()
    }
    many = Counter(artifact.manifest.name for artifact in shortest.values())
    return {
        space: artifact.manifest.name if many[artifact.manifest.name] == 1 else str(artifact.path)
        for space, artifact in shortest.items()
    }
