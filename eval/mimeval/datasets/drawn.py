"""Synthetic images drawn from a seed: an object in a cluttered scene, so that selecting patches helps.

The class is the object's outline and pattern. Position, size, colours and scene are random. A mean over all patches
describes mostly the scene.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from mimeval.datasets.dataset import Dataset, Split, digest_of
from mimeval.datasets.pixels import split_of_pixels
from mimruntime.synthetic import draw_scenes

EDGE = 96
"""Edge of the square images, px."""
TRAIN, TEST = 200, 500
"""Number of images per class."""
OUTLINES = ("disc", "square", "triangle", "cross", "ring")
PATTERNS = ("stripes", "checks", "dots", "plain")
CLASSES = tuple(f"{outline}, {pattern}" for outline in OUTLINES for pattern in PATTERNS)
_VERSION = "1"
"""Version of the drawing code; increase it when the images of a seed change."""
_SCENES, _SCENE_EDGE = 24, 192
_SMALLEST, _LARGEST = 0.36, 0.56
"""Width of the object as a share of the image's."""


def open_drawn(*, seed: int = 0) -> Dataset:
    """Return 20 classes, 4,000 training images and 10,000 test images; an image is drawn when loaded."""
    return Dataset("drawn", CLASSES, _split("test", TEST, seed), _split("train", TRAIN, seed))


def draw(label: int, key: tuple[int, ...]) -> np.ndarray:
    """Return one image of class `label`, uint8 (96, 96, 3); the same `key` (seed first) gives the same image."""
    rng = np.random.default_rng(key)
    image = _scene(rng, key[0])
    _paint(image, OUTLINES[label // len(PATTERNS)], PATTERNS[label % len(PATTERNS)], rng)
    return image


def _split(part: str, each: int, seed: int) -> Split:
    labels = np.tile(np.arange(len(CLASSES)), each)
    which = ("train", "test").index(part)
    return split_of_pixels(
        f"drawn/{part}",
        labels,
        lambda row: draw(int(labels[row]), (seed, which, row)),
        digest_of("drawn", _VERSION, part, str(each), str(seed)),
    )


@cache
def _scenes(seed: int) -> np.ndarray:
    return draw_scenes(_SCENES, _SCENE_EDGE, seed)


def _scene(rng: np.random.Generator, seed: int) -> np.ndarray:
    """Return a part of a scene of discs, randomly rotated, mirrored and with permuted colour channels."""
    scene = _scenes(seed)[rng.integers(_SCENES)]
    y, x = rng.integers(0, _SCENE_EDGE - EDGE, 2)
    part = np.rot90(scene[y : y + EDGE, x : x + EDGE], int(rng.integers(4)))[:, :: int(rng.choice((-1, 1)))]
    return np.ascontiguousarray(part[:, :, rng.permutation(3)])


def _paint(image: np.ndarray, outline: str, pattern: str, rng: np.random.Generator) -> None:
    """Paint the object into `image`, upright to within 20 degrees."""
    radius = rng.uniform(_SMALLEST, _LARGEST) * EDGE / 2
    centre = rng.uniform(radius + 1, EDGE - radius - 1, 2)
    angle = rng.uniform(-0.35, 0.35)
    y, x = (np.mgrid[0:EDGE, 0:EDGE] - centre[:, None, None]) / radius
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = _inside(outline, u, v)
    light = _pattern(pattern, u, v)
    dark, bright = rng.uniform(0, 110, 3), rng.uniform(145, 255, 3)
    shade = (dark + light[inside][:, None] * (bright - dark)) * (1 + 0.15 * v[inside][:, None])
    image[inside] = np.clip(shade + rng.normal(0, 4, shade.shape), 0, 255)


def _inside(outline: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the mask of the object; u and v range from -1 to 1 over its bounding box."""
    square = np.maximum(np.abs(u), np.abs(v))
    distance = np.hypot(u, v)
    shapes = {
        "disc": distance < 1,
        "square": square < 0.85,
        "triangle": (v < 0.8) & (np.abs(u) < (v + 1) * 0.55),
        "cross": (np.minimum(np.abs(u), np.abs(v)) < 0.33) & (square < 1),
        "ring": (distance < 1) & (distance > 0.5),
    }
    return np.asarray(shapes[outline])


def _pattern(pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness of the object, 0 to 1."""
    patterns = {
        "stripes": np.sin(9 * v) > 0,
        "checks": (np.sin(7 * u) > 0) ^ (np.sin(7 * v) > 0),
        "dots": np.hypot(np.sin(6 * u), np.sin(6 * v)) < 0.6,
        "plain": (u + 1.5) / 3,
    }
    return np.asarray(np.clip(patterns[pattern], 0, 1), np.float64)
