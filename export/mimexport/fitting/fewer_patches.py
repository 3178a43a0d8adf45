"""What a head's vectors would lose if fewer patches entered the encoder, measured on the images of its fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.fitting.fitter import Fitter
from mimexport.fitting.stored_features import pool
from mimexport.fitting.tokens import Tokens
from mimexport.fitting.unlabelled import two_view_recall
from mimexport.heads import Head
from mimexport.keep import keep_in
from mimexport.keep_choices import EVERYTHING, KeepChoice, share_of_operations
from mimexport.loading import load_any
from mimexport.precision_loss import neighbour_overlap
from mimexport.whitening import Whitening

KEEPS = ("75%", "50%", "25%")
MOST_IMAGES, LEAST_IMAGES = 1000, 50
_PART = 4
"""One image of four is compared, so that this takes a fraction of the fit's time."""


def compared_images(fitter: Fitter) -> int:
    """Return the number of images that `compare_on_views` compares."""
    count = len(fitter.two_view)
    return min(count, max(LEAST_IMAGES, min(MOST_IMAGES, count // _PART)))


def compare_on_views(fitter: Fitter, head: Head, keeps: Sequence[str] = KEEPS) -> list[KeepChoice]:
    """Return how near a head's vectors stay to those of all patches, without speeds; everything comes first.

    Recall is that of two random views; neighbours are those of the first view.

    Args:
        fitter: fitted the head, on all patches.
        head: its scorer and whitening are used as they are.
        keeps: schedules as `build` takes them.

    Raises:
        OptionError: the backbone cannot drop patches.

    """
    count = compared_images(fitter)
    full = [_vectors(head, view[slice(0, count)], fitter.backbone) for view in fitter.views()]
    choices = []
    for keep in (EVERYTHING, *keeps):
        if keep == EVERYTHING:
            backbone, views = fitter.backbone, full
        else:
            backbone = backbone_keeping(fitter, keep)
            views = [_vectors(head, tokens, backbone) for tokens in fitter.views(count, backbone)]
        choice = KeepChoice(keep, share_of_operations(backbone), {}, two_view_recall(*views))
        choice.neighbours = neighbour_overlap(views[0].numpy(), full[0].numpy())
        choices.append(choice)
    return choices


def backbone_keeping(fitter: Fitter, keep: str) -> Backbone:
    """Return another backbone of a fitter's weights that drops patches, by the rule of its options.

    Raises:
        OptionError: a schedule that does not fit, or a backbone that cannot drop patches.

    """
    options = fitter.options
    loaded = load_any(options.model, weights=options.weights, random_seed=options.random_seed)
    return Backbone(loaded.model, keep_in(loaded.model, keep, options.keep_by)).to(fitter.backbone.device)


def _vectors(head: Head, tokens: Tokens, backbone: Backbone) -> Tensor:
    """Return a head's unit vectors (n, D') of stored tokens; a count of patches becomes a share of what is left."""
    whole = head.grid[0] * head.grid[1]
    params = {name: f"{100 * int(value) / whole}%" if name == "k" else value for name, value in head.params.items()}
    aggregator = make_aggregator(head.agg, backbone.shape, params)
    aggregator.load_state_dict(head.tensors)
    pooled = pool(aggregator.eval(), tokens, backbone, final=head.token_norm == "final")
    if head.whitening is not None:
        with torch.inference_mode():
            pooled = Whitening(*head.whitening).to(pooled.device)(pooled)
    return torch.nn.functional.normalize(pooled, dim=1).cpu()
