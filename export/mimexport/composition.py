"""Compose one network from weights, a head and an aggregator."""

from __future__ import annotations

import copy
import hashlib
import inspect
from dataclasses import replace
from pathlib import Path

from mimexport.aggregators import AGGREGATORS, Aggregator, make_aggregator
from mimexport.backbone import Backbone, Shape
from mimexport.embedding_model import EmbeddingModel
from mimexport.errors import HeadError
from mimexport.families import family_of
from mimexport.heads import Head, check_fit, check_kept, load_head, shipped_heads
from mimexport.keep import keep_in
from mimexport.loaded_model import LoadedModel, model_sha256
from mimexport.norms import default_norm
from mimexport.options import BuildOptions
from mimexport.published_heads import fetch_ep_head, load_published_head
from mimexport.whitening import Whitening
from mimruntime.errors import OptionError, UnknownNameError
from mimruntime.manifest import Keep, TokenNorm


def compose(
    loaded: LoadedModel, options: BuildOptions, backbone: Backbone | None = None
) -> tuple[EmbeddingModel, Head | None]:
    """Return the network of `options`, in float32 and evaluation mode, and its head.

    Args:
        loaded: the weights; they become part of the network.
        options: the build options.
        backbone: a backbone already created from `loaded`, to share it; None creates one.

    Raises:
        OptionError: an option does not fit the backbone.
        HeadError: a head is missing or does not fit.
    """
    shape = backbone.shape if backbone else family_of(loaded.model).shape(loaded.model)
    options = _with_shipped_whitening(loaded, shape, options)
    if isinstance(options.agg, Aggregator):
        head = options.head if isinstance(options.head, Head) else None
    else:
        head = choose_head(loaded, shape, options)
    backbone = backbone or Backbone(loaded.model, _keep(loaded, options, head))
    if head is not None:
        check_kept(head, backbone.keep)
    if isinstance(options.agg, Aggregator):
        aggregator = _own(options.agg, backbone.shape)
    else:
        aggregator = _named(loaded, backbone.shape, options, head)
    if options.with_selection and not aggregator.has_weights:
        having = ", ".join(name for name, kind in AGGREGATORS.items() if kind.has_weights)
        raise OptionError(
            f"--with-selection: aggregator {options.agg_name} does not weight patches; use one of: {having}"
        )
    config = loaded.config
    model = EmbeddingModel(
        backbone,
        aggregator,
        options.token_norm or (head.token_norm if head else _default_norm(options.agg, loaded, aggregator)),
        config["mean"],
        config["std"],
        whitening=_whitening(head, options),
        with_selection=options.with_selection,
    )
    return model.eval(), head


def _with_shipped_whitening(loaded: LoadedModel, shape: Shape, options: BuildOptions) -> BuildOptions:
    """Return the options with the whitening of a shipped head, where `whiten_by_default` asks for it and one fits."""
    shipped = shipped_heads(loaded.name, loaded.source, loaded.sha256)
    if (
        not options.whiten_by_default
        or options.whiten is not None
        or not isinstance(options.agg, str)
        or options.agg == "cls"
        or options.keep is not None
        or not (options.head is None or options.head in shipped)
    ):
        return options
    whitened = replace(options, whiten=0)
    try:
        head = choose_head(loaded, shape, whitened)
        if head is None or head.whitening is None or _named(loaded, shape, options, head).params != head.params:
            return options
    except (HeadError, OptionError):  # of another size, norm or k: what is wrong is said where it is asked for
        return options
    return whitened


def _keep(loaded: LoadedModel, options: BuildOptions, head: Head | None) -> Keep | None:
    """Return which patches stay: as asked for, or else as in the encoder that the head was fitted on."""
    fitted = None if head is None else head.keep
    if options.keep is None and fitted is not None:
        return fitted
    rule = options.keep_by or (None if fitted is None else fitted.by)
    return keep_in(loaded.model, options.keep, rule)


def _named(loaded: LoadedModel, shape: Shape, options: BuildOptions, head: Head | None) -> Aggregator:
    """Return an aggregator from the table, with the head's tensors loaded."""
    given = {name: value for name, value in options.agg_options.items() if value is not None}
    aggregator = make_aggregator(options.agg_name, shape, (head.params if head else {}) | given)
    if head is not None:
        fill(aggregator, head)
    elif any(True for _ in aggregator.parameters()):
        raise HeadError(
            f"aggregator {options.agg_name} needs a head, and this package has none for {loaded.name}; fit one:"
            f" mimexport fit --model {loaded.name} --agg {options.agg_name}{_kept(options)} --data FOLDER"
            " --out head.safetensors, then build with --head head.safetensors"
        )
    return aggregator


