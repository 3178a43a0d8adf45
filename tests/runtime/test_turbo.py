"""JPEG files that simplejpeg decodes come out as Pillow's, to the bit; what it gives up Pillow decides."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_images import BASELINE, jpeg, jpeg_of_scans, scan, segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from mimruntime import Embedder
from mimruntime.decode import decode, open_image
from mimruntime.decoding import turbo
from mimruntime.errors import ImageError

ADOBE_XMP = b"http://ns.adobe.com/xap/1.0/\0"


def file_of(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def with_segment(raw: bytes, body: bytes) -> bytes:
    return raw[:2] + segment(0xE1, body) + raw[2:]


def exif(orientation: object) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def outcome(raw: bytes) -> bytes | str:
    """Return the pixels, or the text of the error."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of damaged EXIF blocks, by Pillow
            return decode(raw).tobytes()
    except ImageError as error:
        return str(error)


@pytest.fixture(scope="module")
def picture(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB").resize((97, 61))


@pytest.fixture
def pillow_alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], bytes | str]:
    def alone(raw: bytes) -> bytes | str:
        with monkeypatch.context() as patch:
            patch.setattr(turbo, "library", lambda: None)
            return outcome(raw)

    return alone


@pytest.fixture
def no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(JpegImagePlugin, "JpegImageFile", refuse)


