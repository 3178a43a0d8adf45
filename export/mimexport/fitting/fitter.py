"""The flow of `mimexport fit`: tokens, a head, its whitening, a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mimexport.aggregators import AGGREGATORS, Aggregator, make_aggregator
from mimexport.aggregators.topk import LEARNED
from mimexport.backbone import Backbone
from mimexport.errors import FitError
from mimexport.fitting.labelled import train
from mimexport.fitting.ranking import best_learned, explain_choice, load_scorer, rank_topk, whitened_recall
from mimexport.fitting.sources import LazySources
from mimexport.fitting.stored_features import pool
from mimexport.fitting.tokens import Tokens, TokenStore
from mimexport.fitting.unlabelled import SHRINKAGE, fit_scorer, two_view_recall
from mimexport.fitting.views import WHOLE
from mimexport.heads import Head
from mimexport.keep import keep_in
from mimexport.known_losses import read_measured
from mimexport.loaded_model import LoadedModel
from mimexport.loading import load_any
from mimexport.norms import known_norm
from mimexport.preprocessing import preprocess_of
from mimexport.whitening import Whitening, fit_two_view
from mimruntime.decode import Source
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import TokenNorm

TWO_VIEW_IMAGES = 16_000
"""Images of which two random views are taken, at most: more bring little and cost disk."""
_COMPARED = 4000
"""Images whose views tell which token norm is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What to fit, on what.

    Attributes:
        model: alias or timm name, or a model as `mimexport.loading.load_any` takes it.
        agg: name in `AGGREGATORS`.
        images: training images, decodable sources.
        labels: (n,) integers, or None to learn without.
        digest: of the images, so that stored tokens are not taken for those of others.
        cache: folder for tokens.
        agg_options: of the aggregator, by name; None stands for 'not given'.
        token_norm: None takes what is known to be better on the backbone, else what these images say; what is learned takes
            raw tokens.
        weights: a checkpoint file.
        random_seed: draw the backbone's weights from this seed.
        seed: of everything random here.
        two_view: images of which two random views are taken; None draws up to `TWO_VIEW_IMAGES` of `images`.
        keep: patches that stay in the encoder, as `build` takes it; None keeps all.
        keep_by: likewise, the rule.
    """

    model: str | nn.Module | LoadedModel
    agg: str
    images: Sequence[Source]
    labels: np.ndarray | None
    digest: str
    cache: Path
    agg_options: Mapping[str, Any] = field(default_factory=dict)
    token_norm: TokenNorm | None = None
    weights: Path | None = None
    random_seed: int | None = None
    seed: int = 0
    two_view: Sequence[Source] | None = None
    keep: str | None = None
    keep_by: str | None = None


class Fitter:
    """A backbone, its stored tokens, and what is learned from them.

    Args:
        options: what to fit.
        report: called with one line per step.
        progress: called with a name, images done and in all.
    """

    def __init__(
        self,
        options: FitOptions,
        report: Callable[[str], None] = lambda line: None,
        progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    ) -> None:
        if options.agg not in AGGREGATORS:
            raise UnknownNameError("aggregator", options.agg, AGGREGATORS)
        if len(options.images) < 2:
            raise FitError(f"there are {len(options.images)} images to learn from; give a folder or zip with more")
        self.options = options
        self.report = report
        self._progress = progress
        self.loaded: LoadedModel = load_any(options.model, weights=options.weights, random_seed=options.random_seed)
        self.backbone = Backbone(self.loaded.model, keep_in(self.loaded.model, options.keep, options.keep_by))
        preprocess = preprocess_of(self.loaded.config)
        self._store = TokenStore(self.loaded, self.backbone, preprocess, options.cache, report)
        chosen = np.random.default_rng(options.seed).permutation(len(options.images))[:TWO_VIEW_IMAGES]
        drawn = LazySources(np.sort(chosen).tolist(), options.images.__getitem__)
        self._two_view = drawn if options.two_view is None else options.two_view

    def tokens(self, images: Sequence[Source], digest: str, name: str) -> Tokens:
        """Return the stored tokens of whole images, computing what is missing."""
        self.report(f"tokens of {len(images)} {name} images")
        return self._store.tokens(images, digest, view=WHOLE, progress=lambda *done: self._progress(name, *done))

    def views(self) -> tuple[Tokens, Tokens]:
        """Return the stored tokens of two random views of up to `TWO_VIEW_IMAGES` training images."""
        self.report(f"tokens of two random views of {len(self._two_view)} images")
        digest = f"{self.options.digest}/views"
        first, second = (
            self._store.tokens(
                self._two_view,
                digest,
                view=view,
                seed=self.options.seed,
                progress=lambda *done: self._progress("view", *done),
            )
            for view in (0, 1)
        )
        return first, second

    def fit(self) -> Head:
        """Return the fitted head, with its whitening.

        Raises:
            FitError, OptionError, ImageError, OutputError: each with one line for the user.
        """
        options, kind = self.options, AGGREGATORS[self.options.agg]
        given = {name: value for name, value in options.agg_options.items() if value is not None}
        if given.get("score") == LEARNED and options.labels is not None:
            raise OptionError(
                f"{options.agg}'s score is learned without labels; add --unlabelled, or leave --score away"
            )
        whole = self.tokens(options.images, options.digest, "training")
        views = self.views()
        learned_score = options.agg == "abmilp" or (options.agg == "topk" and given.get("score", LEARNED) == LEARNED)
        learns_without_labels = learned_score and options.labels is None
        norms = self.compare_norms(views, [] if kind.needs_head or learned_score else [(options.agg, given)])
        token_norm = options.token_norm or self._token_norm(norms.get(options.agg))
        final = token_norm == "final"
        if learns_without_labels and final:
            raise OptionError("learning without labels scores raw tokens; leave --token-norm away")
        figures: dict[str, Any] = {"norms_two_view_recall": norms}
        if learns_without_labels:
            self.report("fitting the scorer without labels")
            w, recipe = fit_scorer(*views, seed=options.seed, progress=lambda *done: self._progress("scorer", *done))
            if options.agg == "topk":
                self.report("comparing scores and numbers of patches")
                ranking = rank_topk(w, views, self.backbone, lambda *done: self._progress("scores", *done))
                figures["two_view_recall"] = [[c.score, c.k, round(c.recall, 4)] for c in ranking]
                best = best_learned(ranking, self.backbone.shape.patches)
                figures["choice"] = explain_choice(ranking, best, given.get("k"))
                given = {"k": str(best.k), **given, "score": LEARNED}
            aggregator = make_aggregator(options.agg, self.backbone.shape, given)
            load_scorer(aggregator, w)
        elif kind.needs_head:
            if options.labels is None:
                raise OptionError(
                    f"{options.agg} is learned with labels; --unlabelled fits abmilp, topk and whitenings"
                )
            self.report("training the head")
            aggregator, recipe = train(
                lambda: make_aggregator(options.agg, self.backbone.shape, given),
                whole, options.labels, self.backbone, final=final, seed=options.seed, report=self.report,
            )  # fmt: skip
        else:
            aggregator, recipe = (
                make_aggregator(options.agg, self.backbone.shape, given),
                {"objective": "whitening only"},
            )
        whitening, recall = self._whiten(aggregator, whole, views, final=final)
        return Head(
            agg=options.agg,
            params=aggregator.params,
            token_norm=token_norm,
            dim=self.backbone.shape.dim,
            grid=self.backbone.shape.grid,
            model=self.loaded.name,
            backbone_sha256=self.loaded.sha256,
            tensors=dict(aggregator.state_dict()),
            whitening=whitening,
            recipe=recipe | {"whitening": f"two views of {len(self._two_view)} images, shrinkage {SHRINKAGE}"},
            figures=figures | recall,
            keep=self.backbone.keep,
        )

    def vectors(self, head: Head, tokens: Tokens, *, whitened: bool) -> np.ndarray:
        """Return the vectors (n, d) float32 that the graph of `head` gives for stored tokens, without L2."""
        aggregator = make_aggregator(head.agg, self.backbone.shape, dict(head.params))
        aggregator.load_state_dict(head.tensors)
        pooled = pool(aggregator.eval(), tokens, self.backbone, final=head.token_norm == "final")
        if whitened and head.whitening is not None:
            with torch.inference_mode():
                pooled = Whitening(*head.whitening)(pooled)
        return pooled.numpy()

    def compare_norms(
        self, views: tuple[Tokens, Tokens], choices: Sequence[tuple[str, Mapping[str, Any]]] = ()
    ) -> dict[str, dict[TokenNorm, float]]:
        """Return how well two views of an image find each other by tokens of either norm: for [cls], and for `choices`.

        Args:
            views: tokens of two views; the first `_COMPARED` count.
            choices: aggregators that learn nothing, with their options.
        """
        parts = [view[slice(0, _COMPARED)] for view in views]
        named: dict[str, Mapping[str, Any]] = {"cls": {}} if self.backbone.shape.has_cls else {}
        named |= dict(choices)
        found: dict[str, dict[TokenNorm, float]] = {}
        for agg, given in named.items():
            aggregator = make_aggregator(agg, self.backbone.shape, dict(given))
            found[agg] = {
                norm: round(
                    two_view_recall(*(pool(aggregator, part, self.backbone, final=norm == "final") for part in parts)),
                    4,
                )
                for norm in get_args(TokenNorm)
            }
        return found

    def _token_norm(self, recalls: Mapping[TokenNorm, float] | None) -> TokenNorm:
        """Return the norm for an aggregator: as known for the backbone, else by the `recalls` of these images."""
        agg, loaded = self.options.agg, self.loaded
        known = known_norm(agg, loaded.timm_name, loaded.sha256, read_measured())
        if known is not None and recalls is not None:
            return known.norm
        return AGGREGATORS[agg].token_norm if recalls is None else max(recalls, key=lambda norm: recalls[norm])

    def _whiten(
        self, aggregator: Aggregator, whole: Tokens, views: tuple[Tokens, Tokens], *, final: bool
    ) -> tuple[tuple[Tensor, Tensor], dict[str, float]]:
        self.report("fitting the whitening")
        first, second = (pool(aggregator, view, self.backbone, final=final) for view in views)
        whitening = fit_two_view(pool(aggregator, whole, self.backbone, final=final), first, second, SHRINKAGE)
        return whitening, {"two_view_recall_at_1": round(whitened_recall(first, second), 4)}


def plain_head(agg: str, fitter: Fitter, token_norm: TokenNorm) -> Head:
    """Return the head of an aggregator that learns nothing, without whitening: a rival to compare with."""
    aggregator = make_aggregator(agg, fitter.backbone.shape, {})
    return Head(
        agg=agg, params=aggregator.params, token_norm=token_norm, dim=fitter.backbone.shape.dim,
        grid=fitter.backbone.shape.grid, model=fitter.loaded.name, backbone_sha256=fitter.loaded.sha256, tensors={},
        keep=fitter.backbone.keep,
    )  # fmt: skip
