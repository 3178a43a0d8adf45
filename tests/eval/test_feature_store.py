"""Features are computed once, survive a kill, and are never taken from a stale, damaged or half-written store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mimeval.datasets import Split
from mimeval.feature_store import FeatureStore
from mimruntime.embedder import Embedder
from mimruntime.errors import ImageError, OutputError
from mimruntime.rows import CHUNK

COUNT = 2 * CHUNK + 10
ROWS = np.arange(COUNT)


def split_of(photos: list[Path], broken: tuple[int, ...] = ()) -> Split:
    raw = [path.read_bytes() for path in photos if path.stat().st_size < 200_000]

    def load(row: int) -> bytes:
        if row in broken:
            return b"no image"
        return raw[row % len(raw)]

    return Split(tuple(f"image {row}" for row in range(COUNT)), np.zeros(COUNT, np.int64), load, "a digest")


@pytest.fixture(scope="module")
def images(photos) -> Split:
    return split_of(photos)


@pytest.fixture
def embedder(toy_artifact):
    with Embedder.open(toy_artifact) as opened:
        yield opened


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, said) -> FeatureStore:
    return FeatureStore(tmp_path, said.append)


def runs(embedder, monkeypatch) -> list[int]:
    """Return the list that every run of the engine adds its images to."""
    seen: list[int] = []
    original = Embedder.outputs

    def counted(self, pixels):
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Embedder, "outputs", counted)
    return seen


class TestStore:
    def test_they_are_those_of_the_embedder(self, store, embedder, images) -> None:
        table = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        expected = embedder.embed([images.load(row) for row in range(COUNT)])
        np.testing.assert_allclose(table.embedding, expected, atol=1e-6)
        assert table.selection.shape == (COUNT, 8, 8)
        assert table.rate > 0

    def test_a_second_run_computes_nothing(self, store, embedder, images, monkeypatch) -> None:
        first = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        seen = runs(embedder, monkeypatch)
        again = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        assert seen == []
        np.testing.assert_array_equal(again.embedding, first.embedding)
        assert isinstance(again.embedding.base, np.memmap)

    def test_more_images_are_added_to_those_that_are_there(self, store, embedder, images, monkeypatch) -> None:
        store.tables([(embedder, "id")], images, ROWS[:50], "toy")
        seen = runs(embedder, monkeypatch)
        grown = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        assert sum(seen) == COUNT - 50
        np.testing.assert_allclose(
            grown.embedding[:9], embedder.embed([images.load(row) for row in range(9)]), atol=1e-6
        )

    def test_another_identity_is_another_table(self, store, embedder, images, monkeypatch) -> None:
        store.tables([(embedder, "id")], images, ROWS[:20], "toy")
        seen = runs(embedder, monkeypatch)
        store.tables([(embedder, "other id")], images, ROWS[:20], "toy")
        assert sum(seen) == 20

    def test_models_that_are_at_different_places_join(self, store, embedder, images) -> None:
        alone = store.tables([(embedder, "b")], images, ROWS[:30], "toy")[0].embedding.copy()
        a, b = store.tables([(embedder, "a"), (embedder, "b")], images, ROWS, "toy")
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-6)
        np.testing.assert_array_equal(b.embedding[:30], alone)

    def test_tables_are_locked_in_one_order_whatever_that_of_the_models(
        self, store, embedder, images, monkeypatch
    ) -> None:
        locked = []
        original = FeatureStore._open

        def noted(self, embedder, identity):
            locked.append(identity)
            return original(self, embedder, identity)

        monkeypatch.setattr(FeatureStore, "_open", noted)
        for models in ("ab", "ba"):  # else two runs would wait for each other for ever
            store.tables([(embedder, text) for text in models], images, ROWS[:1], "toy")
        assert locked == ["a", "b", "a", "b"]

    def test_an_unreadable_image_is_a_row_of_zeros_with_its_reason(self, store, embedder, photos) -> None:
        broken = split_of(photos, broken=(3, CHUNK + 1))
        for _ in range(2):  # computed, then read
            table = store.tables([(embedder, "id")], broken, ROWS, "toy")[0]
            assert sorted(table.errors) == [3, CHUNK + 1]
            assert "image 3" in table.errors[3]
            assert not table.embedding[3].any()
            assert table.embedding[4].any()

    def test_an_image_that_can_be_read_again_is(self, store, embedder, photos, images, monkeypatch) -> None:
        broken = split_of(photos, broken=(3, CHUNK + 1))
        store.tables([(embedder, "id")], broken, ROWS, "toy")
        store.tables([(embedder, "id")], images, ROWS[:2], "toy")  # asks for neither
        seen = runs(embedder, monkeypatch)
        table = store.tables([(embedder, "id")], split_of(photos, broken=(3,)), ROWS, "toy")[0]
        assert list(table.errors) == [3]
        assert sum(seen) == COUNT - CHUNK  # the first chunk is as it was
        np.testing.assert_array_equal(
            store.tables([(embedder, "id")], images, ROWS, "toy")[0].embedding,
            store.tables([(embedder, "other")], images, ROWS, "toy")[0].embedding,
        )

    def test_an_image_that_cannot_be_loaded_likewise(self, store, embedder, images) -> None:
        def load(row: int) -> bytes:
            if row == 1:
                raise ImageError("member 1 of the zip is damaged")
            return images.load(row)

        table = store.tables([(embedder, "id")], Split(images.names, images.labels, load, "d"), ROWS[:5], "toy")[0]
        assert list(table.errors) == [1]


class TestDamage:
    def test_a_flipped_byte_is_noticed_and_only_what_follows_is_computed_again(
        self, store, embedder, images, monkeypatch, tmp_path, said
    ) -> None:
        good = store.tables([(embedder, "id")], images, ROWS, "toy")[0].embedding.copy()
        file = next(tmp_path.glob("*/rows.bin"))
        raw = bytearray(file.read_bytes())
        raw[int(len(raw) * (CHUNK + 5) / COUNT)] ^= 1
        file.write_bytes(raw)
        seen = runs(embedder, monkeypatch)
        mended = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        assert sum(seen) == COUNT - CHUNK
        assert f"damaged after row {CHUNK}" in said[0]
        np.testing.assert_allclose(mended.embedding, good, atol=1e-6)

    @pytest.mark.parametrize("record", [b"", b"{", b'{"identity": "other", "chunks": []}'])
    def test_a_damaged_or_stale_record_is_said_and_all_is_computed_again(
        self, store, embedder, images, monkeypatch, tmp_path, said, record
    ) -> None:
        store.tables([(embedder, "id")], images, ROWS[:20], "toy")
        next(tmp_path.glob("*/chunks.json")).write_bytes(record)
        seen = runs(embedder, monkeypatch)
        store.tables([(embedder, "id")], images, ROWS[:20], "toy")
        assert sum(seen) == 20
        assert "computed again" in said[0]

    def test_rows_written_without_their_record_are_cut_off(self, store, embedder, images, tmp_path) -> None:
        good = store.tables([(embedder, "id")], images, ROWS, "toy")[0].embedding.copy()
        with next(tmp_path.glob("*/rows.bin")).open("ab") as stream:
            stream.write(b"half a row")
        again = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        np.testing.assert_array_equal(again.embedding, good)

    def test_a_full_disk_is_an_error_and_what_was_saved_is_kept(
        self, store, embedder, images, monkeypatch, tmp_path
    ) -> None:
        store.tables([(embedder, "id")], images, ROWS[:CHUNK], "toy")
        file = next(tmp_path.glob("*/rows.bin"))
        saved = file.read_bytes()
        original = Path.open

        def full(self, mode="r", *args, **options):
            return original(Path("/dev/full") if self == file and options else self, mode, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", full)
            with pytest.raises(OutputError, match="No space left on device; what was computed is kept"):
                store.tables([(embedder, "id")], images, ROWS, "toy")
        assert file.read_bytes() == saved
        seen = runs(embedder, monkeypatch)
        store.tables([(embedder, "id")], images, ROWS, "toy")
        assert sum(seen) == COUNT - CHUNK

    def test_a_killed_run_continues(self, store, embedder, images, toy_artifact, photos, monkeypatch, tmp_path) -> None:
        code = f"""
import time
from pathlib import Path
import numpy as np
from mimeval.feature_store import FeatureStore
from mimruntime.embedder import Embedder
from test_feature_store import ROWS, split_of
def slowly(name, done, total): time.sleep(30 if done > 100 else 0)
with Embedder.open({str(toy_artifact)!r}) as embedder:
    images = split_of([Path(text) for text in {[str(path) for path in photos]!r}])
    FeatureStore(Path({str(tmp_path)!r}), progress=slowly).tables([(embedder, "id")], images, ROWS, "toy")
"""
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths})
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and child.poll() is None:
                with contextlib.suppress(StopIteration, OSError, ValueError):
                    record = next(tmp_path.glob("*/chunks.json")).read_text()
                    if record.count('"crc32"') == 2:
                        break
                time.sleep(0.05)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        seen = runs(embedder, monkeypatch)
        table = store.tables([(embedder, "id")], images, ROWS, "toy")[0]
        assert sum(seen) == COUNT - 2 * CHUNK
        np.testing.assert_allclose(table.embedding, embedder.embed([images.load(r) for r in range(COUNT)]), atol=1e-6)
