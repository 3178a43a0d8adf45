"""Vectors come out in order, whatever the batch, the thread or the broken neighbour."""

from __future__ import annotations

import gc
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mimruntime
from mimruntime import Embedder
from mimruntime.artifact import Artifact
from mimruntime.batching import NEW_BATCH, BatchPipeline, batch_sizes, split
from mimruntime.decoders import Decoders
from mimruntime.engines import open_engine
from mimruntime.engines.base import Engine
from mimruntime.errors import (
    ArtifactError,
    EngineError,
    ImageError,
    OptionError,
    PrecisionError,
    SpaceError,
    UnknownNameError,
)


class RecordingEngine(Engine):
    """Gives the mean colour as the embedding, and remembers what it was asked to run."""

    name, provider, version, outputs = "recording", "cpu", "1", ("embedding",)
    pixel_shape = (64, 64, 3)

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.buffers: set[int] = set()
        self.third = threading.Event()
        self.closed = False
        self._busy = threading.Lock()

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        assert self._busy.acquire(blocking=False), "two runs at once"
        self.batches.append(len(pixels))
        self.buffers.add(pixels.__array_interface__["data"][0])
        if len(self.batches) == 3:
            self.third.set()
        means = pixels.reshape(len(pixels), -1, 3).mean(axis=1, dtype=np.float32)
        self._busy.release()
        return {"embedding": means}

    def _close(self) -> None:
        self.closed = True


