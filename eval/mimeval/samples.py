"""A few images with the selection of a deployed model, for people to look at."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from mimeval.deployments import Deployment
from mimeval.images import Images
from mimeval.report import Sample

SAMPLES = 4


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
