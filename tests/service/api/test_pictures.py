"""Picture files in requests and replies: which are accepted, and why others are refused."""

import io
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from common.pictures import decode
from service.api import pictures
from service.api.pictures import read_files, write_files
from service.errors import InvalidArgument

GREY_MODEL, RGB_MODEL = (1, 28, 28), (3, 28, 28)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 9)).astype(np.uint8)


def save(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_of(width: int, height: int, *more: bytes, data: bytes = b"\0" * 64) -> bytes:
    """A grey PNG file whose header states a size that its data need not have."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data))
    return b"".join((b"\x89PNG\r\n\x1a\n", header, *more, body, chunk(b"IEND", b"")))


def refused(
    raw: bytes, shape: tuple[int, int, int] = GREY_MODEL, resize: bool = False
) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read_files([raw], "images.encoded", shape, resize)
    assert caught.value.field == "images.encoded.files[0]"
    assert caught.value.index == 0
    return caught.value


GREY, RGB = noise(28, 28), noise(28, 28, 3, seed=1)

# One picture of each mode that a PNG, JPEG or WebP file can have, of 28x28 pixels.
MODES = {
    "L": save(Image.fromarray(GREY)),
    "1": save(Image.fromarray(GREY > 127)),
    "I;16": save(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "L JPEG": save(Image.fromarray(smooth(28, 28)), "JPEG"),
    "LA": save(Image.fromarray(GREY).convert("LA")),
    "L tRNS": save(Image.fromarray(GREY), transparency=7),
    "P": save(Image.fromarray(RGB).quantize(64)),
    "P grey": save(Image.fromarray(GREY).convert("P")),
    "RGB": save(Image.fromarray(RGB)),
    "RGB grey": save(Image.fromarray(GREY).convert("RGB")),
    "RGB JPEG": save(Image.fromarray(np.dstack([smooth(28, 28)] * 3)), "JPEG"),
    "RGBA": save(Image.fromarray(RGB).convert("RGBA")),
    "CMYK JPEG": save(Image.fromarray(RGB).convert("CMYK"), "JPEG"),
    "RGB WebP": save(Image.fromarray(RGB), "WEBP"),
    "RGB lossless WebP": save(Image.fromarray(RGB), "WEBP", lossless=True),
    "RGBA WebP": save(Image.fromarray(np.dstack([RGB, GREY])), "WEBP"),
}
ACCEPTED = {
    GREY_MODEL: {"L", "1", "I;16", "L JPEG"},
    RGB_MODEL: {"RGB", "RGB grey", "RGB JPEG", "RGB WebP", "RGB lossless WebP"},
}


@pytest.mark.parametrize("shape", ACCEPTED, ids=["grey model", "RGB model"])
@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_another_mode_than_the_models_is_accepted_only_with_resize(
    mode: str, shape: tuple[int, int, int]
) -> None:
    prepared = decode(MODES[mode], (28, 28), shape[0])[None]
    if mode in ACCEPTED[shape]:
        got = read_files([MODES[mode]], "images", shape, resize=False)
        assert got.dtype == np.uint8
        assert np.array_equal(got, prepared)
    else:
        error = refused(MODES[mode], shape)
        wanted = "grey" if shape == GREY_MODEL else "RGB"
        assert error.description.endswith(f"wanted {wanted} 28x28 (height x width), or resize")
    assert np.array_equal(read_files([MODES[mode]], "images", shape, resize=True), prepared)


def test_pixels_of_an_accepted_picture_are_unchanged() -> None:
    assert np.array_equal(read_files([MODES["L"]], "images", GREY_MODEL, False), GREY[None, None])
    rgb = read_files([MODES["RGB"]], "images", RGB_MODEL, False)
    assert np.array_equal(rgb, RGB.transpose(2, 0, 1)[None])
    bits = read_files([MODES["1"]], "images", GREY_MODEL, False)
    assert np.array_equal(bits[0, 0], np.where(GREY > 127, 255, 0))
    deep = read_files([MODES["I;16"]], "images", GREY_MODEL, False)
    assert np.array_equal(deep[0, 0], GREY)


@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (save(Image.fromarray(noise(30, 40, 3))), "RGB 30x40 PNG"),
        (save(Image.fromarray(noise(30, 40)), "JPEG"), "grey 30x40 JPEG"),
        (MODES["P grey"], "palette 28x28 PNG"),
        (MODES["LA"], "grey 28x28 PNG with transparency"),
        (MODES["RGBA"], "RGB 28x28 PNG with transparency"),
        (MODES["CMYK JPEG"], "CMYK 28x28 JPEG"),
    ],
)
def test_a_refused_picture_is_described_by_got_and_wanted(raw: bytes, got: str) -> None:
    error = refused(raw)
    assert (
        str(error)
        == f"images.encoded.files[0]: got {got}, wanted grey 28x28 (height x width), or resize"
    )


def test_a_picture_turned_by_exif_is_accepted_only_with_resize() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG"):
        raw = save(Image.fromarray(smooth(28, 28)), kind, exif=exif)
        assert f"grey 28x28 {kind}, turned by its EXIF data" in str(refused(raw))
        assert read_files([raw], "images", GREY_MODEL, resize=True).shape == (1, *GREY_MODEL)
    exif[0x0112] = 1
    raw = save(Image.fromarray(GREY), exif=exif)
    assert np.array_equal(read_files([raw], "images", GREY_MODEL, False)[0, 0], GREY)


def test_exif_orientation_after_the_pixels_of_a_png_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    raw = MODES["L"]
    end = raw.index(b"IEND") - 4
    late = raw[:end] + chunk(b"eXIf", exif.tobytes()[6:]) + raw[end:]
    assert "turned by its EXIF data" in str(refused(late))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 20, 36), (3, 36, 20)])
def test_a_turned_jpeg_is_resized_as_for_training(
    orientation: int, shape: tuple[int, int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = save(Image.fromarray(smooth(300, 470)), "JPEG", exif=exif)
    got = read_files([raw], "images", shape, resize=True)
    assert np.array_equal(got[0], decode(raw, shape[1:], shape[0]))


def test_an_invalid_file_among_valid_ones_is_named_by_its_index() -> None:
    files = [MODES["L"], MODES["L JPEG"], MODES["RGB"], b"what"]
    with pytest.raises(InvalidArgument) as caught:
        read_files(files, "start.images.encoded", GREY_MODEL, resize=False)
    assert caught.value.field == "start.images.encoded.files[2]"


def test_rows_have_the_order_of_the_files() -> None:
    arrays = noise(20, 28, 28)
    files = [save(Image.fromarray(image)) for image in arrays]
    got = read_files(files, "images", GREY_MODEL, False)
    assert np.array_equal(got[:, 0], arrays)


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize(
    ("raw", "got"),
    [
        (b"", "an empty file"),
        (b"hello", "a file that is no picture"),
        (b"\x89PNG\r\n\x1a\n", "a file that is no picture, or damaged"),
        (b"\xff\xd8\xff", "a file that is no picture, or damaged"),
        (save(Image.fromarray(GREY), "GIF"), "a file that is no picture"),
        (save(Image.fromarray(GREY), "BMP"), "a file that is no picture"),
        (save(Image.fromarray(GREY), "TIFF"), "a file that is no picture"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "damaged"),
    ],
    ids=[
        "empty",
        "text",
        "PNG signature",
        "JPEG signature",
        "GIF",
        "BMP",
        "TIFF",
        "WebP signature",
    ],
)
def test_a_file_of_another_format_is_refused(raw: bytes, got: str, resize: bool) -> None:
    error = refused(raw, resize=resize)
    assert got in error.description
    assert error.description.endswith("wanted a PNG, JPEG or WebP file")


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "L JPEG", "RGB JPEG", "P", "I;16"])
def test_a_truncated_file_is_refused(mode: str, resize: bool) -> None:
    raw = MODES[mode]
    for end in [*range(0, len(raw), 10), len(raw) - 1]:
        refused(raw[:end], RGB_MODEL if "RGB" in mode else GREY_MODEL, resize)


def test_a_truncated_progressive_jpeg_is_refused() -> None:
    raw = save(Image.fromarray(smooth(28, 28)), "JPEG", progressive=True)
    assert read_files([raw], "images", GREY_MODEL, False).shape == (1, *GREY_MODEL)
    for end in range(0, len(raw), 10):
        refused(raw[:end])


@pytest.mark.parametrize(
    ("width", "height", "got"),
    [
        (8001, 8000, "64008000 pixels"),
        (10_000, 10_000, "100000000 pixels"),
        (60_000, 60_000, "more than 178956970 pixels"),
        (2**31 - 1, 2**31 - 1, "more than 178956970 pixels"),
    ],
)
@pytest.mark.parametrize("resize", [False, True])
def test_a_png_bomb_is_refused_by_its_header(
    width: int, height: int, got: str, resize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    error = refused(png_of(width, height), resize=resize)
    assert error.description == f"got {got}, wanted at most 64 megapixels"


def test_a_jpeg_bomb_is_refused_by_its_header() -> None:
    raw = bytearray(save(Image.new("L", (64, 64)), "JPEG"))
    frame = raw.index(b"\xff\xc0") + 5
    raw[frame : frame + 4] = struct.pack(">HH", 60_000, 60_000)
    assert "wanted at most 64 megapixels" in refused(bytes(raw), resize=True).description


@pytest.mark.parametrize("side", [9000, 16_384])
def test_a_webp_bomb_is_refused_by_its_header(side: int) -> None:
    raw = bytearray(save(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    assert raw[12:16] == b"VP8L"
    # Width and height, 14 bits each, less 1.
    flags = int.from_bytes(raw[21:25], "little") >> 28 << 28
    raw[21:25] = (flags | (side - 1) << 14 | side - 1).to_bytes(4, "little")
    assert "pixels, wanted at most 64 megapixels" in refused(bytes(raw), RGB_MODEL).description


def test_a_picture_beyond_the_limit_of_a_small_server_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="got 1210000 pixels, wanted at most 1 megapixels"):
        read_files([png_of(1100, 1100)], "images", GREY_MODEL, True, 1_000_000)


def test_a_large_picture_within_the_limit_is_read() -> None:
    rows = b"".join(b"\0" + b"\x4d" * 8000 for _ in range(8000))
    got = read_files([png_of(8000, 8000, data=rows)], "images", GREY_MODEL, resize=True)
    assert (got == 0x4D).all()


def test_a_picture_of_another_size_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert "grey 9000x7000 PNG" in refused(png_of(7000, 9000)).description


def test_a_bomb_in_a_text_or_profile_chunk_is_refused() -> None:
    packed = zlib.compress(bytes(200_000_000), 9)
    rows = (b"\0" + bytes(28)) * 28
    for kind in (b"zTXt", b"iCCP"):
        raw = png_of(28, 28, chunk(kind, b"name\0\0" + packed), data=rows)
        assert "a damaged file" in refused(raw).description
        harmless = png_of(28, 28, chunk(kind, b"name\0\0" + zlib.compress(b"x")), data=rows)
        assert not read_files([harmless], "images", GREY_MODEL, False).any()


@settings(max_examples=300)
@given(st.sampled_from(sorted(MODES)), st.booleans(), st.data())
def test_a_damaged_file_is_refused_or_decodes_and_a_png_to_the_same_pixels(
    mode: str, resize: bool, data: st.DataObject
) -> None:
    raw = bytearray(MODES[mode])
    # Damage to the compressed pixels of a JPEG, after its headers, mostly leaves it readable.
    least = 300 if "JPEG" in mode and data.draw(st.booleans()) else 0
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(least, len(raw) - 1) | st.integers(least, least + 80))
        kind = data.draw(st.sampled_from(["change", "insert", "remove"]))
        if kind == "change":
            raw[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            raw[place:place] = data.draw(st.binary(max_size=8))
        else:
            del raw[place : place + data.draw(st.integers(1, 8))]
    for shape in (GREY_MODEL, RGB_MODEL):
        got = read_valid(bytes(raw), shape, resize)
        if got is not None and not mode.endswith(("JPEG", "WebP")):
            # A change of pixels would not pass the checksums.
            assert (got == read_files([MODES[mode]], "images", shape, resize)).all()


@settings(max_examples=300)
@given(st.sampled_from(sorted(MODES)), st.booleans(), st.data())
def test_damage_with_valid_checksums_is_refused_or_decodes(
    mode: str, resize: bool, data: st.DataObject
) -> None:
    raw = MODES[mode]
    if mode.endswith(("JPEG", "WebP")):
        chunks = [raw]
    else:
        chunks, place = [raw[:8]], 8
        while place < len(raw):
            (length,) = struct.unpack(">I", raw[place : place + 4])
            kind = raw[place + 4 : place + 8]
            content = bytearray(raw[place + 8 : place + 8 + length])
            if content and data.draw(st.booleans()):
                content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
            chunks.append(chunk(kind, bytes(content)))
            place += 12 + length
        more = data.draw(st.sampled_from([b"eXIf", b"tRNS", b"acTL", b"fcTL", b"iTXt", b"PLTE"]))
        where = data.draw(st.integers(1, len(chunks)))
        chunks.insert(where, chunk(more, data.draw(st.binary(max_size=40))))
    for shape in (GREY_MODEL, RGB_MODEL):
        read_valid(b"".join(chunks), shape, resize)


@pytest.mark.parametrize("resize", [False, True])
def test_a_missing_palette_is_named(resize: bool) -> None:
    raw = MODES["P"]
    start = raw.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", raw[start : start + 4])
    error = refused(raw[:start] + raw[start + 12 + length :], resize=resize)
    assert "a damaged file (its palette is missing)" in str(error)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"]))
def test_random_bytes_are_refused(tail: bytes, start: bytes) -> None:
    refused(start + tail)
    refused(start + tail, resize=True)


def read_valid(raw: bytes, shape: tuple[int, int, int], resize: bool) -> NDArray[np.uint8] | None:
    """Pixels of a file, uint8 [1, C, H, W]; None if it is refused as invalid."""
    try:
        got = read_files([raw], "images", shape, resize)
    except InvalidArgument:
        return None
    assert got.shape == (1, *shape)
    assert got.dtype == np.uint8
    return got


def test_threads_read_alike_while_another_changes_warning_filters() -> None:
    files = [*MODES.values(), save(Image.fromarray(smooth(2000, 2500)))]
    alone = read_files(files, "images", RGB_MODEL, resize=True)
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            with warnings.catch_warnings():
                warnings.simplefilter("error")

    with ThreadPoolExecutor(9) as pool:
        meddling = pool.submit(meddle)
        try:
            reading = [pool.submit(read_files, files, "i", RGB_MODEL, True) for _ in range(5)]
            assert all(np.array_equal(alone, read.result()) for read in reading)
        finally:
            done.set()
        meddling.result()


@pytest.mark.parametrize(("max_pixels", "wanted"), [(5_000_000, 1), (10_000_000, 2)])
def test_pictures_that_are_decoded_at_a_time_are_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, max_pixels: int, wanted: int
) -> None:
    inside, most = 0, 0
    prepare = pictures.pictures.prepare

    def counted(*arguments: Any) -> NDArray[np.uint8]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        try:
            return prepare(*arguments)
        finally:
            inside -= 1

    monkeypatch.setattr(pictures.pictures, "prepare", counted)
    large = [save(Image.new("1", (2200, 2200)))]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda _: read_files(large, "images", GREY_MODEL, True, max_pixels), range(8))
        )
    assert most == wanted


def test_a_model_of_two_channels_accepts_no_files() -> None:
    with pytest.raises(InvalidArgument, match=r"images\.files: .*wanted a tensor.* 2 channels"):
        read_files([MODES["L"]], "images", (2, 28, 28), resize=True)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("shape", [(2, 3, 40, 60), (1, 1, 40, 60)])
def test_lossy_files_are_close_to_the_pixels(kind: str, shape: tuple[int, ...]) -> None:
    pixels = np.broadcast_to(smooth(40, 60), shape)
    for quality, error in ((95, 6.0), (10, 40.0)):
        files = write_files(pixels, kind, quality)
        with Image.open(io.BytesIO(files[0])) as image:
            assert image.format == kind
        again = np.stack([decode(file, None, shape[1]) for file in files])
        assert np.abs(again.astype(int) - pixels).mean() < error


@pytest.mark.parametrize(("kind", "side"), [("WEBP", 16_384), ("JPEG", 65_536)])
def test_a_side_that_a_format_cannot_store_is_refused(kind: str, side: int) -> None:
    with pytest.raises(InvalidArgument, match=f"format: got {kind} of 1x{side}, wanted at most"):
        write_files(np.zeros((1, 1, 1, side), np.uint8), kind)


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (3, 3, 20, 36), (1, 1, 1, 1), (0, 1, 28, 28)])
def test_written_files_read_back_to_the_same_pixels(shape: tuple[int, ...]) -> None:
    pixels = noise(*shape)
    files = write_files(pixels)
    assert len(files) == len(pixels)
    for raw, image in zip(files, pixels, strict=True):
        with Image.open(io.BytesIO(raw)) as opened:
            assert opened.format == "PNG"
            assert opened.mode == ("L" if shape[1] == 1 else "RGB")
            got = np.asarray(opened)
        assert np.array_equal(got.reshape(*image.shape[1:], -1).transpose(2, 0, 1), image)
    if files:
        again = read_files(files, "images", (shape[1], shape[2], shape[3]), resize=False)
        assert np.array_equal(again, pixels)


def test_a_strided_view_is_written_as_its_values() -> None:
    pixels = noise(4, 28, 28, 3).transpose(0, 3, 1, 2)[::2, :, ::-1]
    assert np.array_equal(read_files(write_files(pixels), "images", RGB_MODEL, False), pixels)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 4, 8, 8), (8, 8), (2, 8, 8)])
def test_only_one_or_three_channels_can_be_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"wanted \[N, 1 or 3, H, W\]"):
        write_files(np.zeros(shape, np.uint8))
