"""The drawn images are the same for a seed and look like photographs to a network."""

import numpy as np

from mimruntime.synthetic import draw_scenes


def test_the_same_seed_gives_the_same_images_and_another_seed_others():
    assert np.array_equal(draw_scenes(2, 64), draw_scenes(2, 64))
    assert not np.array_equal(draw_scenes(1, 64, seed=0), draw_scenes(1, 64, seed=1))


def test_images_of_a_set_differ():
    images = draw_scenes(4, 64).reshape(4, -1).astype(float)
    assert np.abs(np.corrcoef(images) - np.eye(4)).max() < 0.5


def test_the_spectrum_falls_like_that_of_photographs():
    images = draw_scenes(8, 128).mean(-1)
    power = np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2
    row = power[:, 0, 1:32].mean(0)
    slope = np.polyfit(np.log(np.arange(1, 32)), np.log(row), 1)[0]
    assert -3.5 < slope < -1.2  # photographs: about -2; white noise: 0