def _kept(options: BuildOptions) -> str:
    """Return what was asked of kept patches, for a command line of `fit`."""
    given = {"--keep": options.keep, "--keep-by": options.keep_by}
    return "".join(f" {name} {value}" for name, value in given.items() if value is not None)


def _own(aggregator: Aggregator, shape: Shape) -> Aggregator:
    """Return a copy of the user's aggregator, set up for this backbone."""
    own = copy.deepcopy(aggregator).eval().requires_grad_(False)
    own.fit_to(shape)
    if own.needs_cls and not shape.has_cls:
        raise OptionError(
            f"aggregator {type(own).__name__} reads [cls], which this backbone does not have; choose another --model"
        )
    return own


def own_sha256(aggregator: Aggregator) -> str:
    """Return the digest of a user's aggregator: code, tensors and plain attributes. It is part of the embedding space.

    Raises:
        OptionError: the source code cannot be read.

    """
    kind = type(aggregator)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError) as error:
        raise OptionError(
            f"the source code of {kind.__name__} cannot be read, but it is part of the embedding space; define the class in"
            " a file"
        ) from error
    return hashlib.sha256(f"{source}{model_sha256(aggregator)}".encode()).hexdigest()


def _default_norm(agg: str | Aggregator, loaded: LoadedModel, aggregator: Aggregator) -> TokenNorm:
    """Return the default token norm: of the class for a user's aggregator, else by aggregator and backbone."""
    return default_norm(agg, loaded.timm_name, loaded.sha256) if isinstance(agg, str) else aggregator.token_norm


def choose_head(loaded: LoadedModel, shape: Shape, options: BuildOptions) -> Head | None:
    """Return the head of `options`, or this package's own if one is needed; None if neither. Check that it fits the backbone.

    Raises:
        UnknownNameError: the name is neither a file nor a head of this package.
        HeadError: the head is missing or does not fit.
    """
    shipped = shipped_heads(loaded.name, loaded.source, loaded.sha256)
    learned = AGGREGATORS[options.agg_name].needs_head or options.agg_options.get("score") == "learned"
    name = options.head
    if name is None:
        name = "topk-learned" if options.agg == "topk" and learned else options.agg_name
        if name not in shipped or not (learned or options.whiten is not None):
            return None
    if isinstance(name, Head):
        head, name = name, "in memory"
    elif name in shipped:
        head = load_head(shipped[name])
    elif name.startswith("hub:"):
        head = load_published_head(fetch_ep_head(name.removeprefix("hub:")), shape, options.token_norm)
    elif shipped and Path(name).name == name.partition(".")[0] and not Path(name).exists():
        raise UnknownNameError(f"head of {loaded.name}", name, shipped)
    elif Path(name).suffix == ".safetensors" or not Path(name).suffix:
        head = load_head(Path(name))
    else:
        head = load_published_head(Path(name), shape, options.token_norm)
    if head.agg != options.agg_name:
        raise HeadError(
            f"the head '{name}' is for aggregator {head.agg}, but --agg is {options.agg_name}; change one of them"
        )
    check_fit(head, loaded, shape, options.token_norm)
    return head


def fill(aggregator: Aggregator, head: Head) -> None:
    """Load all tensors of the head into the aggregator.

    Raises:
        HeadError: names or shapes of tensors differ, or the whitening was fitted with other options.
    """
    try:
        aggregator.load_state_dict(head.tensors)
    except RuntimeError as error:
        raise HeadError(f"the head does not fit aggregator {head.agg}: {' '.join(str(error).split())[:200]}") from error
    if head.whitening is not None and aggregator.params != head.params:
        raise HeadError(
            f"the head was fitted with {head.params}, but the aggregator has {aggregator.params}; fit another head"
        )


def _whitening(head: Head | None, options: BuildOptions) -> Whitening | None:
    if options.whiten is None:
        return None
    if head is None or head.whitening is None:
        raise HeadError(
            f"--whiten needs a head with a whitening for {options.model_name} and {options.agg_name}; fit one: mimexport fit"
            f" --model {options.model_name} --agg {options.agg_name}{_kept(options)} --unlabelled --data FOLDER"
            " --out head.safetensors"
        )
    mean, matrix = head.whitening
    if options.whiten > matrix.shape[1]:
        raise OptionError(f"--whiten {options.whiten}: the whitening has only {matrix.shape[1]} dimensions; take fewer")
    return Whitening(mean, matrix, options.whiten or None)
