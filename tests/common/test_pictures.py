"""Decoding pictures: formats, modes, orientation, size, damage, threads."""

import io
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from common.pictures import (
    Fit,
    PictureError,
    Size,
    TooLarge,
    colour,
    decode,
    open_picture,
    prepare,
    resize,
)


def read(raw: bytes, side: int | None, channels: int | None) -> NDArray[np.uint8]:
    return decode(raw, None if side is None else (side, side), channels)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(array: NDArray[Any], mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array)
    return save(image.convert(mode) if mode else image, "PNG", **options)


COLOUR = noise(6, 5, 3)
GREY = noise(6, 5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("PPM", {}), ("WEBP", {"lossless": True})],
)
def test_a_lossless_picture_decodes_to_its_pixels(kind: str, options: dict[str, Any]) -> None:
    got = read(save(Image.fromarray(COLOUR), kind, **options), None, None)
    assert got.dtype == np.uint8
    assert np.array_equal(got, COLOUR.transpose(2, 0, 1))


def test_a_jpeg_decodes_to_nearly_its_pixels() -> None:
    ramp = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    got = read(save(Image.fromarray(ramp), "JPEG", quality=95), None, None)
    assert got.shape == (1, 48, 64)
    assert np.abs(got[0].astype(int) - ramp).max() < 6


def test_an_animation_decodes_to_its_first_frame() -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (50, 200)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        raw = save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (read(raw, None, None) == 50).all(), kind


@pytest.mark.parametrize("kind", ["PNG", "PPM", "BMP", "GIF"])
def test_a_grey_picture_has_one_channel(kind: str) -> None:
    got = read(save(Image.fromarray(GREY), kind), None, None)
    assert np.array_equal(got, GREY[None])


def test_a_one_bit_picture_is_black_and_white() -> None:
    bits = GREY > 127
    for kind in ("PNG", "PPM"):
        got = read(save(Image.fromarray(bits), kind), None, None)
        assert np.array_equal(got, np.where(bits, 255, 0)[None])


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_sixteen_bit_pixels_are_scaled_to_eight_bits(kind: str) -> None:
    deep = np.array([[0, 128, 129, 257], [25_700, 32_767, 65_534, 65_535]], np.uint16)
    got = read(save(Image.fromarray(deep), kind), None, None)
    assert got.tolist() == [[[0, 0, 1, 1], [100, 127, 255, 255]]]


def test_a_palette_picture_has_its_colours_or_is_grey() -> None:
    index = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).convert("P")
    index.putpalette([10, 20, 30, 255, 0, 0, 0, 255, 0, 7, 7, 7])
    got = read(save(index, "PNG"), None, None)
    assert got.transpose(1, 2, 0).tolist() == [[[10, 20, 30], [255, 0, 0]], [[0, 255, 0], [7] * 3]]
    index.putpalette([10, 10, 10, 200, 200, 200, 30, 30, 30, 7, 7, 7])
    assert read(save(index, "PNG"), None, None).tolist() == [[[10, 200], [30, 7]]]


def test_transparent_pixels_are_composed_over_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 51, 255)
    rgba[0, 2, :3] = (1, 2, 3)
    got = read(png(rgba), None, None)
    assert got[:, 0].T.tolist() == [[255] * 3, [204] * 3, [1, 2, 3]]
    grey_alpha = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 51)])
    assert read(save(grey_alpha, "PNG"), None, None).tolist() == [[[204] * 2] * 2]


def test_a_transparent_colour_of_a_palette_or_of_grey_becomes_white() -> None:
    index = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    index.putpalette([0, 0, 0, 9, 9, 9])
    for kind in ("PNG", "GIF"):
        raw = save(index, kind, transparency=0)
        assert read(raw, None, None).tolist() == [[[255, 9]]], kind
    grey = Image.fromarray(np.array([[0, 9]], np.uint8))
    assert read(save(grey, "PNG", transparency=0), None, None).tolist() == [[[255, 9]]]
    deep = Image.fromarray(np.array([[514, 2570]], np.uint16))
    assert read(save(deep, "PNG", transparency=514), None, None).tolist() == [[[255, 10]]]
    bits = Image.fromarray(np.array([[False, True]]))
    assert read(save(bits, "PNG", transparency=0), None, None).tolist() == [[[255, 255]]]


def test_cmyk_is_converted_to_rgb() -> None:
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    got = read(save(ink, "JPEG", quality=100), None, None)
    assert got.shape == (3, 8, 8)
    assert np.abs(got.astype(int) - np.array([255, 0, 0])[:, None, None]).max() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_the_exif_orientation_turns_a_picture_upright(orientation: int, mode: str) -> None:
    upright = noise(4, 6) if mode != "RGB" else noise(4, 6, 3)
    stored = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
    }[orientation](upright)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.ascontiguousarray(stored)
    if mode == "I;16":
        array = array.astype(np.uint16) * 257
    got = read(png(array, exif=exif), None, None)
    assert np.array_equal(got, upright[None] if mode != "RGB" else upright.transpose(2, 0, 1))


