"""Synthetic images with the statistics of photographs: occluding, shaded, textured discs drawn from a seed.

This is the 'dead leaves' model: occluding discs of power-law size have the edges, contrasts and 1/f spectrum of natural
images (Lee, Mumford & Huang, IJCV 2001). Uniform noise has none of these and would hide preprocessing errors.
"""

from __future__ import annotations

import numpy as np

_LEAVES = 120
_SMALLEST, _LARGEST = 0.03, 0.45
"""Radii as a share of the image's edge."""


def draw_scenes(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Return `count` images, uint8 (count, size, size, 3); the same seed gives the same images."""
    rng = np.random.default_rng(seed)
    return np.stack([_scene(rng, size) for _ in range(count)])


def _scene(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    image = np.broadcast_to(rng.uniform(40, 215, 3), (size, size, 3)).astype(np.float32)
    # Radii with density r^-3, largest first so that small discs stay visible.
    u = rng.random(_LEAVES)
    radii = np.sort((_SMALLEST**-2 + u * (_LARGEST**-2 - _SMALLEST**-2)) ** -0.5)[::-1]
    for radius in radii:
        cx, cy = rng.random(2)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        angle, frequency = rng.uniform(0, 2 * np.pi), rng.uniform(4, 40)
        along = x[inside] * np.cos(angle) + y[inside] * np.sin(angle)
        shade = rng.uniform(-120, 120) * (along - along.mean() if along.size else along)
        texture = rng.uniform(0, 30) * np.sin(2 * np.pi * frequency * along)
        image[inside] = colour + (shade + texture)[:, None]
    image += rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)
