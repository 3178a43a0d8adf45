"""What an image costs to decode is known from its header, and what costs too much is not decoded."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import hostile_images as hostile
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from mimruntime import Embedder
from mimruntime.decode import decode, open_image
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import ImageError, ImageSizeError, OptionError

ROOT = Path(__file__).parents[2]
TOO_MUCH_WORK = r"would take about [\d.]+ s to decode, expected at most [\d.]+ s for [\d,]+ pixels"
MEASURE = (ROOT / "tests/support/peak_memory.py").read_text()

COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg of 1,000 empty scans": (lambda: hostile.jpeg_of_scans(2400, 1600, 1000), TOO_MUCH_WORK),
    "jpeg of several sequential scans": (
        lambda: hostile.jpeg(2400, 1600, *[hostile.scan(1, 0, 63)] * 1000, kind=hostile.BASELINE),
        TOO_MUCH_WORK,
    ),
    "jpeg of 30,000 comments": (
        lambda: hostile.jpeg(8, 8, hostile.scan(3, 0, 63), before=hostile.segment(0xFE, b"") * 30_000),
        "more than 20,000 segments",
    ),
    "jpeg of 32 MB of EXIF": (
        lambda: hostile.jpeg(
            8, 8, hostile.scan(3, 0, 63), before=hostile.segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 490
        ),
        TOO_MUCH_WORK,
    ),
    "jpeg behind 16 MB of nothing": (
        lambda: b"\xff\xd8\xff\xd0" + bytes(16_000_000) + hostile.jpeg(8, 8, hostile.scan(3, 0, 63))[2:],
        TOO_MUCH_WORK,
    ),
    "jpeg behind 16 MB of fill bytes": (
        lambda: b"\xff\xd8" + b"\xff" * 16_000_000 + hostile.jpeg(8, 8, hostile.scan(3, 0, 63))[2:],
        TOO_MUCH_WORK,
    ),
    "png of 500 colour profiles": (
        lambda: hostile.png(hostile.inflating(b"iCCP") * 500),
        TOO_MUCH_WORK,
    ),
    "png of 30,000 chunks": (lambda: hostile.png(hostile.chunk(b"abCd", b"") * 30_000), "more than 20,000 chunks"),
    "png of 30,000 chunks at its end": (
        lambda: hostile.png(after=hostile.chunk(b"abCd", b"") * 30_000),
        "more than 20,000 chunks",
    ),
    "png of 30,000 empty chunks of pixels": (
        lambda: hostile.png(hostile.chunk(b"IDAT", b"") * 30_000),
        "more than 20,000 chunks",
    ),
    "gif of 30,000 blocks of comment": (lambda: hostile.gif_of_comments(30_000), "more than 20,000 blocks"),
    "webp of 30,000 frames": (lambda: hostile.webp_of_frames(30_000), "more than 20,000 chunks"),
    "bmp of short runs": (lambda: hostile.run_length_bmp(3000), TOO_MUCH_WORK),
    "avif that is coded larger than it says": (lambda: hostile.avif_that_is_larger(10_000), TOO_MUCH_WORK),
    "avif of 1,000 frames": (
        lambda: hostile.heif(b"avif", b"av01", (1000, 1000), hostile.av1(1000, 1000, 1000)),
        TOO_MUCH_WORK,
    ),
    "avif of 30,000 units": (
        lambda: hostile.heif(b"avif", b"av01", (64, 64), b"\x7a\0" * 30_000),
        "more than 20,000 units",
    ),
    "avif of one piece a thousand times": (
        lambda: hostile.heif(b"avif", b"av01", (64, 64), bytes(100_000), repeats=1000),
        "items of more bytes than the file; they overlap",
    ),
    "heic of 1,000 pictures": (lambda: hostile.heic_of_pictures(1000), TOO_MUCH_WORK),
    "heic of one tile 10,000 times": (
        lambda: hostile.heif(b"heic", b"hvc1", (64, 64), b"", parts=10_000),
        TOO_MUCH_WORK,
    ),
    "heic of 65,000 tiles": (
        lambda: hostile.heif(b"heic", b"hvc1", (64, 64), b"", parts=65_000),
        "more than 20,000 references",
    ),
    "jpeg 2000 of 65,000 layers": (
        lambda: hostile.jpeg2000(512, 512, tile=512, layers=65_000, precinct=4),
        TOO_MUCH_WORK,
    ),
    "jpeg 2000 of 62,500 tiles": (lambda: hostile.jpeg2000(250, 250, tile=1), TOO_MUCH_WORK),
    "jpeg 2000 of precincts of 1 px": (lambda: hostile.jpeg2000(1000, 1000, tile=1000, precinct=0), TOO_MUCH_WORK),
    "jpeg 2000 of 16,384 components": (
        lambda: hostile.jpeg2000(8, 8, tile=8).replace(b"\0\3\7\1\1", b"\x40\0\7\1\1"),
        "has 16,384 components; at most 4",
    ),
    "tiff of 100,000 strips": (lambda: hostile.tiff_of_tiles(100_000), "more than 20,000 strips or tiles"),
}


@pytest.fixture(scope="module")
def picture(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB")


class TestWork:
    @pytest.mark.parametrize("name", COSTLY)
    def test_a_small_file_that_asks_for_much_work_is_refused_by_its_header(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, reason = COSTLY[name]
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("its pixels were decoded"))
        with pytest.raises(ImageSizeError, match=reason):
            decode(make())

    def test_a_photograph_with_its_last_scan_a_thousand_times_is_refused(self, picture: Image.Image) -> None:
        with pytest.raises(ImageSizeError, match=TOO_MUCH_WORK):
            decode(hostile.repeated_scans(picture.resize((1600, 1200)), 1000))

    def test_the_embedder_refuses_it_in_one_line_and_goes_on(self, toy_artifact: Path, photo: Path) -> None:
        bomb = hostile.jpeg_of_scans(2400, 1600, 1000)
        with Embedder.open(toy_artifact) as embedder:
            with pytest.raises(ImageError, match=rf"image 1: [\d,]+ bytes: {TOO_MUCH_WORK}.*; save it again"):
                embedder.embed([photo, bomb])
            bad, good = embedder.stream([bomb, photo])
        assert bad.error is not None
        assert "\n" not in bad.error
        assert good.error is None

    def test_real_photographs_of_every_kind_are_far_from_the_bound(self, picture: Image.Image) -> None:
        large = picture.resize((1500, 1000))
        alpha = large.copy()
        alpha.putalpha(large.convert("L"))
        files = [
            hostile.encoded(large, "JPEG", quality=95),
            hostile.encoded(large, "JPEG", quality=95, progressive=True, subsampling=0),
            hostile.encoded(large.convert("CMYK"), "JPEG", quality=95, progressive=True),
            hostile.encoded(large, "PNG", compress_level=1),
            hostile.encoded(alpha, "PNG", compress_level=1),
            hostile.encoded(large, "WEBP", method=0),
            hostile.encoded(large.quantize(64), "GIF"),
            hostile.encoded(large, "BMP"),
            hostile.encoded(large, "TIFF", compression="jpeg"),
            hostile.encoded(large, "AVIF", quality=90, speed=10),
            hostile.encoded(large, "JPEG2000"),
            hostile.encoded(large, "HEIF", quality=90),
        ]
        for raw in files:
            assert decode(raw).size == large.size

    def test_a_film_behind_the_picture_is_not_held_against_it(self, picture: Image.Image) -> None:
        film = np.random.default_rng(0).bytes(8_000_000)
        for progressive in (False, True):
            raw = hostile.encoded(picture.resize((1600, 1200)), "JPEG", progressive=progressive)
            assert (np.asarray(decode(raw + film)) == np.asarray(decode(raw))).all()

    def test_a_header_of_two_sizes_is_refused(self) -> None:
        small, large = (hostile.chunk(b"IHDR", bytes([0, 0, 0, edge] * 2 + [8, 2, 0, 0, 0])) for edge in (8, 9))
        raw = hostile.png(after=large)
        assert small in raw
        with pytest.raises(ImageError, match="its header says both"):
            decode(raw)

    def test_a_segment_that_is_padded_or_preceded_by_junk_is_read_as_libjpeg_reads_it(
        self, picture: Image.Image
    ) -> None:
        raw = hostile.encoded(picture, "JPEG")
        assert (np.asarray(decode(b"\xff\xd8\xff\xff\xff" + raw[3:])) == np.asarray(decode(raw))).all()
        start = raw.index(b"\xff\xdb")
        assert (np.asarray(decode(raw[:start] + b"junk" + raw[start:])) == np.asarray(decode(raw))).all()


class TestMemory:
    def test_one_image_beyond_the_budget_is_refused_with_what_it_takes(self, toy_artifact: Path) -> None:
        bomb = hostile.jpeg(9400, 9400, hostile.scan(4, 0, 0), components=4)
        assert len(bomb) < 300
        with (
            Embedder.open(toy_artifact) as embedder,
            pytest.raises(
                ImageSizeError, match=r"would take about 1,\d\d\d MB to decode; at most 1,024 MB are given to decoding"
            ),
        ):
            embedder.prepare(bomb)

    def test_the_budget_can_be_set_and_is_checked(self, toy_artifact: Path, photo: Path) -> None:
        with Embedder.open(toy_artifact, max_decode_mb=2) as embedder, pytest.raises(ImageError, match="at most 2 MB"):
            embedder.embed([photo])
        with pytest.raises(OptionError, match="at least 1 MB, got 0"):
            MemoryBudget(0)

    def test_who_asks_for_more_than_is_left_waits_and_is_not_overtaken(self) -> None:
        budget, order, held, go_on = MemoryBudget(10), [], threading.Event(), threading.Event()

        def hold(name: str, megabytes: int) -> None:
            with budget.reserve(megabytes * 1_000_000):
                order.append(name)
                if name == "first":
                    held.set()
                    go_on.wait(30)

        first = threading.Thread(target=hold, args=("first", 6))
        first.start()
        assert held.wait(30)
        large, small = (threading.Thread(target=hold, args=named) for named in (("large", 9), ("small", 1)))
        large.start()
        while len(budget._waiting) < 1:
            pass
        small.start()
        while len(budget._waiting) < 2:
            pass
        assert order == ["first"]
        go_on.set()
        for thread in (first, large, small):
            thread.join(30)
        assert order == ["first", "large", "small"]
        assert budget._free == 10_000_000

    def test_an_image_that_fails_gives_its_memory_back(self, toy_artifact: Path, photo: Path) -> None:
        with Embedder.open(toy_artifact, max_decode_mb=4) as embedder:
            broken = photo.read_bytes()[:-2000]
            results = list(embedder.stream([broken] * 20 + [photo]))
        assert [result.error is None for result in results] == [False] * 20 + [True]

    @pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is reset through /proc")
    def test_the_estimate_is_above_what_is_taken_and_below_twice_that(
        self, picture: Image.Image, tmp_path: Path, record_property: Callable[..., None]
    ) -> None:
        for name, raw in kinds(picture.resize((2000, 1400))).items():
            (tmp_path / name).write_bytes(raw)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        assert len(lines) == len(list(tmp_path.iterdir()))
        record_property("figures", done.stdout)
        for name, estimated, taken in lines:
            assert int(taken) <= int(estimated) + 2_000_000, done.stdout
            assert int(estimated) <= 2 * int(taken) + 4_000_000, f"{name}: {done.stdout}"


def test_a_jpeg_of_nothing_but_fill_bytes_is_read_once() -> None:
    with pytest.raises(ImageError, match="a JPEG without a picture"):
        decode(b"\xff\xd8" + b"\xff" * 4_000_000)


def kinds(large: Image.Image) -> dict[str, bytes]:
    """A file of every kind that is decoded in its own way."""
    alpha, turned = large.copy(), Image.Exif()
    alpha.putalpha(large.convert("L"))
    turned[0x0112] = 6
    avif_turned = hostile.encoded(alpha, "AVIF", quality=90, speed=10, exif=turned.tobytes())
    keyed = large.quantize(64)
    grey16 = Image.fromarray(np.asarray(large.convert("L")).astype(np.uint16) * 257)
    return {
        "jpeg": hostile.encoded(large, "JPEG"),
        "jpeg-turned": hostile.encoded(large, "JPEG", exif=turned),
        "jpeg-progressive": hostile.encoded(large, "JPEG", progressive=True, subsampling=0),
        "jpeg-cmyk": hostile.encoded(large.convert("CMYK"), "JPEG", progressive=True),
        "jpeg-cmyk-turned": hostile.encoded(large.convert("CMYK"), "JPEG", exif=turned),
        "jpeg-grey": hostile.encoded(large.convert("L"), "JPEG"),
        "png": hostile.encoded(large, "PNG", compress_level=1),
        "png-alpha": hostile.encoded(alpha, "PNG", compress_level=1),
        "png-16": hostile.encoded(grey16, "PNG", compress_level=1),
        "png-palette": hostile.encoded(keyed, "PNG", compress_level=1, transparency=3),
        "webp": hostile.encoded(large, "WEBP", method=0),
        "webp-alpha": hostile.encoded(alpha, "WEBP", method=0, lossless=True, quality=0),
        "gif": hostile.encoded(keyed, "GIF"),
        "bmp": hostile.encoded(large, "BMP"),
        "avif": hostile.encoded(large, "AVIF", quality=90, speed=10),
        "avif-alpha-turned": avif_turned,
        "heic": hostile.encoded(large, "HEIF", quality=50),
        "heic-tiles": hostile.encoded(large, "HEIF", quality=50, tile_size=512),
        "jpeg2000": hostile.encoded(large, "JPEG2000"),
        "jpeg2000-alpha": hostile.encoded(alpha, "JPEG2000", quality_layers=[40], irreversible=True),
        "tiff": hostile.encoded(large, "TIFF"),
        "tiff-turned": hostile.encoded(large, "TIFF", compression="tiff_lzw", exif=turned),
        "tiff-16": hostile.encoded(grey16, "TIFF"),
        "tiff-jpeg": hostile.encoded(large, "TIFF", compression="jpeg"),
    }


class TestPillow:
    def test_an_exif_block_that_claims_itself_thousands_of_times_takes_no_memory(self, tmp_path: Path) -> None:
        (tmp_path / "bomb").write_bytes(hostile.exif_bomb())
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert int(done.stdout.split()[2]) < 30_000_000

    def test_the_oldest_pillow_that_is_let_in_has_no_exif_bomb(self) -> None:
        """The versions up to 12.3 take 330 MB for 65 kB of EXIF; 13.0 keeps the entries within the block."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        pillow = next(need for text in project["dependencies"] if (need := Requirement(text)).name.lower() == "pillow")
        assert not any(pillow.specifier.contains(version) for version in ("10.1.0", "11.3.0", "12.3.0"))
        assert re.search(r"^pillow==1[3-9]", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def test_the_header_of_a_file_that_is_open_is_closed_again(photo: Path) -> None:
    with open_image(photo) as opened:
        assert (opened.width, opened.height) == (640, 427)
        assert opened.memory >= 4 * 640 * 427
