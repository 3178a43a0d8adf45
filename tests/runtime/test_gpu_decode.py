"""Decoding on a GPU whose memory and nvImageCodec are planted: who decodes what, what is counted, what fails and how."""

from __future__ import annotations

import ctypes
import inspect
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from host_gpu import STREAM, HostMemory, PlantedCodec, plant
from hostile_images import segment
from PIL import Image

from mimruntime import Embedder
from mimruntime.bench.bench import bench
from mimruntime.cli.embed import embed_command
from mimruntime.decode import MAX_PIXELS
from mimruntime.engines.onnxruntime import OnnxRuntimeEngine
from mimruntime.engines.trt import cuda
from mimruntime.errors import EngineError, MissingExtraError, OptionError, UnknownNameError
from mimruntime.gpu import coded, decoder, opening
from mimruntime.gpu.codec import JpegCodec, codec_library

CLOSE = 1e-3
"""The GPU resizes as Pillow does, the threads with `mimexport[fast]` by one grey level otherwise in few values."""


def jpeg(image: Image.Image, *, orientation: int = 1, **options: object) -> bytes:
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", exif=exif, **options)
    return stream.getvalue()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[PlantedCodec, list[HostMemory]]:
    return plant(monkeypatch)


@pytest.fixture
def codec(planted: tuple[PlantedCodec, list[HostMemory]]) -> PlantedCodec:
    return planted[0]


