"""The steps of `mimexport fit`: compute tokens, fit a head, fit its whitening."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mimexport.aggregators import AGGREGATORS, Aggregator, make_aggregator
from mimexport.aggregators.topk import LEARNED
from mimexport.backbone import Backbone
from mimexport.device import choose_device, describe_device, full_precision
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
"""Most images from which two random views are drawn; more improve little and need disk space."""
_COMPARED = 4000
"""Number of images used to compare the token norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """Options of a fit.

    Attributes:
        model: alias, timm name, or a model that `mimexport.loading.load_any` accepts.
        agg: name in `AGGREGATORS`.
        images: training images, decodable sources.
        labels: (n,) integers, or None to learn without labels; topk and whitenings never use them.
        digest: digest of the images; it identifies their stored tokens.
        cache: folder of stored tokens.
        agg_options: options of the aggregator by name; None means not given.
        token_norm: None selects the better norm: as known for the backbone, else as measured on these images. Learned
            aggregators read raw tokens.
        weights: a checkpoint file.
        random_seed: draw the backbone's weights from this seed.
        seed: seed of all random choices of the fit.
        two_view: images from which two random views are drawn; None takes up to `TWO_VIEW_IMAGES` of `images`.
        keep: patches that stay in the encoder, as in `build`; None keeps all.
        keep_by: the rule that chooses them, as in `build`.
        device: a name in `mimexport.device.DEVICES`.
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
    device: str = "auto"


class Fitter:
    """Fits heads on the stored tokens of one backbone.

    Args:
        options: what to fit.
        report: called with one line per step.
        progress: called with a name, the number of images done and the total.

    Attributes:
        two_view: images of which two random views are taken.
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
            raise FitError(f"found {len(options.images)} images, at least 2 are needed; give a folder or zip with more")
        self.options = options
        self.report = report
        self._progress = progress
        device = choose_device(options.device)
        self.report(f"torch computes on {describe_device(device)}")
        self.loaded: LoadedModel = load_any(options.model, weights=options.weights, random_seed=options.random_seed)
        self.backbone = Backbone(self.loaded.model, keep_in(self.loaded.model, options.keep, options.keep_by)).to(
            device
        )
        self._store = self._store_of(self.backbone)
        chosen = np.random.default_rng(options.seed).permutation(len(options.images))[:TWO_VIEW_IMAGES]
        drawn = LazySources(np.sort(chosen).tolist(), options.images.__getitem__)
        self.two_view = drawn if options.two_view is None else options.two_view

    def _store_of(self, backbone: Backbone) -> TokenStore:
        return TokenStore(self.loaded, backbone, preprocess_of(self.loaded.config), self.options.cache, self.report)

    def tokens(self, images: Sequence[Source], digest: str, name: str) -> Tokens:
        """Return the tokens of whole images; compute those not stored yet."""
        self.report(f"tokens of {len(images)} {name} images")
        found = self._store.tokens(images, digest, view=WHOLE, progress=lambda *done: self._progress(name, *done))
        return found.near(self.backbone.device)

    def views(self, count: int | None = None, backbone: Backbone | None = None) -> tuple[Tokens, Tokens]:
        """Return the tokens of two random views of the images in `two_view`.

        Args:
            count: only of so many of them; None takes all.
            backbone: computes them; None takes the fitter's.
        """
        images = self.two_view[:count]
        kept = f", {backbone.keep}" if backbone and backbone.keep else ""
        self.report(f"tokens of two random views of {len(images)} images{kept}")
        store = self._store if backbone is None else self._store_of(backbone)
        digest = f"{self.options.digest}/views"
        first, second = (
            store.tokens(
                images,
                digest,
                view=view,
                seed=self.options.seed,
                progress=lambda *done: self._progress("view", *done),
            )
            for view in (0, 1)
        )
        return first.near(self.backbone.device), second.near(self.backbone.device)

    def for_head(self, **changes: Any) -> Fitter:
        """Return a fitter of another head on the same backbone: `agg`, `agg_options`, `labels` or `token_norm` change."""
        other = copy.copy(self)
        other.options = replace(self.options, **changes)
        return other

    @full_precision()
    def fit(self, whole: Tokens | None = None, views: tuple[Tokens, Tokens] | None = None) -> Head:
        """Return the fitted head with its whitening.

        Args:
            whole: the result of `tokens` for the training images; None computes or reads them.
            views: the result of `views`; likewise.

        Raises:
            FitError, OptionError, ImageError, OutputError: with a one-line message for the user.
        """
        options, kind = self.options, AGGREGATORS[self.options.agg]
        given = {name: value for name, value in options.agg_options.items() if value is not None}
        whole = whole or self.tokens(options.images, options.digest, "training")
        views = views or self.views()
        learns_without_labels = (
            options.labels is None if options.agg == "abmilp"
            else options.agg == "topk" and given.get("score", LEARNED) == LEARNED
        )  # fmt: skip
        norms = self.compare_norms(views, [] if kind.needs_head or learns_without_labels else [(options.agg, given)])
        token_norm = options.token_norm or self._token_norm(norms.get(options.agg))
        final = token_norm == "final"
        if learns_without_labels and final:
            raise OptionError("--token-norm final: learning without labels needs raw tokens; leave --token-norm out")
        figures: dict[str, Any] = {"norms_two_view_recall": norms}
        if learns_without_labels:
            aggregator, recipe, learned = self._learn_score(views, given)
            figures |= learned
        elif kind.needs_head:
            if options.labels is None:
                raise OptionError(
                    f"{options.agg} is learned with labels; --unlabelled fits only abmilp, topk and whitenings"
                )
            self.report("training the head")
            aggregator, recipe = train(
                lambda: make_aggregator(options.agg, self.backbone.shape, given),
                whole, options.labels, self.backbone, final=final, seed=options.seed, report=self.report,
            )  # fmt: skip
        else:
            aggregator = make_aggregator(options.agg, self.backbone.shape, given)
            recipe = {"objective": "whitening only"}
        whitening, recall = self._whiten(aggregator, whole, views, final=final)
        return Head(
            agg=options.agg,
            params=aggregator.params,
            token_norm=token_norm,
            dim=self.backbone.shape.dim,
            grid=self.backbone.shape.grid,
            model=self.loaded.name,
            backbone_sha256=self.loaded.sha256,
            tensors={name: tensor.cpu() for name, tensor in aggregator.state_dict().items()},
            whitening=whitening,
            recipe=recipe | {"whitening": f"two views of {len(self.two_view)} images, shrinkage {SHRINKAGE}"},
            figures=figures | recall,
            keep=self.backbone.keep,
        )

    def _learn_score(
        self, views: tuple[Tokens, Tokens], given: dict[str, Any]
    ) -> tuple[Aggregator, dict[str, Any], dict[str, Any]]:
        """Learn the score of a patch without labels; return the aggregator, the recipe and figures.

        For `topk`, the score and the number of patches are chosen by the recall of one view by the other.
        """
        self.report("fitting the scorer without labels")
        w, recipe = fit_scorer(
            *views,
            seed=self.options.seed,
            device=self.backbone.device,
            progress=lambda *done: self._progress("scorer", *done),
        )
        figures: dict[str, Any] = {}
        if self.options.agg == "topk":
            self.report("comparing scores and numbers of patches")
            ranking = rank_topk(w, views, self.backbone, lambda *done: self._progress("scores", *done))
            figures["two_view_recall"] = [[c.score, c.k, round(c.recall, 4)] for c in ranking]
            best = best_learned(ranking, self.backbone.shape.patches)
            figures["choice"] = explain_choice(ranking, best, given.get("k"))
            given = {"k": str(best.k), **given, "score": LEARNED}
        aggregator = make_aggregator(self.options.agg, self.backbone.shape, given)
        load_scorer(aggregator, w)
        return aggregator, recipe, figures

    @full_precision()
    def vectors(self, head: Head, tokens: Tokens, *, whitened: bool) -> np.ndarray:
        """Return vectors (n, d) float32 of stored tokens, as the graph of `head` computes them before L2 normalisation."""
        aggregator = make_aggregator(head.agg, self.backbone.shape, dict(head.params))
        aggregator.load_state_dict(head.tensors)
        pooled = pool(aggregator.eval(), tokens, self.backbone, final=head.token_norm == "final")
        if whitened and head.whitening is not None:
            with torch.inference_mode():
                pooled = Whitening(*head.whitening).to(pooled.device)(pooled)
        return pooled.cpu().numpy()

    def compare_norms(
        self, views: tuple[Tokens, Tokens], choices: Sequence[tuple[str, Mapping[str, Any]]] = ()
    ) -> dict[str, dict[TokenNorm, float]]:
        """Return the recall@1 between two views of an image with each token norm, for [cls] and for `choices`.

        Args:
            views: tokens of two views; the first `_COMPARED` images are used.
            choices: names of aggregators that learn nothing, with their options.
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
        """Return the aggregator's token norm: as known for the backbone, else the one with the higher recall."""
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
        mean, matrix = fit_two_view(pool(aggregator, whole, self.backbone, final=final), first, second, SHRINKAGE)
        return (mean.cpu(), matrix.cpu()), {"two_view_recall_at_1": round(whitened_recall(first, second), 4)}
