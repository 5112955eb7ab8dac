"""Sizes of pictures from the headers of their files: what Pillow reads, without Pillow."""

import io
import random

import pytest
from PIL import ExifTags, Image

from latentserve._client.headers import PictureSize, is_picture, picture_size

FORMATS = {
    "PNG": {},
    "JPEG": {},
    "progressive": {"format": "JPEG", "progressive": True},
    "WEBP": {},
    "lossless": {"format": "WEBP", "lossless": True},
}


def saved(image: Image.Image, name: str, orientation: int = 0, xmp: bool = False) -> bytes:
    """The content of a file, with an orientation in its EXIF data or in its XMP packet."""
    options = {"format": name, **FORMATS[name]}
    if orientation and xmp:
        text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
        if name == "PNG":
            from PIL.PngImagePlugin import PngInfo

            options["pnginfo"] = PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", text)
        else:
            options["xmp"] = text.encode()
    elif orientation:
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = "a tag before the orientation, stored elsewhere"
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_those_that_pillow_reads(name):
    rng = random.Random(name)
    for _ in range(40):
        width, height = rng.randint(1, 700), rng.randint(1, 700)
        mode = rng.choice(["L", "RGB"])
        orientation, xmp = rng.randint(0, 8), rng.random() < 0.3
        content = saved(Image.new(mode, (width, height)), name, orientation, xmp)
        assert is_picture(content)
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.size == (width, height)
            assert opened.getexif().get(ExifTags.Base.Orientation, 0) == orientation
        assert picture_size(content) == PictureSize(height, width, orientation >= 5)


def test_a_picture_on_its_side_stands_upright_in_the_other_size():
    assert PictureSize(30, 20).upright == (30, 20)
    assert PictureSize(30, 20, sideways=True).upright == (20, 30)


@pytest.mark.parametrize("alpha", [False, True])
def test_webp_with_transparency_or_animation_states_its_canvas(alpha):
    first = Image.new("RGBA", (37, 21), (255, 0, 0, 128 if alpha else 255))
    second = Image.new("RGBA", (37, 21), (0, 255, 0, 255))
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=[second])
    assert picture_size(buffer.getvalue()) == PictureSize(21, 37)


def test_a_jpeg_thumbnail_is_not_taken_for_the_picture():
    thumbnail = saved(Image.new("RGB", (16, 12)), "JPEG")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    packet = exif.tobytes() + thumbnail
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200)).save(buffer, "JPEG", exif=packet)
    assert picture_size(buffer.getvalue()) == PictureSize(200, 300, sideways=True)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_a_size_or_none_and_never_raise(name):
    rng = random.Random(name)
    whole = saved(Image.effect_noise((61, 47), 50).convert("RGB"), name, 6)
    for length in [*range(0, 200), *rng.sample(range(len(whole)), 50)]:
        picture_size(whole[:length])
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            damaged[rng.randrange(len(damaged) if rng.random() < 0.3 else 120)] = rng.randrange(256)
        picture_size(bytes(damaged))
    assert picture_size(b"") is None
    assert picture_size(b"GIF89a" + whole) is None