@pytest.fixture(scope="module")
def picture(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB").resize((160, 107))


@pytest.fixture(scope="module")
def threads(toy_artifact: Path) -> Iterator[Embedder]:
    with Embedder.open(toy_artifact, engine="onnxruntime", batch_size=4, check_reference=False) as embedder:
        yield embedder


@pytest.fixture
def gpu(codec: PlantedCodec, toy_artifact: Path) -> Iterator[Embedder]:
    with opened(toy_artifact) as embedder:
        yield embedder


def opened(artifact: Path, **options: object) -> Embedder:
    chosen = {"engine": "onnxruntime", "batch_size": 4, "decode": "gpu", "check_reference": False}
    return Embedder.open(artifact, **chosen | options)


class TestWhoDecodes:
    def test_pictures_of_every_orientation_are_those_of_the_threads(
        self, gpu: Embedder, codec: PlantedCodec, threads: Embedder, picture: Image.Image
    ) -> None:
        files = [jpeg(picture, orientation=orientation) for orientation in range(1, 9)]
        np.testing.assert_allclose(gpu.embed(files), threads.embed(files), atol=CLOSE)
        assert sorted(codec.decoded) == [4, 4]
        assert (gpu.times.on_gpu, gpu.times.on_cpu) == (8, 0)
        assert "decoded by the GPU 8, by the CPU 0" in gpu.times.describe(1)

    def test_what_no_gpu_decodes_as_the_cpu_does_takes_the_cpu_and_is_counted(
        self, gpu: Embedder, codec: PlantedCodec, threads: Embedder, picture: Image.Image, tmp_path: Path
    ) -> None:
        whole = jpeg(picture)
        (tmp_path / "picture.png").write_bytes(png(picture))
        on_cpu = [
            png(picture),
            tmp_path / "picture.png",
            jpeg(picture.convert("CMYK")),
            (
                red_green_blue := jpeg(picture, keep_rgb=True)
            ),  # not YCbCr, by its Adobe marker and by the names of its components
            without(red_green_blue, b"\xff\xee\x00\x0eAdobe"),
            whole[:2] + segment(0xEE, b"Adobe" + bytes(7)) + whole[2:],  # not YCbCr, by another marker
            np.asarray(picture),
            picture,
        ]
        on_gpu = [whole, jpeg(picture.convert("L")), jpeg(picture, progressive=True), bytearray(whole)]
        mixed = [*on_cpu[:3], *on_gpu[:2], *on_cpu[3:], *on_gpu[2:]]
        np.testing.assert_allclose(gpu.embed(mixed), threads.embed(mixed), atol=CLOSE)
        assert (gpu.times.on_gpu, gpu.times.on_cpu) == (4, 8)

    def test_a_file_that_the_gpu_refuses_is_decoded_by_the_cpu(
        self, gpu: Embedder, codec: PlantedCodec, threads: Embedder, picture: Image.Image
    ) -> None:
        files = [jpeg(picture, quality=quality) for quality in (70, 80, 90)]
        codec.refused = {files[1]}
        np.testing.assert_allclose(gpu.embed(files), threads.embed(files), atol=CLOSE)
        assert (gpu.times.on_gpu, gpu.times.on_cpu) == (2, 1)

    def test_a_picture_of_another_shape_than_its_header_says_is_decoded_by_the_cpu(
        self, gpu: Embedder, threads: Embedder, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = jpeg(picture)
        monkeypatch.setattr("host_gpu._pixels", lambda _: np.zeros((106, 160, 3), np.uint8))
        np.testing.assert_allclose(gpu.embed([file]), threads.embed([file]), atol=CLOSE)
        assert (gpu.times.on_gpu, gpu.times.on_cpu) == (0, 1)

    def test_large_files_and_large_pictures_take_the_cpu(
        self, codec: PlantedCodec, toy_artifact: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Files of batches in flight wait in memory: three batches of four files of 500,000 bytes are six megabytes."""
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
        files = [jpeg(noise, quality=95), jpeg(noise.resize((300, 300)), quality=95)]
        assert len(files[0]) > 500_000 > len(files[1])
        with opened(toy_artifact, max_decode_mb=6) as embedder:
            embedder.embed(files)
            assert (embedder.times.on_gpu, embedder.times.on_cpu) == (1, 1)
            monkeypatch.setattr(coded, "MOST_PIXELS", 300 * 300 - 1)
            embedder.embed(files[1:])
            assert (embedder.times.on_gpu, embedder.times.on_cpu) == (1, 2)

    def test_calls_of_the_decoder_are_small(
        self, gpu: Embedder, codec: PlantedCodec, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = [jpeg(picture)] * 4
        monkeypatch.setattr(decoder, "_AT_ONCE", 3)
        gpu.embed(files)
        assert codec.decoded == [3, 1]
        monkeypatch.setattr(decoder, "MOST_PIXELS", 2 * 160 * 107)
        gpu.embed(files)
        assert codec.decoded == [3, 1, 2, 2]


def without(file: bytes, start: bytes) -> bytes:
    """Return a file without the segment that begins with `start`."""
    place = file.index(start)
    return file[:place] + file[place + 2 + int.from_bytes(file[place + 2 : place + 4], "big") :]


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


class TestErrors:
    def test_errors_are_those_of_the_threads_and_stand_in_their_place(
        self, gpu: Embedder, codec: PlantedCodec, threads: Embedder, picture: Image.Image
    ) -> None:
        whole = jpeg(picture)
        cut = whole[: len(whole) // 2] + whole[-2:]  # looks whole, and neither decoder reads it
        codec.refused = {cut}
        middle = len(whole) // 2
        damaged = whole[:middle] + b"\xff\x80" + whole[middle:]  # nvImageCodec may read it, libjpeg refuses it
        sources = [whole, b"no image", whole[:middle], cut, whole, damaged, "none.jpg", whole]
        ours, theirs = list(gpu.stream(sources)), list(threads.stream(sources))
        assert [result.error for result in ours] == [result.error for result in theirs]
        for one, other in zip(ours, theirs, strict=True):
            if other.vector is not None:
                np.testing.assert_allclose(one.vector, other.vector, atol=CLOSE)

    def test_limits_hold_before_a_byte_goes_to_the_gpu(
        self, codec: PlantedCodec, toy_artifact: Path, picture: Image.Image
    ) -> None:
        large = jpeg(picture.resize((1600, 1070)))
        with opened(toy_artifact, max_decode_mb=1) as embedder:
            (result,) = embedder.stream([large])
        assert "at most 1 MB are given to decoding" in result.error
        assert codec.decoded == []
        assert MAX_PIXELS < 16_000**2
        frame = large.index(b"\xff\xc0")
        huge = large[: frame + 5] + (16_000).to_bytes(2, "big") * 2 + large[frame + 9 :]
        with opened(toy_artifact) as embedder:
            (result,) = embedder.stream([huge])
        assert "256,000,000 pixels" in result.error
        assert codec.decoded == []

    def test_a_failure_of_the_gpu_is_one_line_and_the_next_batch_runs(
        self, gpu: Embedder, codec: PlantedCodec, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: object, **__: object) -> None:
            raise RuntimeError("cudaErrorMemoryAllocation: out of memory\nat line 7")

        with monkeypatch.context() as patch:
            patch.setattr("host_gpu._pixels", failing)
            with pytest.raises(EngineError, match=r"decoding on the GPU failed on a batch of 1: cuda.*out of memory$"):
                gpu.embed([jpeg(picture)])
        assert len(gpu.embed([jpeg(picture)])) == 1

    def test_the_library_is_missing(self, toy_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "nvidia.nvimgcodec", None)
        with pytest.raises(
            MissingExtraError, match=r"decoding on the GPU needs .* pip install 'mimexport\[gpu-decode\]'"
        ):
            opened(toy_artifact)

    def test_the_card_is_missing(
        self, codec: PlantedCodec, toy_artifact: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(opening, "probe", cuda.probe)
        with pytest.raises(
            EngineError, match=r"decoding on the GPU needs an NVIDIA GPU .*; without a GPU leave out --decode gpu"
        ):
            opened(toy_artifact)

    def test_a_decoder_that_cannot_be_created_leaves_nothing_open(
        self, planted: tuple[PlantedCodec, list[HostMemory]], toy_artifact: Path
    ) -> None:
        codec, devices = planted
        codec.missing = "Could not create decoder. Code: 8\nmore"
        with pytest.raises(EngineError, match=r"nvImageCodec cannot be used here: Could not create decoder\. Code: 8$"):
            opened(toy_artifact)
        assert [device.closed for device in devices] == [True]

    def test_options_that_do_not_fit(self, codec: PlantedCodec, toy_artifact: Path) -> None:
        with pytest.raises(OptionError, match="scaled_decoding"):
            opened(toy_artifact, scaled_decoding=True)
        with pytest.raises(UnknownNameError, match="did you mean gpu"):
            opened(toy_artifact, decode="gpus")


class TestPixels:
    def test_an_engine_that_reads_the_device_gets_addresses(
        self, codec: PlantedCodec, toy_artifact: Path, threads: Embedder, picture: Image.Image, monkeypatch
    ) -> None:
        calls = []

        def run(self: OnnxRuntimeEngine, address: int, count: int) -> dict[str, np.ndarray]:
            calls.append(count)
            pixels = np.ctypeslib.as_array((ctypes.c_uint8 * (count * 64 * 64 * 3)).from_address(address))
            return self.run(pixels.reshape(count, 64, 64, 3))

        monkeypatch.setattr(OnnxRuntimeEngine, "run_on_device", run)
        files = [jpeg(picture, orientation=orientation) for orientation in range(1, 8)]
        with opened(toy_artifact) as embedder:
            embedder._engine.reads_device = True
            np.testing.assert_allclose(embedder.embed(files), threads.embed(files), atol=CLOSE)
        assert sorted(calls) == [1, 2, 4]

    def test_threads_share_an_embedder(self, gpu: Embedder, threads: Embedder, picture: Image.Image) -> None:
        files = [jpeg(picture, quality=quality) for quality in range(60, 96, 5)]
        expected = threads.embed(files)
        with ThreadPoolExecutor(4) as pool:
            for shift, vectors in enumerate(pool.map(lambda shift: gpu.embed(files[shift:] + files[:shift]), range(4))):
                np.testing.assert_allclose(np.roll(vectors, shift, axis=0), expected, atol=CLOSE)

    def test_files_are_freed_before_the_engine_runs(
        self, gpu: Embedder, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches = []
        decoder = gpu._pipeline._decoding.gpu
        taken = decoder.batch
        monkeypatch.setattr(decoder, "batch", lambda *given: batches.append(given[1]) or taken(*given))
        gpu.embed([jpeg(picture)] * 4)
        assert batches == [[]]

    def test_closing_frees_everything(
        self, planted: tuple[PlantedCodec, list[HostMemory]], toy_artifact: Path, picture: Image.Image
    ) -> None:
        with opened(toy_artifact) as embedder:
            stream = embedder.stream([jpeg(picture)] * 50)
            next(stream)
            stream.close()
            assert planted[1][0].blocks
        assert planted[1][0].closed  # which it is only with no block left

    def test_bench_and_service_prepare_as_before(self, gpu: Embedder, threads: Embedder, picture: Image.Image) -> None:
        assert np.array_equal(gpu.prepare(jpeg(picture)), threads.prepare(jpeg(picture)))


class TestCommand:
    def test_embed_says_who_decoded(
        self, codec: PlantedCodec, toy_artifact: Path, picture: Image.Image, tmp_path: Path
    ) -> None:
        (tmp_path / "a.jpg").write_bytes(jpeg(picture))
        (tmp_path / "b.png").write_bytes(png(picture))
        line = [str(toy_artifact), str(tmp_path), "--out", str(tmp_path / "v.npz"), "--engine", "onnxruntime"]
        done = CliRunner().invoke(embed_command, [*line, "--decode", "gpu"])
        assert done.exit_code == 0, done.output
        assert "decoded by the GPU 1, by the CPU 1" in done.output
        assert "decoded by" not in CliRunner().invoke(embed_command, line).output

    def test_bench_measures_from_files_to_vectors_with_it(
        self, codec: PlantedCodec, toy_artifact: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mimruntime.bench.bench.cold_start", lambda *_: (0.0, 0.0))
        monkeypatch.setattr("mimruntime.bench.bench.matrix_rates", dict)
        (report,) = bench(
            toy_artifact, ["onnxruntime"], images=[photo], decode="gpu", batches=(2,), seconds=0, pairs=1
        ).runners
        assert report.with_decoding > 0
        assert "decoded by the GPU 64, by the CPU 0" in report.spent


def test_the_planted_library_has_the_names_of_the_real_one() -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="pip install 'mimexport[gpu-decode]'")
    real = codec_library()
    for name in ("Backend", "BackendKind", "CodeStream", "ColorSpec", "DecodeParams", "Decoder"):
        assert hasattr(real, name)
    for kind in inspect.getmembers(PlantedCodec.BackendKind):
        assert kind[0].startswith("_") or hasattr(real.BackendKind, kind[0])
    with pytest.raises(EngineError, match="nvImageCodec cannot be used here"):
        JpegCodec(real, STREAM, 1)
