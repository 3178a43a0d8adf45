"""Every kind of picture comes out upright in RGB; everything else is an ImageError."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hostile_images import encoded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mimruntime.decode import MAX_PIXELS, decode
from mimruntime.decoding.formats import FORMATS, check_readable
from mimruntime.errors import ImageError, MissingExtraError, OptionError

SMALL = 200_000
"""Pixel limit of the damage tests: a flipped bit in a header must not make them slow."""


@pytest.fixture(scope="module")
def picture(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB").resize((96, 64))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(3_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b)).max())


class TestSources:
    def test_path_text_bytes_image_and_array_give_the_same_picture(self, photo: Path) -> None:
        expected = Image.open(photo).convert("RGB")
        raw = photo.read_bytes()
        sources = [photo, str(photo), raw, bytearray(raw), memoryview(raw), Image.open(photo), np.asarray(expected)]
        for source in sources:
            image = decode(source)
            assert image.mode == "RGB"
            assert difference(image, expected) == 0

    @pytest.mark.parametrize("small", [0, 1 << 30])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
    def test_a_file_gives_the_same_picture_whether_read_at_once_or_in_parts(
        self, small: int, kind: str, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (file := tmp_path / "file").write_bytes(encoded(picture, kind))
        monkeypatch.setattr("mimruntime.image_paths._SMALL", small)
        assert difference(decode(file), decode(file.read_bytes())) == 0

    def test_a_file_whose_bytes_come_in_parts_is_read_whole(self, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mimruntime.image_paths.os.read", lambda handle, count: os.pread(handle, count // 2, 0))
        assert difference(decode(photo), decode(photo.read_bytes())) == 0

    def test_a_grey_array_becomes_three_equal_channels(self) -> None:
        grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
        assert (np.asarray(decode(grey)) == grey[:, :, None]).all()

    def test_an_array_view_with_strides_is_read_as_it_looks(self) -> None:
        array = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
        assert (np.asarray(decode(array[::-1, ::2])) == array[::-1, ::2]).all()

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((4, 4, 3), np.float32),
            np.zeros((4, 4, 3), np.int64),
            np.zeros((3, 8, 8), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
            np.zeros((1, 4, 4, 3), np.uint8),
            np.zeros(4, np.uint8),
        ],
    )
    def test_another_array_is_refused_with_what_came_and_what_was_expected(self, array: np.ndarray) -> None:
        with pytest.raises(ImageError, match=rf"array {array.dtype} .*expected uint8 pixels of shape \(H, W, 3\)"):
            decode(array)

    def test_an_array_without_pixels_is_refused(self) -> None:
        with pytest.raises(ImageError, match="has no pixels: 5x0"):
            decode(np.zeros((0, 5, 3), np.uint8))

    @pytest.mark.parametrize("source", [None, 7, 1.5, ["a.jpg"], object()])
    def test_anything_else_is_refused_by_its_type(self, source: object) -> None:
        with pytest.raises(ImageError, match=f"object of type {type(source).__name__}: expected a path"):
            decode(source)  # type: ignore[arg-type]

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"gone\.jpg: cannot be read \(No such file or directory\)"):
            decode(tmp_path / "gone.jpg")
        with pytest.raises(ImageError, match=r"cannot be read \(Is a directory\)"):
            decode(tmp_path)

    def test_a_path_with_a_zero_byte_is_an_image_error(self) -> None:
        with pytest.raises(ImageError, match="null byte"):
            decode("a\0.jpg")

    def test_an_image_closed_by_its_owner_is_an_image_error(self, photo: Path) -> None:
        image = Image.open(photo)
        image.close()
        with pytest.raises(ImageError, match="Pillow image RGB 640x427: cannot be read"):
            decode(image)

    def test_the_image_passed_in_is_left_as_it_was(self, picture: Image.Image) -> None:
        image = picture.convert("P")
        before = image.tobytes()
        decode(image)
        assert image.mode == "P"
        assert image.tobytes() == before


class TestFormats:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_lossless_formats_return_every_pixel(self, picture: Image.Image, kind: str) -> None:
        assert difference(decode(encoded(picture, kind)), picture) == 0

    def test_lossless_webp_returns_every_pixel(self, picture: Image.Image) -> None:
        assert difference(decode(encoded(picture, "WEBP", lossless=True)), picture) == 0

    @pytest.mark.parametrize("kind", ["JPEG2000", "AVIF", "HEIF"])
    def test_newer_formats_are_read(self, picture: Image.Image, kind: str) -> None:
        whole = {"JPEG2000": 0, "AVIF": 12, "HEIF": 12}[kind]
        options = {"AVIF": {"quality": 95, "subsampling": "4:4:4"}, "HEIF": {"quality": 95, "chroma": 444}}
        assert difference(decode(encoded(picture, kind, **options.get(kind, {}))), picture) <= whole

    def test_a_heic_of_tiles_as_telephones_write_it_is_read(self, picture: Image.Image) -> None:
        raw = encoded(picture.resize((192, 128)), "HEIF", quality=95, chroma=444, tile_size=64)
        assert b"grid" in raw
        assert np.abs(np.asarray(decode(raw)).astype(int) - np.asarray(picture.resize((192, 128)))).mean() < 3

    def test_without_its_package_a_heic_says_what_to_install(
        self, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = encoded(picture, "HEIF")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ImageError, match=r"the format HEIC needs .* pip install 'mimexport\[heif\]'"):
            decode(raw)
        with pytest.raises(MissingExtraError, match="the format HEIC needs"):
            check_readable(("JPEG", "HEIC"))

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
    def test_compressed_tiff_is_read(self, picture: Image.Image, compression: str) -> None:
        assert difference(decode(encoded(picture, "TIFF", compression=compression)), picture) < 90

    def test_progressive_jpeg_is_read(self, picture: Image.Image) -> None:
        plain, progressive = (decode(encoded(picture, "JPEG", progressive=flag)) for flag in (False, True))
        assert difference(plain, progressive) == 0

    def test_a_multi_picture_jpeg_gives_its_first(self, picture: Image.Image) -> None:
        raw = encoded(picture, "MPO", save_all=True, append_images=[Image.new("RGB", picture.size)])
        assert difference(decode(raw), decode(encoded(picture, "JPEG"))) == 0

    def test_the_content_counts_not_the_name(self, picture: Image.Image, tmp_path: Path) -> None:
        path = tmp_path / "really_a_png.jpg"
        path.write_bytes(encoded(picture, "PNG"))
        assert difference(decode(path), picture) == 0

    def test_a_format_can_be_turned_off(self, picture: Image.Image) -> None:
        with pytest.raises(ImageError, match="is a TIFF image, which is not allowed here; expected JPEG, PNG"):
            decode(encoded(picture, "TIFF"), formats=("JPEG", "PNG"))

    @pytest.mark.parametrize(("kind", "name"), [("AVIF", "AVIF"), ("HEIF", "HEIC")])
    def test_a_brand_for_anything_is_read_by_those_it_goes_with(
        self, picture: Image.Image, kind: str, name: str
    ) -> None:
        raw = bytearray(encoded(picture, kind))
        raw[8:12] = b"mif1"
        with pytest.raises(ImageError, match=f"is a {name} image, which is not allowed"):
            decode(bytes(raw), formats=("JPEG",))

    def test_an_unknown_format_name_is_the_callers_mistake(self, picture: Image.Image) -> None:
        with pytest.raises(OptionError, match="unknown image format 'SVG'; known: JPEG, PNG"):
            decode(picture, formats=("SVG",))

    @pytest.mark.parametrize("kind", ["PPM", "TGA", "ICO", "PCX", "SGI"])
    def test_formats_off_the_list_are_refused_though_pillow_reads_them(self, picture: Image.Image, kind: str) -> None:
        with pytest.raises(ImageError, match="not an image of a known format"):
            decode(encoded(picture, kind))


class TestModes:
    def test_grey_becomes_three_equal_channels(self, picture: Image.Image) -> None:
        grey = picture.convert("L")
        assert difference(decode(encoded(grey, "PNG")), Image.merge("RGB", [grey] * 3)) == 0

    def test_one_bit_becomes_black_and_white(self, picture: Image.Image) -> None:
        assert set(np.unique(np.asarray(decode(encoded(picture.convert("1"), "PNG"))))) == {0, 255}

    def test_a_palette_is_looked_up(self, picture: Image.Image) -> None:
        palette = picture.quantize(64)
        assert difference(decode(encoded(palette, "PNG")), palette.convert("RGB")) == 0

    @pytest.mark.parametrize("transparency", [0, bytes([0] + [255] * 63)])
    def test_transparent_palette_entries_become_white(self, picture: Image.Image, transparency: int | bytes) -> None:
        palette = picture.quantize(64)
        index = np.asarray(palette)
        image = np.asarray(decode(encoded(palette, "PNG", transparency=transparency)))
        assert (image[index == 0] == 255).all()
        assert (image[index != 0] == np.asarray(palette.convert("RGB"))[index != 0]).all()

    def test_half_transparent_palette_entries_are_mixed_with_white(self, picture: Image.Image) -> None:
        palette = picture.quantize(64)
        image = np.asarray(decode(encoded(palette, "PNG", transparency=bytes([128] * 64)))).astype(int)
        assert np.abs(image - (255 - (255 - np.asarray(palette.convert("RGB")).astype(float)) * 128 / 255)).max() <= 1

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_alpha_is_composited_on_white(self, kind: str) -> None:
        pixels = np.zeros((1, 3, 4), np.uint8)
        pixels[0] = [(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)]
        options = {"lossless": True} if kind == "WEBP" else {}
        image = np.asarray(decode(encoded(Image.fromarray(pixels), kind, **options))).astype(int)
        assert np.abs(image[0] - [(200, 0, 0), (255, 255, 255), (227, 127, 127)]).max() <= 1

    def test_opaque_alpha_changes_nothing(self, picture: Image.Image) -> None:
        opaque = picture.copy()
        opaque.putalpha(255)
        assert difference(decode(encoded(opaque, "PNG")), picture) == 0

    def test_grey_with_alpha_is_composited_on_white(self) -> None:
        image = Image.merge("LA", [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 0)])
        assert (np.asarray(decode(encoded(image, "PNG"))) == 255).all()

    @pytest.mark.parametrize(("mode", "key", "colour"), [("RGB", (1, 2, 3), (1, 2, 3)), ("L", 7, 7)])
    def test_a_colour_key_becomes_white(self, mode: str, key: object, colour: object) -> None:
        image = Image.new(mode, (4, 1), colour)  # type: ignore[arg-type]
        assert (np.asarray(decode(encoded(image, "PNG", transparency=key))) == 255).all()

    @pytest.mark.parametrize("kind", ["RGBA", "LA", "La", "P", "keyed", "I;16"])
    def test_what_is_converted_in_strips_is_what_it_is_at_once(self, picture, monkeypatch, kind: str) -> None:
        alpha = picture.copy()
        alpha.putalpha(picture.convert("L"))
        if kind == "P":
            image = Image.open(io.BytesIO(encoded(picture.quantize(64), "PNG", transparency=bytes(range(64)))))
        elif kind == "keyed":
            image = picture.copy()
            image.info["transparency"] = picture.getpixel((0, 0))
        elif kind == "I;16":
            image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        else:
            image = alpha.convert("LA").convert(kind) if kind != "RGBA" else alpha
        whole = decode(image)
        monkeypatch.setattr("mimruntime.decoding.convert.STRIP", 3 * picture.width)
        assert difference(decode(image), whole) == 0

    @pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "YCbCr"])
    def test_the_rarer_modes_of_pillow_are_converted(self, picture: Image.Image, mode: str) -> None:
        alpha = picture.convert("LA" if mode in {"La", "PA"} else "RGBA")
        image = picture.convert(mode) if mode in {"HSV", "YCbCr"} else alpha.convert(mode)
        assert decode(image).size == picture.size

    def test_cmyk_jpeg_comes_out_in_its_colours(self, picture: Image.Image) -> None:
        image = decode(encoded(picture.convert("CMYK"), "JPEG", quality=95))
        assert np.abs(np.asarray(image).astype(int) - np.asarray(picture)).mean() < 6

    def test_sixteen_bit_grey_is_scaled_not_clipped(self) -> None:
        values = np.array([[0, 128, 257, 32768, 65278, 65535]], np.uint16)
        expected = [0, 0, 1, 128, 254, 255]
        for kind in ("PNG", "TIFF"):
            assert np.asarray(decode(encoded(Image.fromarray(values), kind)))[0, :, 0].tolist() == expected

    @pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
    def test_every_sixteen_bit_mode_of_pillow_is_scaled(self, mode: str) -> None:
        image = Image.new(mode, (3, 2), 32768)
        assert (np.asarray(decode(image)) == 128).all()

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_integers_beyond_sixteen_bits_are_refused(self, value: int) -> None:
        with pytest.raises(ImageError, match="integers beyond 16 bits"):
            decode(Image.new("I", (2, 2), value))

    def test_float_images_are_refused(self) -> None:
        with pytest.raises(ImageError, match="32-bit floats, whose range is not defined"):
            decode(encoded(Image.new("F", (2, 2), 0.5), "TIFF"))

    @pytest.mark.parametrize(
        ("kind", "options"),
        [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})],
    )
    def test_an_animation_gives_its_first_frame(
        self, picture: Image.Image, kind: str, options: dict[str, bool]
    ) -> None:
        frames = [Image.new("RGB", picture.size, colour) for colour in ("green", "blue")]
        first = picture.quantize(32).convert("RGB")
        raw = encoded(first, kind, save_all=True, append_images=frames, **options)
        assert difference(decode(raw), first) == 0

    def test_an_avif_film_gives_the_picture_beside_it(self) -> None:
        raw = encoded(
            Image.new("RGB", (64, 64), "red"), "AVIF", save_all=True, append_images=[Image.new("RGB", (64, 64))]
        )
        assert raw[8:12] == b"avis"
        assert difference(decode(raw), Image.new("RGB", (64, 64), "red")) < 8

    def test_a_gif_frame_smaller_than_its_canvas_fills_the_canvas(self) -> None:
        raw = bytearray(encoded(Image.new("RGB", (4, 4), "red"), "GIF"))
        raw[6:10] = struct.pack("<HH", 8, 6)
        assert decode(bytes(raw)).size == (8, 6)


class TestOrientation:
    EXPECTED: ClassVar = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }

    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF", "HEIF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied_once(self, picture: Image.Image, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if kind == "WEBP" else {}
        plain = np.asarray(decode(encoded(picture, kind, **options)))
        raw = encoded(picture, kind, exif=exif, **options)
        expected = self.EXPECTED[orientation](plain)
        sources = [raw, decode(raw)]
        if kind != "HEIF":  # Pillow itself does not know it
            sources.append(Image.open(io.BytesIO(raw)))
        for source in sources:
            assert (np.asarray(decode(source)) == expected).all()

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    @pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(40)])
    def test_a_damaged_exif_block_leaves_the_picture_as_it_lies(self, picture: Image.Image, exif: bytes) -> None:
        raw = encoded(picture, "JPEG", exif=exif)
        assert difference(decode(raw), decode(encoded(picture, "JPEG"))) == 0

    @pytest.mark.parametrize("orientation", [0, 9, 300])
    def test_an_undefined_orientation_counts_as_upright(self, picture: Image.Image, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert difference(decode(encoded(picture, "PNG", exif=exif)), picture) == 0


class TestLimits:
    def test_a_png_that_claims_gigapixels_is_refused_by_its_header(self) -> None:
        raw = png_claiming(50_000, 50_000)
        assert len(raw) < 10_000
        with pytest.raises(ImageError, match=r"is 50000x50000, 2,500,000,000 pixels; at most 89,478,485 are decoded"):
            decode(raw)

    @pytest.mark.parametrize("action", ["error", "default"])
    def test_refusal_prints_and_warns_nothing(self, action: str) -> None:
        for side in (9_500, 20_000):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter(action)  # type: ignore[arg-type]
                with pytest.raises(ImageError, match="at most 89,478,485 are decoded"):
                    decode(png_claiming(side, side))
            assert not caught

    def test_a_webp_beyond_pillows_own_limit_is_an_image_error(self) -> None:
        body = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 16382 | (16382 << 14)) + b"\0"
        with pytest.raises(ImageError):
            decode(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body)

    def test_the_refusal_of_a_bomb_takes_no_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.png"
        path.write_bytes(png_claiming(50_000, 50_000))
        script = (
            "import resource, sys; from mimruntime.decode import decode; from mimruntime.errors import ImageError\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: decode(sys.argv[1])\n"
            "except ImageError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 20_000  # kB

    def test_the_limit_is_inclusive_and_can_be_set(self, picture: Image.Image) -> None:
        raw = encoded(picture, "PNG")
        pixels = picture.width * picture.height
        assert decode(raw, max_pixels=pixels).size == picture.size
        for source in (raw, picture, np.asarray(picture)):
            with pytest.raises(ImageError, match=f"at most {pixels - 1:,} are decoded"):
                decode(source, max_pixels=pixels - 1)

    def test_the_default_limit_is_that_of_pillow(self) -> None:
        assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS

    def test_a_lazy_image_over_the_limit_is_refused_before_it_is_loaded(self, photo: Path) -> None:
        with Image.open(photo) as image:
            with pytest.raises(ImageError, match="is 640x427"):
                decode(image, max_pixels=1000)
            assert image._im is None


class TestDamage:
    def test_empty_bytes_and_an_empty_file_are_called_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty.jpg").touch()
        with pytest.raises(ImageError, match=r"empty\.jpg: is empty, 0 bytes"):
            decode(tmp_path / "empty.jpg")
        with pytest.raises(ImageError, match="0 bytes: is empty"):
            decode(b"")

    def test_text_named_as_an_image_is_refused_with_how_it_starts(self, tmp_path: Path) -> None:
        (tmp_path / "page.jpg").write_text("<html>not found</html>")
        with pytest.raises(ImageError, match=r"page\.jpg: is not an image of a known format .*starts with b'<html>"):
            decode(tmp_path / "page.jpg")

    @given(st.binary(max_size=200))
    def test_random_bytes_are_refused(self, raw: bytes) -> None:
        with pytest.raises(ImageError):
            decode(raw)

    @pytest.mark.parametrize(
        "signature",
        [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"RIFF\0\0\0\0WEBP",
            b"\0\0\0\x10ftypavif\0\0\0\0\0\0\0\x40meta",
            b"\0\0\0\x10ftypheic\0\0\0\0\0\0\0\x40meta",
            b"\xff\x4f\xff\x51",
        ],
    )
    @given(tail=st.binary(max_size=300))
    @settings(max_examples=40, deadline=None)
    def test_random_bytes_after_a_signature_are_refused_or_tiny(self, signature: bytes, tail: bytes) -> None:
        try:
            image = decode(signature + tail, max_pixels=SMALL)
        except ImageError:
            return
        assert image.mode == "RGB"

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "HEIF", "JPEG2000"])
    @given(data=st.data())
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_flipped_bit_gives_a_picture_or_an_image_error(
        self, picture: Image.Image, kind: str, data: st.DataObject
    ) -> None:
        raw = bytearray(encoded(picture, kind))
        for position in data.draw(st.lists(st.integers(0, min(len(raw), 3000) - 1), min_size=1, max_size=4)):
            raw[position] ^= 1 << data.draw(st.integers(0, 7))
        try:
            image = decode(bytes(raw), max_pixels=SMALL)
        except ImageError:
            return
        assert image.mode == "RGB"

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    @given(data=st.data())
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_cut_file_is_refused_or_lacks_nothing_that_shows(
        self, picture: Image.Image, kind: str, data: st.DataObject
    ) -> None:
        raw = encoded(picture, kind)
        kept = data.draw(st.one_of(st.integers(0, len(raw) - 1), st.integers(len(raw) - 40, len(raw) - 1)))
        try:
            image = decode(raw[:kept])
        except ImageError:
            return
        assert difference(image, decode(raw)) == 0

    def test_a_cut_progressive_jpeg_is_refused(self, picture: Image.Image) -> None:
        raw = encoded(picture, "JPEG", progressive=True)
        with pytest.raises(ImageError, match="cannot be read"):
            decode(raw[: len(raw) * 3 // 4])

    def test_running_out_of_memory_is_an_image_error(
        self, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def exhausted(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
        with pytest.raises(ImageError, match="MemoryError"):
            decode(encoded(picture, "BMP"))

    def test_every_listed_format_is_tested_here(self) -> None:
        assert set(FORMATS) == {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "HEIC", "JPEG2000"}