class HeldEngine(RecordingEngine):
    """Its runs do not end before they may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = threading.Event(), threading.Event()

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.begun.set()
        assert self.may_end.wait(60)
        return super()._run(pixels)


class PairedEngine(RecordingEngine):
    """Two runs may go on at once; a run of a full batch does not end before a second one has begun."""

    parallel_runs = 2

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2, timeout=60)

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        self.both.wait()
        return {"embedding": pixels.reshape(len(pixels), -1, 3).mean(axis=1, dtype=np.float32)}


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def recording(toy_artifact: Path, engine: RecordingEngine):
    with Embedder(Artifact.open(toy_artifact), engine, batch_size=8) as embedder:
        yield embedder


@pytest.fixture
def embedder(toy_artifact: Path):
    with Embedder.open(toy_artifact, engine="onnxruntime") as opened:
        yield opened


def plain(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


class TestBuckets:
    @given(st.integers(0, 500), st.integers(1, 100))
    def test_split_sums_to_the_count_from_allowed_sizes_alone(self, count: int, largest: int) -> None:
        sizes = batch_sizes(largest)
        parts = split(count, sizes)
        assert sum(parts) == count
        assert set(parts) <= set(sizes)
        assert parts == sorted(parts, reverse=True)
        assert max(sizes) == largest

    def test_thirteen_is_eight_four_and_one(self) -> None:
        assert split(13, batch_sizes(8)) == [8, 4, 1]

    def test_a_largest_batch_that_is_no_power_of_two_is_run(self) -> None:
        assert batch_sizes(12) == (12, 8, 4, 2, 1)
        assert split(37, batch_sizes(12)) == [12, 12, 12, 1]

    @pytest.mark.parametrize("count", [1, 7, 8, 13, 30])
    def test_the_engine_sees_only_powers_of_two_and_no_padding(
        self, recording: Embedder, engine: RecordingEngine, count: int
    ) -> None:
        recording.embed([plain(1)] * count)
        assert sum(engine.batches) == count
        assert set(engine.batches) <= {1, 2, 4, 8}


class TestEmbed:
    def test_the_lines_of_the_readme_run(self, toy_artifact: Path, photos: list[Path]) -> None:
        raw, image = photos[1].read_bytes(), Image.open(photos[2]).convert("RGB")
        with Embedder.open(toy_artifact) as embedder:
            vectors = embedder.embed([photos[0], raw, image, np.asarray(image)])
        assert vectors.shape == (4, 16)
        assert vectors.dtype == np.float32
        assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
        assert (vectors[2] == vectors[3]).all()

    def test_rows_are_in_the_order_of_the_images(self, recording: Embedder) -> None:
        values = np.random.default_rng(0).permutation(100)
        vectors = recording.embed([plain(value) for value in values])
        assert (vectors[:, 0] == values).all()

    def test_an_image_alone_equals_its_row_in_any_batch(self, embedder: Embedder, photos: list[Path]) -> None:
        together = embedder.embed(photos)
        for photo, row in zip(photos, together, strict=True):
            assert np.abs(embedder.embed([photo])[0] - row).max() < 1e-6

    def test_an_empty_list_gives_no_rows_of_the_right_length(self, embedder: Embedder) -> None:
        assert embedder.embed([]).shape == (0, 16)
        assert embedder.select([]).shape == (0, 8, 8)

    def test_a_generator_and_a_stack_of_arrays_are_lists_too(self, recording: Embedder) -> None:
        assert recording.embed(plain(value) for value in range(10)).shape == (10, 3)
        assert recording.embed(np.stack([plain(1), plain(2)])).tolist() == [[1, 1, 1], [2, 2, 2]]

    @pytest.mark.parametrize(
        "single", ["a.jpg", Path("a.jpg"), b"raw", Image.new("RGB", (2, 2)), plain(1), plain(1)[:, :, 0]]
    )
    def test_one_image_instead_of_a_list_is_refused(self, embedder: Embedder, single: object) -> None:
        for method in (embedder.embed, embedder.stream, embedder.select):
            with pytest.raises(ImageError, match=r"expected a list of images, got one .*put it in a list: \[image\]"):
                method(single)  # type: ignore[arg-type]

    def test_the_first_bad_image_is_named_by_its_index_and_path(self, embedder: Embedder, photo: Path) -> None:
        with pytest.raises(ImageError, match=r"^image 11: gone\.jpg: cannot be read"):
            embedder.embed([photo] * 11 + ["gone.jpg", b"also bad"])

    def test_one_lazy_image_many_times_is_loaded_safely(self, embedder: Embedder, photo: Path) -> None:
        with Image.open(photo) as image:
            vectors = embedder.embed([image] * 40)
        assert (vectors == vectors[0]).all()

    def test_many_threads_get_their_own_vectors(self, recording: Embedder) -> None:
        def work(seed: int) -> bool:
            values = np.random.default_rng(seed).integers(0, 256, 37)
            return bool((recording.embed([plain(value) for value in values])[:, 0] == values).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(24)))


class TestStream:
    def test_a_bad_image_gives_its_error_and_the_stream_goes_on(self, recording: Embedder) -> None:
        sources = [plain(1), b"", plain(2), "gone.jpg", plain(3)] * 5
        results = list(recording.stream(sources))
        assert all(result.source is source for result, source in zip(results, sources, strict=True))
        assert [None if result.vector is None else result.vector[0] for result in results] == [1, None, 2, None, 3] * 5
        assert results[1].error == "0 bytes: is empty, 0 bytes"
        assert "gone.jpg" in (results[3].error or "")
        assert all((result.vector is None) != (result.error is None) for result in results)

    def test_a_stream_of_bad_images_alone_never_runs_the_engine(
        self, recording: Embedder, engine: RecordingEngine
    ) -> None:
        assert [result.vector for result in recording.stream([b"x"] * 20)] == [None] * 20
        assert engine.batches == []

    def test_later_batches_run_while_the_first_ones_rows_are_handed_out(
        self, recording: Embedder, engine: RecordingEngine
    ) -> None:
        stream = recording.stream([plain(1)] * 30)
        next(stream)
        assert engine.third.wait(60)
        stream.close()

    def test_a_new_batch_begins_where_one_is_asked_for(self, recording: Embedder, engine: RecordingEngine) -> None:
        sources = [NEW_BATCH, *[plain(1)] * 8, NEW_BATCH, plain(2), NEW_BATCH, NEW_BATCH, plain(3), plain(4), NEW_BATCH]
        assert len(list(recording.stream(sources))) == 11
        assert sorted(engine.batches) == [1, 2, 8]

    def test_pixels_are_decoded_into_a_few_batches_that_are_used_again(
        self, recording: Embedder, engine: RecordingEngine
    ) -> None:
        recording.embed([plain(1)] * 400)
        assert len(engine.batches) == 50
        assert len(engine.buffers) <= 3

    def test_it_is_known_where_the_time_went(self, recording: Embedder) -> None:
        recording.embed([plain(1)] * 20)
        times = recording.times
        assert times.images == 20
        assert min(times.reading, times.decoding, times.engine) > 0
        assert times.describe(times.engine).startswith(
            f"engine {times.engine:.1f} s (100 % of the time), waiting 0.0 s"
        )

    def test_sources_are_taken_only_a_few_batches_ahead(self, recording: Embedder) -> None:
        taken = 0

        def endless():
            nonlocal taken
            while True:
                taken += 1
                yield plain(taken % 256)

        stream = recording.stream(endless())
        for served in range(1, 200):
            next(stream)
            assert taken - served <= 4 * 8  # three batches on their way, and the one that is handed out
        stream.close()  # type: ignore[attr-defined]

    def test_results_that_were_consumed_are_let_go(self, recording: Embedder) -> None:
        result = None
        for latest in recording.stream(plain(value % 256) for value in range(300)):
            result = latest
        del latest
        gc.collect()
        alive = [item for item in gc.get_objects() if type(item) is mimruntime.Result]
        assert alive == [result]

    def test_a_source_of_no_known_type_is_a_result_with_an_error(self, recording: Embedder) -> None:
        (result,) = recording.stream([42])  # type: ignore[list-item]
        assert "object of type int" in (result.error or "")

    def test_an_error_of_the_caller_s_own_iterator_reaches_the_caller(self, recording: Embedder) -> None:
        def broken():
            yield plain(1)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            list(recording.stream(broken()))


class TestSelect:
    def test_the_weights_of_the_patches_sum_to_one(self, embedder: Embedder, photos: list[Path]) -> None:
        weights = embedder.select(photos)
        assert weights.shape == (len(photos), 8, 8)
        assert np.abs(weights.sum(axis=(1, 2)) - 1).max() < 1e-5

    def test_a_graph_without_selection_says_how_to_get_it(self, toy_without_selection: Path, photo: Path) -> None:
        with Embedder.open(toy_without_selection) as embedder:
            with pytest.raises(OptionError, match="--with-selection"):
                embedder.select([photo])
            assert embedder.embed([photo]).shape == (1, 16)


class TestOpen:
    def test_describe_says_what_really_runs(self, embedder: Embedder) -> None:
        about = embedder.describe()
        assert (about.name, about.dim, about.provider, about.precision) == ("toy", 16, "cpu", "fp32")
        assert about.engine.startswith("onnxruntime 1")
        assert about.batch_sizes == (16, 8, 4, 2, 1)
        assert about.space == embedder.space == embedder.artifact.manifest.embedding_space

    def test_another_embedding_space_is_refused(self, toy_artifact: Path) -> None:
        space = Artifact.open(toy_artifact).manifest.embedding_space
        Embedder.open(toy_artifact, expect_space=space).close()
        with pytest.raises(SpaceError, match=rf"embeds into space {space}, expected feed"):
            Embedder.open(toy_artifact, expect_space="feed")

    def test_another_precision_is_refused(self, toy_artifact: Path) -> None:
        Embedder.open(toy_artifact, expect_precision="fp32").close()
        with pytest.raises(PrecisionError, match=r"computes in fp32, expected int8; vectors compare, at a loss"):
            Embedder.open(toy_artifact, expect_precision="int8")

    def test_one_flipped_byte_is_seen_when_opening(self, toy_copy: Path) -> None:
        raw = bytearray((toy_copy / "model.onnx").read_bytes())
        raw[len(raw) // 2] ^= 1
        (toy_copy / "model.onnx").write_bytes(raw)
        with pytest.raises(ArtifactError, match=r"model\.onnx was changed or truncated"):
            Embedder.open(toy_copy)

    @pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}, {"threads": 0}])
    def test_numbers_below_one_are_refused(self, toy_artifact: Path, options: dict[str, int]) -> None:
        with pytest.raises(OptionError, match="at least 1"):
            Embedder.open(toy_artifact, **options)  # type: ignore[arg-type]

    def test_an_unknown_engine_is_refused(self, toy_artifact: Path) -> None:
        with pytest.raises(UnknownNameError, match="unknown engine 'tensorflow'"):
            Embedder.open(toy_artifact, engine="tensorflow")

    def test_leaving_the_block_closes_the_engine_and_the_threads(
        self, toy_artifact: Path, engine: RecordingEngine
    ) -> None:
        before = threading.active_count()
        with Embedder(Artifact.open(toy_artifact), engine) as embedder:
            embedder.embed([plain(1)] * 20)
        assert engine.closed
        assert threading.active_count() == before
        embedder.close()
        with pytest.raises(EngineError, match="this Embedder is closed"):
            embedder.embed([plain(1)])

    def test_an_engine_that_allows_two_runs_gets_two_at_once_and_the_order_stays(self, toy_artifact: Path) -> None:
        with Embedder(Artifact.open(toy_artifact), PairedEngine(), batch_size=2) as embedder:
            vectors = embedder.embed([plain(value) for value in range(8)])
        assert vectors[:, 0].round().tolist() == list(range(8))

    def test_an_engine_that_reads_only_the_hosts_memory_says_so(self, toy_artifact: Path) -> None:
        with (
            open_engine("onnxruntime", toy_artifact / "model.onnx") as engine,
            pytest.raises(EngineError, match="on cpu reads pixels from the host's memory only"),
        ):
            engine.run_on_device(0, 1)

    def test_a_stream_that_outlives_its_embedder_says_so(self, toy_artifact: Path, engine: RecordingEngine) -> None:
        with Embedder(Artifact.open(toy_artifact), engine) as embedder:
            stream = embedder.stream(plain(1) for _ in range(1000))
            next(stream)
        with pytest.raises(EngineError, match="closed"):
            list(stream)

    def test_streams_that_wait_when_it_is_closed_say_so(self, toy_artifact: Path) -> None:
        engine = HeldEngine()
        embedder = Embedder(Artifact.open(toy_artifact), engine, batch_size=1)
        said: list[Exception] = []

        def read() -> None:
            try:
                list(embedder.stream(plain(1) for _ in range(100)))
            except Exception as error:
                said.append(error)

        readers = [threading.Thread(target=read) for _ in range(6)]
        for reader in readers:
            reader.start()
        assert engine.begun.wait(60)
        closing = threading.Thread(target=embedder.close)
        closing.start()
        while not embedder._pipeline._runners._shutdown:  # type: ignore[attr-defined]
            time.sleep(0.01)
        engine.may_end.set()
        for thread in (*readers, closing):
            thread.join(60)
        assert [type(error) for error in said] == [EngineError] * 6

    def test_one_that_was_never_used_says_that_it_is_closed(self, toy_artifact: Path, engine: RecordingEngine) -> None:
        embedder = Embedder(Artifact.open(toy_artifact), engine, decode="processes", workers=1)
        embedder.close()
        with pytest.raises(EngineError, match="this Embedder is closed"):
            embedder.embed([plain(1)])

    def test_what_decodes_is_closed_once(self, engine: RecordingEngine) -> None:
        closed: list[bool] = []
        pipeline = BatchPipeline(engine, Decoders(lambda *_: [], close=lambda: closed.append(True)), (1,), 1)
        pipeline.close()
        pipeline.close()
        assert closed == [True]

    def test_preprocessing_reaches_the_graph_as_the_manifest_says(self, toy_artifact: Path, photo: Path) -> None:
        from mimruntime.decode import decode
        from mimruntime.preprocess import to_pixels

        pixels = to_pixels(decode(photo), Artifact.open(toy_artifact).manifest.preprocess)
        with (
            open_engine("onnxruntime", toy_artifact / "model.onnx") as engine,
            Embedder.open(toy_artifact, engine="onnxruntime") as embedder,
        ):
            assert (engine.run(pixels[None])["embedding"] == embedder.embed([photo])).all()


class TestDecodingInProcesses:
    def test_vectors_and_errors_equal_those_of_threads(
        self, toy_artifact: Path, photos: list[Path], tmp_path: Path
    ) -> None:
        damaged = tmp_path / "damaged.jpg"
        damaged.write_bytes(photos[0].read_bytes()[:500])
        sources = [*photos, damaged, photos[1].read_bytes(), np.asarray(plain(9))]
        results = {}
        for kind in ("threads", "processes"):
            with Embedder.open(toy_artifact, engine="onnxruntime", batch_size=4, workers=2, decode=kind) as embedder:
                results[kind] = list(embedder.stream(sources))
        for ours, theirs in zip(results["processes"], results["threads"], strict=True):
            assert ours.error == theirs.error
            np.testing.assert_array_equal(ours.vector, theirs.vector)

    def test_a_refused_precision_leaves_no_process(self, toy_artifact: Path) -> None:
        before = _children()
        with pytest.raises(PrecisionError):
            Embedder.open(toy_artifact, engine="onnxruntime", decode="processes", expect_precision="bf16")
        assert _children() == before

    def test_an_unknown_kind_is_refused(self, toy_artifact: Path) -> None:
        with pytest.raises(UnknownNameError, match=r"'fibres'; known: gpu, processes, threads"):
            Embedder.open(toy_artifact, decode="fibres")  # type: ignore[arg-type]


def _children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())
