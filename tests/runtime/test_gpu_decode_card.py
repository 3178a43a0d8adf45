"""What a GPU decodes and resizes is what threads do, within a few grey levels, and so are the vectors.

Every test runs on a planted GPU and, with `make gpu-test`, on a card.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from host_gpu import plant
from PIL import Image, ImageDraw

from mimruntime import Embedder
from mimruntime.engines.gpu_name import NO_GPU, gpu_name
from mimruntime.engines.onnxruntime import PROVIDERS

MOST, MEAN, COSINE = 12, 0.6, 0.999
"""Grey levels by which a value and the mean of a picture may differ, and the least cosine of a vector."""


@pytest.fixture(scope="module", params=["planted", pytest.param("card", marks=pytest.mark.gpu)])
def provider(request: pytest.FixtureRequest) -> Iterator[str]:
    """The provider of ONNX Runtime whose machine decodes."""
    if request.param == "planted":
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            yield "cpu"
        return
    if gpu_name() == NO_GPU:
        pytest.skip("no GPU")
    pytest.importorskip("nvidia.nvimgcodec", reason="pip install 'mimexport[gpu-decode]'")
    ort = pytest.importorskip("onnxruntime")
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        pytest.skip("onnxruntime was built without CUDA: pip install onnxruntime-gpu")
    yield "cuda"


def jpeg(image: Image.Image, *, orientation: int = 1, **options: object) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", exif=exif, **options)
    return stream.getvalue()


def drawing(width: int, height: int, seed: int) -> Image.Image:
    """Return coloured shapes on a gradient with grain: edges of colour, where decoders differ most."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, width)[None, :, None] * rng.random(3) + np.linspace(0, 90, height)[:, None, None]
    image = Image.fromarray(np.clip(ramp + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        draw.ellipse(
            (x, y, x + width // 5, y + height // 4), fill=tuple(int(value) for value in rng.integers(0, 256, 3))
        )
    return image


@pytest.fixture(scope="module")
def files(photos: list[Path]) -> list[bytes]:
    """Thirty JPEGs: photographs and drawings in every subsampling, grey, progressive, of odd sizes and orientations."""
    real = [Image.open(path).convert("RGB") for path in photos]
    for image in real:
        image.thumbnail((640, 640))
    found = [jpeg(image, quality=90, subsampling=index % 3) for index, image in enumerate(real)]
    found += [jpeg(real[0], orientation=orientation, quality=92) for orientation in range(1, 9)]
    found += [
        jpeg(drawing(301 + 7 * seed, 233 + 31 * seed, seed), quality=85 + seed, subsampling=seed % 3)
        for seed in range(8)
    ]
    found += [jpeg(real[1], progressive=True), jpeg(real[2].convert("L")), jpeg(real[3], subsampling="4:1:1")]
    return [*found, jpeg(real[4].resize((65, 90))), jpeg(real[5].resize((900, 70))), jpeg(real[6].resize((64, 64)))]


@pytest.fixture(scope="module")
def opened(toy_artifact: Path, provider: str) -> Iterator[Embedder]:
    with Embedder.open(toy_artifact, engine="onnxruntime", provider=provider, batch_size=16, decode="gpu") as embedder:
        yield embedder


def pixels(embedder: Embedder, sources: list[bytes]) -> np.ndarray:
    """Return the pixels that reach the engine, uint8 (n, 64, 64, 3)."""
    decoders = embedder._pipeline._decoding
    found = np.zeros((len(sources), 64, 64, 3), np.uint8)
    coded = decoders.prepare(sources, found)
    with decoders.gpu.batch(found, coded, [None] * len(sources)) as filled:
        assert (filled.count, filled.on_cpu) == (len(sources), 0)
        decoders.gpu.download(filled.address, found)
    return found


def test_thirty_pictures_differ_by_a_few_grey_levels_from_the_cpu(opened: Embedder, files: list[bytes]) -> None:
    ours = pixels(opened, files).astype(int)
    theirs = np.stack([opened.prepare(file) for file in files])
    difference = np.abs(ours - theirs).reshape(len(files), -1)
    assert difference.max() <= MOST, difference.max(1).tolist()
    assert difference.mean(1).max() <= MEAN, difference.mean(1).round(3).tolist()


def test_the_same_files_give_the_same_pixels(opened: Embedder, files: list[bytes]) -> None:
    assert np.array_equal(pixels(opened, files), pixels(opened, files))


def test_vectors_agree_with_the_cpu_and_nothing_took_the_cpu(
    opened: Embedder, provider: str, toy_artifact: Path, files: list[bytes]
) -> None:
    with Embedder.open(toy_artifact, engine="onnxruntime", provider=provider, batch_size=16) as threads:
        theirs = threads.embed(files)
    opened.times.clear()
    cosines = (opened.embed(files) * theirs).sum(axis=1)
    assert cosines.min() >= COSINE
    assert opened.times.on_cpu == 0


def test_an_engine_without_device_pixels_gets_them_on_the_host(
    opened: Embedder, toy_artifact: Path, files: list[bytes]
) -> None:
    with Embedder.open(toy_artifact, engine="onnxruntime", provider="cpu", batch_size=16, decode="gpu") as other:
        np.testing.assert_allclose(other.embed(files), opened.embed(files), atol=1e-4)


def test_what_the_gpu_does_not_decode_takes_the_cpu_and_is_counted(opened: Embedder, photos: list[Path]) -> None:
    photo = Image.open(photos[0]).convert("RGB")
    whole = jpeg(photo)
    sources = [
        whole,
        jpeg(photo.convert("CMYK")),
        whole[: len(whole) // 2],
        str(next(path for path in photos if path.suffix == ".png")),
        np.asarray(photo),
        b"no image",
        whole,
    ]
    opened.times.clear()
    results = list(opened.stream(sources))
    assert [result.vector is None for result in results] == [False, False, True, False, False, True, False]
    assert opened.times.on_cpu == 3
    np.testing.assert_allclose(results[0].vector, results[-1].vector, atol=1e-5)  # of batches of different size


def test_threads_get_their_own_vectors(opened: Embedder, files: list[bytes]) -> None:
    alone = opened.embed(files[8:16])
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(lambda _: opened.embed(files[8:16]), range(8)):
            np.testing.assert_allclose(vectors, alone, atol=1e-4)