def test_damaged_exif_data_are_ignored() -> None:
    for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0what", b"Exif\0\0"):
        assert np.array_equal(read(png(GREY, exif=exif), None, None), GREY[None])


def test_pictures_are_converted_to_the_channels_wanted() -> None:
    rgb, grey = png(COLOUR), png(GREY)
    assert np.array_equal(read(grey, None, 3), np.repeat(GREY[None], 3, axis=0))
    luma = read(rgb, None, 1)
    wanted = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert luma.shape == (1, 6, 5)
    assert np.abs(luma[0] - wanted).max() <= 1


def test_wide_and_high_pictures_are_cropped_to_their_centre() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (200, 100, 50)
    for array in (wide, wide.swapaxes(0, 1)):
        got = read(png(np.ascontiguousarray(array)), 10, None)
        assert got.shape == (3, 10, 10)
        assert np.abs(got[:, 2:-2, 2:-2].astype(int) - [[[200]], [[100]], [[50]]]).max() <= 2
        # Resized without cropping, the edges would be black.
        assert got[0].min() > 150


def test_a_shrunk_picture_keeps_its_mean_without_aliasing() -> None:
    lines = np.zeros((64, 64), np.uint8)
    lines[:, ::2] = 255
    got = read(png(lines), 16, None)[0, 2:-2, 2:-2]
    assert np.abs(got.astype(int) - 127).max() < 10


def test_a_picture_of_the_size_wanted_is_not_resampled() -> None:
    square = noise(8, 8)
    assert np.array_equal(read(png(square), 8, None), square[None])


@pytest.mark.parametrize("times", [1, 2, 3, 8])
def test_a_large_jpeg_decoded_at_a_fraction_is_nearly_the_same(times: int) -> None:
    y, x = np.mgrid[0 : 80 * times, 0 : 100 * times] / times
    smooth = (127 + 60 * np.sin(x / 3) + 60 * np.cos(y / 3)).astype(np.uint8)
    raw = save(Image.fromarray(smooth), "JPEG", quality=95)
    exact = read(png(smooth), 32, None)
    assert np.abs(read(raw, 32, None).astype(int) - exact).max() <= 4


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize(
    ("size", "channels"), [(None, None), ((8, 8), None), ((8, 8), 1), ((5, 5), 3), ((6, 11), 3)]
)
def test_arrays_are_resized_as_files_are(size: Size | None, channels: int | None, fit: Fit) -> None:
    for image in (noise(12, 9), noise(12, 9, 3)):
        pixels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        got = resize(pixels, size, channels, fit, (1, 2, 3))
        assert np.array_equal(got, decode(png(image), size, channels, fit, (1, 2, 3)))


@pytest.mark.parametrize(
    ("shape", "inner"),
    [((20, 60), np.s_[6:14, :]), ((60, 20), np.s_[:, 8:15]), ((10, 12), np.s_[:, :])],
)
def test_pictures_are_padded_to_the_aspect_ratio_wanted(
    shape: tuple[int, int], inner: tuple[slice, slice]
) -> None:
    got = decode(png(np.full((*shape, 3), (200, 100, 50), np.uint8)), (20, 24), None, "pad")
    middle = np.zeros((20, 24), bool)
    middle[inner] = True
    assert (got[:, middle] == [[200], [100], [50]]).all()
    assert (got[:, ~middle] == 255).all()


