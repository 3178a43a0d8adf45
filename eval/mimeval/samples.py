"""Choose images for the page: selections of a deployed model, and images on which two models differ."""

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
"""Number of images of each kind: those that only the model gets right, and those that only its baseline does."""
_EDGE = 128
"""Edge of an example in px."""


def draw_samples(deployment: Deployment, title: str, selection: np.ndarray, images: Images) -> list[Sample]:
    """Return the first readable images with the weights of their patches.

    Args:
        deployment: the deployment, whose preprocessing gives the graph's input.
        title: title of its model.
        selection: float32 (n, gh, gw), in the order of `images`.
        images: the images of the evaluation.

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
    """Return images that only one of two models classifies correctly.

    Args:
        model: title of the model.
        baseline: title of its baseline.
        right: correctness of the model in torch, bool (n,), for all rows in torch.
        base: correctness of the baseline, bool (n,).
        images: the images of the evaluation.

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
            except ImageError:  # the image was readable before
                continue
            picture.thumbnail((_EDGE, _EDGE))
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            png = base64.b64encode(stream.getvalue()).decode()
            examples.append(Example(right=one, wrong=other, image=test.names[index], label=label, png=png))
    return examples