FILES: dict[str, Callable[[Image.Image], bytes]] = {
    **{
        f"subsampling {name}": lambda image, name=name: file_of(image, subsampling=name)
        for name in ("4:4:4", "4:2:2", "4:2:0")
    },
    "quality 5": lambda image: file_of(image, quality=5),
    "progressive": lambda image: file_of(image, progressive=True, quality=90),
    "restart markers": lambda image: file_of(image, restart_marker_blocks=2),
    "grey": lambda image: file_of(image.convert("L")),
    "components R, G, B": lambda image: file_of(image, keep_rgb=True),
    "one pixel": lambda image: file_of(image.crop((0, 0, 1, 1))),
    "one column": lambda image: file_of(image.crop((0, 0, 1, 61))),
    **{
        f"orientation {number}": lambda image, number=number: file_of(image, exif=exif(number))
        for number in range(1, 9)
    },
    "orientation 9": lambda image: file_of(image, exif=exif(9)),
    "orientation in two segments": lambda image: with_segment(file_of(image, exif=exif(3)), b"Exif\0\0"),
    "orientation in XMP": lambda image: with_segment(file_of(image), ADOBE_XMP + b'<a tiff:Orientation="6"/>'),
    "another in EXIF": lambda image: with_segment(
        file_of(image, exif=exif(8)), ADOBE_XMP + b'<a tiff:Orientation="6"/>'
    ),
    "damaged EXIF": lambda image: with_segment(file_of(image), b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    "no EXIF behind its name": lambda image: with_segment(file_of(image), b"Exif\0\0"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("no_pillow")
def test_a_common_jpeg_is_decoded_without_pillow(picture: Image.Image, name: str) -> None:
    assert decode(FILES[name](picture)).mode == "RGB"


@pytest.mark.parametrize("name", FILES)
def test_its_pixels_are_pillows(picture: Image.Image, name: str, pillow_alone: Callable[[bytes], bytes | str]) -> None:
    raw = FILES[name](picture)
    assert outcome(raw) == pillow_alone(raw)


def test_photographs_are_pillows(photos: list[Path], pillow_alone: Callable[[bytes], bytes | str]) -> None:
    for raw in (path.read_bytes() for path in photos if path.suffix == ".jpg"):
        assert outcome(raw) == pillow_alone(raw)


@pytest.mark.parametrize("part", range(10))
def test_a_truncated_file_is_refused_as_pillow_refuses_it(
    picture: Image.Image, part: int, pillow_alone: Callable[[bytes], bytes | str]
) -> None:
    raw = file_of(picture)
    raw = raw[: 20 + (len(raw) - 20) * part // 10]
    assert outcome(raw) == pillow_alone(raw)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_ends_as_with_pillow_alone(
    picture: Image.Image, pillow_alone: Callable[[bytes], bytes | str], data: st.DataObject
) -> None:
    raw = bytearray(file_of(picture))
    raw[data.draw(st.integers(2, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(raw)) == pillow_alone(bytes(raw))


def test_cmyk_is_left_to_pillow(picture: Image.Image, pillow_alone: Callable[[bytes], bytes | str]) -> None:
    raw = file_of(picture.convert("CMYK"))
    assert outcome(raw) == pillow_alone(raw)


@pytest.mark.usefixtures("no_pillow")
@pytest.mark.parametrize(
    "raw",
    [
        jpeg(8, 8, scan(3, 0, 63), kind=BASELINE, before=segment(0xE2, bytes(60_000)) * 40),
        jpeg_of_scans(64, 64, 800),
    ],
    ids=["more beside the picture than in it", "more than half of the work that is allowed"],
)
def test_what_may_not_be_decoded_twice_is_decoded_by_pillow(raw: bytes) -> None:
    with pytest.raises(ImageError, match="Pillow was asked"), open_image(raw) as opened:
        opened.load()


def test_a_second_frame_of_another_size_is_never_written_beyond_the_first(
    picture: Image.Image, pillow_alone: Callable[[bytes], bytes | str]
) -> None:
    raw = file_of(picture)
    start = raw.index(b"\xff\xc0")
    frame = raw[start : start + 19]
    larger = frame[:5] + (900).to_bytes(2, "big") + (900).to_bytes(2, "big") + frame[9:]
    for twice in (raw[:start] + larger + raw[start:], raw[:start] + frame + larger + raw[start + 19 :]):
        assert outcome(twice) == pillow_alone(twice)


def test_the_memory_is_counted_with_the_file_that_is_read_whole(picture: Image.Image) -> None:
    raw = file_of(picture, progressive=True)
    with open_image(raw) as opened:
        assert opened.memory >= 4 * 97 * 61 + 2 * 97 * 61 + len(raw)
        assert opened.kept >= 4 * 97 * 61 + len(raw)


class TestAtAFraction:
    """A JPEG may be decoded at a half, a quarter or an eighth of its edges."""

    @pytest.mark.parametrize(("least", "part"), [(None, 1), (61, 1), (31, 1), (30, 2), (15, 4), (8, 4), (7, 8), (1, 8)])
    def test_as_small_as_leaves_both_edges_long_enough(
        self, picture: Image.Image, least: int | None, part: int
    ) -> None:
        with open_image(file_of(picture)) as opened:
            assert opened.load(least).size == (-(-97 // part), -(-61 // part))

    @pytest.mark.parametrize("name", ["subsampling 4:2:0", "subsampling 4:4:4", "progressive", "grey", "orientation 6"])
    @pytest.mark.parametrize("least", [30, 15, 7])
    def test_its_pixels_are_those_of_pillow_alone(
        self, picture: Image.Image, monkeypatch: pytest.MonkeyPatch, name: str, least: int
    ) -> None:
        raw = FILES[name](picture)
        with open_image(raw) as opened:
            fast = opened.load(least)
        monkeypatch.setattr(turbo, "library", lambda: None)
        with open_image(raw) as opened:
            assert opened.load(least).tobytes() == fast.tobytes()

    def test_other_formats_are_decoded_whole(self, picture: Image.Image) -> None:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        with open_image(stream.getvalue()) as opened:
            assert opened.load(7).tobytes() == picture.tobytes()

    def test_an_embedder_asks_for_twice_what_it_resizes_to(self, toy_artifact: Path, photo: Path) -> None:
        whole, scaled = (
            Embedder.open(toy_artifact, engine="onnxruntime", scaled_decoding=flag, check_reference=False)
            for flag in (False, True)
        )
        with whole, scaled:
            assert (whole.prepare(photo) != scaled.prepare(photo)).any()
            a, b = whole.embed([photo])[0], scaled.embed([photo])[0]
            assert (a != b).any()
            assert a @ b > 0.99