def test_padding_and_transparency_take_the_background() -> None:
    red, grey = (255, 0, 0), (9, 9, 9)
    wide = np.full((4, 8), 77, np.uint8)
    assert decode(png(wide), (8, 8), None, "pad", grey)[:, 0, 0].tolist() == [9]
    assert decode(png(wide), (8, 8), None, "pad", red)[:, 0, 0].tolist() == [255, 0, 0]
    assert decode(png(wide), (8, 8), None, "pad", red)[:, 4, 4].tolist() == [77, 77, 77]
    assert decode(png(wide), (8, 8), 1, "pad", red).shape == (1, 8, 8)
    clear = save(Image.new("LA", (8, 8), (0, 0)), "PNG")
    assert decode(clear, None, None, "crop", grey).tolist() == np.full((1, 8, 8), 9).tolist()
    assert decode(clear, None, None, "crop", red)[:, 0, 0].tolist() == [255, 0, 0]
    half = save(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG")
    assert decode(half, None, None, "crop", red)[:, 0, 0].tolist() == [127, 0, 0]
    deep = Image.fromarray(np.full((8, 8), 25_700, np.uint16))
    keyed = save(deep, "PNG", transparency=25_700)
    assert decode(keyed, None, None, "crop", red)[:, 0, 0].tolist() == [255, 0, 0]
    assert decode(keyed, None, None, "crop", grey)[:, 0, 0].tolist() == [9]


def test_colours_are_read_by_name_and_in_hexadecimal() -> None:
    assert colour("#FF8000") == (255, 128, 0)
    assert colour("Navy") == (0, 0, 128)
    for text in ("", "#fff", "#ff80000", "rgb(1,2,3)", "nocolour", "ff8000"):
        with pytest.raises(ValueError, match=r".*"):
            colour(text)


@pytest.mark.parametrize(("height", "width"), [(10, 20), (20, 10), (7, 28), (30, 6)])
def test_pictures_are_cropped_to_the_aspect_ratio_wanted(height: int, width: int) -> None:
    inner = np.full((height * 3, width * 3, 3), (200, 100, 50), np.uint8)
    for pad in ((height * 2, 0), (0, width * 2), (0, 0)):
        array = np.pad(inner, ((pad[0],) * 2, (pad[1],) * 2, (0, 0)))
        got = decode(png(array), (height, width), None)
        assert got.shape == (3, height, width)
        # At the rim, a little of the cropped part is interpolated in.
        middle = got[:, height // 3 : height - height // 3, width // 3 : width - width // 3]
        assert np.abs(middle.astype(int) - [[[200]], [[100]], [[50]]]).max() <= 2


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
def test_pictures_of_any_size_are_resized_to_any_other(
    width: int, height: int, to_height: int, to_width: int
) -> None:
    got = decode(png(np.full((height, width), 77, np.uint8)), (to_height, to_width), 3)
    assert np.array_equal(got, np.full((3, to_height, to_width), 77))


def test_a_turned_picture_is_cropped_after_it_is_turned() -> None:
    y, x = np.mgrid[0:160, 0:400]
    smooth = (127 + 60 * np.sin(x / 30) + 60 * np.cos(y / 30)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = save(Image.fromarray(np.rot90(smooth)), "JPEG", quality=95, exif=exif)
    exact = decode(png(smooth), (16, 40), None)
    assert np.abs(decode(turned, (16, 40), None).astype(int) - exact).max() <= 4


TRUNCATED = {
    kind: save(Image.fromarray(noise(40, 40, 3)), kind, **options)
    for kind, options in (
        ("PNG", {}), ("JPEG", {}), ("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True}),
        ("PPM", {}),
    )
}  # fmt: skip


@pytest.mark.parametrize("kind", TRUNCATED)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(kind: str, share: float) -> None:
    raw = TRUNCATED[kind]
    assert read(raw, None, None).shape == (3, 40, 40)
    with pytest.raises(PictureError):
        read(raw[: int(len(raw) * share)], None, None)


@settings(max_examples=300)
@given(st.sampled_from(sorted(TRUNCATED)), st.data())
def test_damaged_bytes_are_a_picture_or_a_picture_error(kind: str, data: st.DataObject) -> None:
    raw = bytearray(TRUNCATED[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 60) | st.integers(0, len(raw) - 1))] = data.draw(
            st.integers(0, 255)
        )
    try:
        got = read(bytes(raw), 8, None)
    except PictureError:
        return
    assert got.shape in ((3, 8, 8), (1, 8, 8))


@pytest.mark.parametrize("raw", [b"", b"hello", b"%PDF-1.7", save(Image.new("L", (9, 9)), "TIFF")])
def test_bytes_in_no_known_format_are_refused_with_the_formats_wanted(raw: bytes) -> None:
    with pytest.raises(
        PictureError, match="not a picture, wanted one of PNG, JPEG, BMP, GIF, WEBP"
    ):
        read(raw, None, None)


@pytest.mark.parametrize(
    ("side", "message"),
    [(10_000, "100000000 pixels"), (30_000, "more than 178956970 pixels")],
    ids=["a warning of Pillow's", "an error of its"],
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int, message: str) -> None:
    raw = png(np.zeros((1, 1), np.uint8))
    header = raw.index(b"IHDR") + 4
    bomb = raw[:header] + side.to_bytes(4, "big") * 2 + raw[header + 8 :]
    end = header + 13
    # The header has its checksum.
    bomb = bomb[:end] + zlib.crc32(bomb[header - 4 : end]).to_bytes(4, "big") + bomb[end + 4 :]
    with pytest.raises(TooLarge, match=f"{message} exceed the limit of .*bomb"):
        read(bomb, 8, None)
    with pytest.raises(TooLarge, match=r"pixels exceed the limit of 99, "):
        open_picture(bomb, max_pixels=99)


def test_float_pixels_of_unknown_scale_are_refused() -> None:
    raw = b"Pf\n2 2\n-1.0\n" + np.zeros(4, "<f4").tobytes()
    with pytest.raises(PictureError, match="pixels of mode F"):
        read(raw, None, None)


def test_pictures_in_formats_that_are_not_accepted_are_refused() -> None:
    assert open_picture(save(Image.new("L", (2, 2)), "GIF")).size == (2, 2)
    with pytest.raises(PictureError, match=r"not a picture, wanted one of PNG, JPEG$"):
        open_picture(save(Image.new("L", (2, 2)), "GIF"), ("PNG", "JPEG"))


def odd_png() -> bytes:
    """A valid picture that Pillow warns of: an animation without frames."""
    raw = png(GREY)
    body = b"acTL" + bytes(8)
    chunk = (8).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return raw[:33] + chunk + raw[33:]


def test_pictures_that_pillow_warns_of_decode_without_a_warning_in_any_thread(
    capfd: pytest.CaptureFixture[str],
) -> None:
    raw = odd_png()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="Invalid APNG"):
            Image.open(io.BytesIO(raw)).load()
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            read_all = list(pool.map(lambda _: decode(raw, None, None), range(400)))
        # One more filter, and not one per call.
        assert len(warnings.filters) == len(before) + 1
        with pytest.raises(UserWarning, match="one of ours"):
            warnings.warn("one of ours", stacklevel=1)
    assert all(np.array_equal(pixels, GREY[None]) for pixels in read_all)
    assert capfd.readouterr() == ("", "")


def test_many_threads_decode_as_one_does() -> None:
    files = [save(Image.fromarray(noise(50, 40, 3, seed=n)), kind) for n in range(20)
             for kind in ("PNG", "JPEG", "WEBP", "GIF")]  # fmt: skip
    alone = [decode(raw, (8, 8), None) for raw in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda raw: decode(raw, (8, 8), None), files * 5))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 5, together, strict=True))


