"""A few images with the selection of a deployed model, for people to look at."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from mimeval.deployments import Deployment
from mimeval.images import Images
from mimeval.report import Example, Sample
from mimruntime.decode import decode
from mimruntime.errors import ImageError

SAMPLES = 4
EXAMPLES = 4
"""Images of each kind: that the model alone gets right, and that its baseline alone does."""
_EDGE = 128
"""Of an example, px."""


def draw_samples(deployment: Deployment, title: str, selection: np.ndarray, images: Images) -> list[Sample]:
    """Return the first images that can be read, with the shares of their patches.

    Args:
        deployment: whose preprocessing shows what the graph was given.
        title: of its model.
        selection: float32 (n, gh, gw), in the order of `images`.
        images: of the evaluation.

    """
    samples = []
    for row in images.test_rows(deployed=True)[:SAMPLES]:
        index = int(images.order[row])
        stream = io.BytesIO()
        Image.fromarray(deployment.embedder.prepare(images.dataset.test.load(index))).save(stream, "PNG")
        samples.append(
            Sample(
                model=title,
                deployment=deployment.name,
                image=images.dataset.test.names[index],
                png=base64.b64encode(stream.getvalue()).decode(),
                shares=np.round(selection[row].astype(float), 6).tolist(),
            )
        )
    return samples


def draw_examples(model: str, baseline: str, right: np.ndarray, base: np.ndarray, images: Images) -> list[Example]:
    """Return images that one of two models gets right and the other does not.

    Args:
        model: a title.
        baseline: another's.
        right: bool (n,), what the model gets right in torch, of the rows that torch saw.
        base: likewise, of the baseline.
        images: of the evaluation.

    """
    examples = []
    rows = images.test_rows(deployed=False)
    for one, other, only in ((model, baseline, right & ~base), (baseline, model, base & ~right)):
        for row in rows[np.flatnonzero(only)[:EXAMPLES]]:
            index = int(images.order[row])
            test, classes = images.dataset.test, images.dataset.classes
            label = classes[int(test.labels[index])] if classes else ""
            try:
                picture = decode(test.load(index))
            except ImageError:  # it was readable a moment ago
                continue
            picture.thumbnail((_EDGE, _EDGE))
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            png = base64.b64encode(stream.getvalue()).decode()
            examples.append(Example(right=one, wrong=other, image=test.names[index], label=label, png=png))
    return examples