def test_opening_a_picture_does_not_decode_its_pixels() -> None:
    """Its properties are known before its pixels are decoded."""
    raw = png(COLOUR)
    half = raw[: raw.index(b"IDAT") + 6]
    with open_picture(half) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (5, 6))
        with pytest.raises(PictureError):
            prepare(image, None, None)


def chunks_of(raw: bytes) -> list[bytes]:
    """The chunks of a PNG file, without its signature."""
    chunks, start = [], 8
    while start < len(raw):
        stop = start + 12 + int.from_bytes(raw[start : start + 4], "big")
        chunks.append(raw[start:stop])
        start = stop
    return chunks


def smooth_png() -> bytes:
    y, x = np.mgrid[:28, :28]
    return png((255 * np.exp(-((x - 13) ** 2 + (y - 15) ** 2) / 30)).astype(np.uint8))


def test_a_png_file_with_any_byte_of_its_pixels_changed_is_refused() -> None:
    raw = smooth_png()
    start = raw.index(b"IDAT") + 4
    size = int.from_bytes(raw[start - 8 : start - 4], "big")
    assert read(raw, None, None).shape == (1, 28, 28)
    rng = np.random.default_rng(0)
    for place in range(start, start + size):
        for change in {1, 128, int(rng.integers(1, 256))}:
            bad = raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :]
            with pytest.raises(PictureError, match="the checksum of its IDAT chunk is wrong"):
                read(bad, None, None)


@pytest.mark.parametrize("kind", [b"IHDR", b"tEXt", b"IDAT", b"zTXt", b"eXIf", b"IEND"])
def test_a_png_chunk_with_a_wrong_checksum_is_refused_wherever_it_is(kind: bytes) -> None:
    raw = bytearray(smooth_png())
    first, *rest = chunks_of(bytes(raw))

    def extra(name: bytes) -> bytes:
        body = name + b"key\0\0" + zlib.compress(b"value")
        checksum = zlib.crc32(body).to_bytes(4, "big")
        return (len(body) - 4).to_bytes(4, "big") + body + checksum

    chunks = [first, extra(b"tEXt"), *rest[:-1], extra(b"zTXt"), extra(b"eXIf"), rest[-1]]
    whole = bytes(raw[:8]) + b"".join(chunks)
    assert np.array_equal(read(whole, None, None), read(bytes(raw), None, None))
    at = whole.index(kind) + 4 + int.from_bytes(whole[whole.index(kind) - 4 :][:4], "big")
    bad = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    with pytest.raises(PictureError):
        read(bad, None, None)


def test_bytes_after_the_end_of_a_png_file_are_ignored() -> None:
    raw = smooth_png()
    assert np.array_equal(read(raw + b"\0more", None, None), read(raw, None, None))


def test_a_png_file_without_its_last_chunk_is_refused() -> None:
    raw = smooth_png()
    with pytest.raises(PictureError, match="truncated"):
        read(raw[: raw.index(b"IEND") - 4], None, None)
