"""The remote VAE of diffusers on the gateway: requests as diffusers sends them, against gRPC's."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image

from bundle import LatentScaling
from latentserve.client import Client
from service.api.bfloat16 import from_bfloat16, to_bfloat16
from tests.support.conditional import Conditional, write_conditional
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial
from tests.support.tiny import write_tiny

Array = NDArray[Any]

_TOKEN = "secret-of-these-tests"
_PER_CHANNEL = LatentScaling(mean=(0.5, -1.0), std=(2.0, 0.25))
#: Its images leave [0, 1]; latents are 4 times smaller and have 2 channels.
_PHOTO = Spatial(likelihood="none", scaling=LatentScaling(scale=0.5, shift=0.25))


class Remote:
    """A server with models of each kind, and what its gateway and its gRPC port answer."""

    def __init__(self, url: str, client: Client):
        self.url = url
        self.client = client
        self._session = requests.Session()
        self._session.trust_env = False

    def post(
        self,
        path: str,
        body: bytes,
        token: str | None = _TOKEN,
        *,
        accept: str = "tensor/binary",
        content_type: str | None = "tensor/binary",
        **query: Any,
    ) -> requests.Response:
        """What the gateway answers; `path` is that of a model's endpoint, as in `photo/decode`."""
        headers = {"Accept": accept}
        if content_type:
            headers["Content-Type"] = content_type
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = f"{self.url}/diffusers/{path}"
        return self._session.post(url, data=body, params=query, headers=headers, timeout=60)

    def decode(self, model: str, z: Array, **query: Any) -> requests.Response:
        """What it answers to latents, which are sent in float32 unless `dtype` says otherwise."""
        dtype = query.setdefault("dtype", "float32")
        query.setdefault("output_type", "pt")
        body = _raw(z, dtype)
        return self.post(f"{model}/decode", body, shape=list(z.shape), **query)

    def encode(self, model: str, images: Array, **query: Any) -> requests.Response:
        """What it answers to images in [-1, 1], or uint8."""
        dtype = query.setdefault("dtype", "float32")
        body = _raw(images, dtype)
        return self.post(
            f"{model}/encode", body, shape=list(images.shape), content_type=None, **query
        )


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    folder = tmp_path_factory.mktemp("remote-vae")
    models = folder / "models"
    write_spatial(models / "photo", _PHOTO)
    write_spatial(models / "channels", Spatial(likelihood="none", scaling=_PER_CHANNEL))
    write_spatial(models / "plain", Spatial(posterior="delta", prior="none", scaling=None))
    write_spatial(models / "decoder", Spatial(posterior="none"))
    write_spatial(models / "fixed", Spatial(size=(16, 24), free=False))
    write_tiny(models / "digits")
    write_conditional(models / "styles", Conditional())
    token = folder / "tokens"
    token.write_text(_TOKEN + "\n")
    arguments = (
        "--gateway-port", "0", "--token-file", str(token), "--max-message-bytes", str(2**22),
    )  # fmt: skip
    with (
        Server(models, folder / "log", *arguments) as server,
        Client(server.target, token=_TOKEN) as client,
    ):
        yield Remote(server.gateway, client)


def _raw(array: Array, dtype: str) -> bytes:
    if dtype == "bfloat16":
        return to_bfloat16(array.astype(np.float32)).tobytes()
    return array.astype(dtype).tobytes()


def _read(reply: requests.Response) -> Array:
    """The tensor in a reply, by its headers; bfloat16 as float32."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "tensor/binary"
    shape, dtype = json.loads(reply.headers["shape"]), reply.headers["dtype"]
    if dtype == "bfloat16":
        return from_bfloat16(np.frombuffer(reply.content, np.uint16)).reshape(shape)
    return np.frombuffer(reply.content, dtype).reshape(shape)


def _latents(*shape: int) -> NDArray[np.float32]:
    # Multiples of 1/8, so that all dtypes have them.
    return np.round(np.random.default_rng(3).standard_normal(shape) * 8).astype(np.float32) / 8


def _images(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(4).uniform(-1, 1, shape).astype(np.float32)


def _problem(reply: requests.Response, status: int, detail: str) -> None:
    assert (reply.status_code, reply.headers["content-type"]) == (
        status,
        "application/problem+json",
    ), reply.text
    assert detail in reply.json()["detail"]


# Decode.


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pt_is_in_minus_one_to_one_and_not_clipped(remote: Remote, dtype: str) -> None:
    z = _latents(2, 2, 4, 6)
    reply = remote.decode("photo", z, dtype=dtype)
    assert reply.headers["dtype"] == dtype
    wanted = 2 * remote.client.decode(z, model="photo", unclipped=True) - 1
    assert wanted.min() < -1
    assert wanted.max() > 1
    tolerance = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    got = _read(reply)
    assert got.shape == (2, 3, 16, 24)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def test_partial_postprocess_is_uint8_with_channels_last(remote: Remote) -> None:
    z = _latents(2, 2, 4, 6)
    got = _read(remote.decode("photo", z, partial_postprocess=True))
    wanted = remote.client.decode(z, model="photo", dtype="uint8").transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(got, wanted)
    assert got.dtype == np.uint8


def test_pil_as_a_tensor_is_in_zero_to_one(remote: Remote) -> None:
    z = _latents(2, 2, 4, 6)
    got = _read(remote.decode("photo", z, output_type="pil", dtype="float16"))
    wanted = remote.client.decode(z, model="photo", dtype="float16")
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("image_format", "accept", "kind"),
    [("png", "image/png", "PNG"), ("jpg", "image/jpeg", "JPEG"), ("jpg", "*/*", "JPEG")],
)
def test_pil_is_a_picture_file(remote: Remote, image_format: str, accept: str, kind: str) -> None:
    z = _latents(1, 2, 4, 6)
    reply = remote.decode("photo", z, output_type="pil", image_format=image_format, accept=accept)
    assert reply.headers["content-type"] == f"image/{kind.lower()}"
    (wanted,) = remote.client.decode(z, model="photo", dtype=kind.lower())  # type: ignore[arg-type]
    assert reply.content == wanted
    with Image.open(io.BytesIO(reply.content)) as picture:
        assert (picture.format, picture.size) == (kind, (24, 16))


def test_quality_is_that_of_a_jpeg(remote: Remote) -> None:
    z, as_picture = _latents(1, 2, 8, 8), {"output_type": "pil", "accept": "image/jpeg"}
    coarse = remote.decode("photo", z, quality=20, **as_picture)
    assert len(coarse.content) < len(remote.decode("photo", z, **as_picture).content)
    _problem(remote.decode("photo", z, quality=20), 400, "quality: got 20")


@pytest.mark.parametrize(
    ("query", "scale", "shift"),
    [
        ({}, 1.0, 0.0),
        ({"do_scaling": False}, 1.0, 0.0),
        ({"scaling_factor": 0.18215}, 0.18215, 0.0),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.3611, 0.1159),
        ({"shift_factor": -0.5}, 1.0, -0.5),
        # The model's own, or one of them.
        ({"do_scaling": True}, 0.5, 0.25),
        ({"do_scaling": "true", "shift_factor": -0.5}, 0.5, -0.5),
        ({"do_scaling": True, "scaling_factor": 2}, 2.0, 0.0),
    ],
)
def test_latents_are_divided_by_the_scale_and_shifted(
    remote: Remote, query: dict[str, Any], scale: float, shift: float
) -> None:
    z = _latents(1, 2, 4, 4)
    got = _read(remote.decode("photo", z, **query))
    plain = remote.client.decode(z / scale + shift, model="photo", unclipped=True)
    np.testing.assert_allclose(got, 2 * plain - 1, rtol=1e-5, atol=1e-5)


def test_scaling_by_channel_and_shift_of_ones_own(remote: Remote) -> None:
    z = _latents(1, 2, 4, 4)
    mean, std = (np.reshape(values, (2, 1, 1)) for values in (_PER_CHANNEL.mean, _PER_CHANNEL.std))
    for query, wanted in (({}, z * std + mean), ({"shift_factor": 0.125}, z * std + 0.125)):
        got = _read(remote.decode("channels", z, do_scaling=True, **query))
        plain = remote.client.decode(wanted, model="channels", unclipped=True)
        np.testing.assert_allclose(got, 2 * plain - 1, rtol=1e-5, atol=1e-5)
    images = _images(1, 3, 16, 16)
    latents = _read(remote.encode("channels", images, do_scaling=True))
    means = _read(remote.encode("channels", images))
    np.testing.assert_allclose(latents, (means - mean) / std, rtol=1e-5, atol=1e-6)
    flat = remote.decode("channels", z.reshape(1, -1), do_scaling=True)
    np.testing.assert_array_equal(_read(flat), _read(remote.decode("channels", z, do_scaling=True)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("query", [{}, {"do_scaling": True}])
@pytest.mark.parametrize("model", ["photo", "fixed"])
def test_packed_latents(remote: Remote, model: str, query: dict[str, Any], dtype: str) -> None:
    z = _latents(2, 2, 4, 6)
    # As Flux packs: a token for each 2 x 2, channel by channel.
    packed = np.stack(
        [
            np.stack([row[:, i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2, 4)])
            for row in z
        ]
    )
    assert packed.shape == (2, 6, 8)
    got = remote.decode(model, packed, height=16, width=24, dtype=dtype, **query)
    wanted = remote.decode(model, z, dtype=dtype, **query)
    np.testing.assert_array_equal(_read(got), _read(wanted))


def test_height_and_width_are_of_packed_latents_only(remote: Remote) -> None:
    z = _latents(1, 2, 4, 4)
    got = remote.decode("photo", z, height=999, width=999)
    np.testing.assert_array_equal(_read(got), _read(remote.decode("photo", z)))


def test_grey_images_have_three_channels_where_pillow_needs_them(remote: Remote) -> None:
    z = _latents(2, 3)
    wanted = remote.client.decode(z, model="digits", dtype="uint8")
    got = _read(remote.decode("digits", z, partial_postprocess=True))
    assert got.shape == (2, 4, 4, 3)
    for channel in range(3):
        np.testing.assert_array_equal(got[..., channel], wanted[:, 0])
    assert _read(remote.decode("digits", z, output_type="pil")).shape == (2, 3, 4, 4)
    assert _read(remote.decode("digits", z)).shape == (2, 1, 4, 4)


def test_a_conditional_model_is_given_labels_in_the_query(remote: Remote) -> None:
    z = _latents(2, 3)
    for labels in ([1, 3], [2]):
        got = _read(remote.decode("styles", z, labels=labels))
        wanted = remote.client.decode(z, model="styles", unclipped=True, labels=labels)
        np.testing.assert_allclose(got, 2 * wanted - 1, atol=1e-6)
    _problem(remote.decode("styles", z), 409, "labels")


def test_a_version_may_be_named(remote: Remote) -> None:
    z = _latents(1, 2, 4, 4)
    reply = remote.decode("photo/versions/1", z)
    assert reply.headers["x-model"] == "photo/1"
    _problem(remote.decode("photo/versions/7", z), 404, "photo")


def test_the_factors_are_those_of_the_version_that_a_route_chooses(tmp_path: Path) -> None:
    shifts = {1: 0.25, 2: -4.0}
    for shift in shifts.values():
        kind = Spatial(likelihood="none", scaling=LatentScaling(scale=0.5, shift=shift))
        write_spatial(tmp_path / "models" / "photo", kind)
    arguments = ("--gateway-port", "0", "--versions", "all", "--route", "photo=1:50,2:50")
    z, answered = _latents(1, 2, 4, 4), set()
    with (
        Server(tmp_path / "models", tmp_path / "log", *arguments) as server,
        Client(server.target) as client,
    ):
        client.info()
        remote = Remote(server.gateway, client)
        for _ in range(16):
            reply = remote.decode("photo", z, token=None, do_scaling=True)
            version = int(reply.headers["x-model"].removeprefix("photo/"))
            plain = client.decode(2 * z + shifts[version], version=version, unclipped=True)
            np.testing.assert_allclose(_read(reply), 2 * plain - 1, rtol=1e-5, atol=1e-5)
            answered.add(version)
    assert answered == {1, 2}


# Encode.


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_encode_takes_minus_one_to_one_and_gives_the_mean(remote: Remote, dtype: str) -> None:
    images = np.round(_images(2, 3, 16, 24) * 64) / 64  # exact in all dtypes
    reply = remote.encode("photo", images, dtype=dtype)
    assert reply.headers["dtype"] == dtype
    wanted = remote.client.encode((images + 1) / 2, model="photo").mean
    tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(_read(reply), wanted, rtol=tolerance, atol=tolerance)


def test_encode_of_bytes_and_of_a_picture(remote: Remote) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (1, 3, 16, 24), dtype=np.uint8)
    wanted = remote.client.encode(pixels, model="photo").mean
    reply = remote.encode("photo", pixels, dtype="uint8")
    assert reply.headers["dtype"] == "float32"
    np.testing.assert_array_equal(_read(reply), wanted)
    file = _png(pixels[0].transpose(1, 2, 0))
    for content_type in (None, "image/png"):
        reply = remote.post("photo/encode", file, content_type=content_type)
        np.testing.assert_array_equal(_read(reply), wanted)
    half = remote.post("photo/encode", file, dtype="float16")
    np.testing.assert_array_equal(_read(half), wanted.astype(np.float16))


@pytest.mark.parametrize(
    ("query", "scale", "shift"),
    [
        ({"scaling_factor": 0.18215}, 0.18215, 0.0),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.3611, 0.1159),
        ({"shift_factor": 0.1159}, 1.0, 0.1159),
        ({"do_scaling": True}, 0.5, 0.25),
    ],
)
def test_encode_subtracts_the_shift_and_scales(
    remote: Remote, query: dict[str, Any], scale: float, shift: float
) -> None:
    images = _images(1, 3, 16, 16)
    got = _read(remote.encode("photo", images, **query))
    np.testing.assert_allclose(
        got, (_read(remote.encode("photo", images)) - shift) * scale, atol=1e-6
    )


def test_a_seeded_draw(remote: Remote) -> None:
    images = _images(2, 3, 16, 16)
    reply = remote.encode("photo", images, draw=1, seed=7, offset=3)
    unit = (images + 1) / 2
    wanted = remote.client.encode(unit, model="photo", draw=True, seed=7, offset=3)
    np.testing.assert_allclose(_read(reply), wanted.z, atol=1e-5)
    assert np.abs(wanted.z - wanted.mean).max() > 0.1
    assert reply.headers["x-seed"] == "7"
    own = remote.encode("photo", images, draw=1)
    again = remote.encode("photo", images, draw=1, seed=own.headers["x-seed"])
    assert own.content == again.content


def test_a_picture_may_be_resized(remote: Remote) -> None:
    file = _png(np.zeros((19, 30), np.uint8))
    _problem(remote.post("photo/encode", file), 400, "body: got height 19 and width 30")
    _problem(remote.post("fixed/encode", file), 400, "body: got grey 19x30 PNG, wanted RGB 16x24")
    reply = remote.post("photo/encode", file, resize=True, height=16, width=24)
    assert _read(reply).shape == (1, 2, 4, 6)
    _problem(remote.post("photo/encode", file, height=16, width=24), 400, "resize: got False")


# Errors.


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"shape": None}, "shape: got none, wanted the size of each axis"),
        ({"shape": [1, 2, 0, 4]}, "shape: got 1,2,0,4"),
        ({"shape": [1, 2, 4, 5]}, "body: got 128 bytes, wanted 160 for float32 [1, 2, 4, 5]"),
        ({"shape": [1, 1, 4, 8]}, "shape: got [1, 1, 4, 8], wanted [N, 2, h, w]"),
        ({"shape": [1, 1, 4, 8], "do_scaling": True}, "shape: got [1, 1, 4, 8], wanted [N, 2, h"),
        ({"shape": [1, 2, 1, 16]}, "shape: got [1, 2, 1, 16], wanted h and w"),
        ({"shape": [2, 2, 8]}, "height: got none, wanted a multiple of 8"),
        ({"shape": [1, 4, 8], "height": 20, "width": 16}, "height: got 20, wanted a multiple of 8"),
        ({"shape": [1, 4, 8], "height": 16, "width": 1}, "width: got 1, wanted a multiple of 8"),
        ({"shape": [1, 4, 8], "height": 16, "width": 24}, "shape: got [1, 4, 8], wanted [N, 6, 8]"),
        ({"shape": [1, 8, 4], "height": 16, "width": 16}, "shape: got [1, 8, 4], wanted [N, 4, 8]"),
        ({"height": "tall"}, "height: got tall, wanted an integer"),
        ({"dtype": None}, "dtype: got none, wanted one of float16, bfloat16, float32"),
        ({"dtype": "uint8"}, "dtype: got uint8"),
        ({"dtype": "float64"}, "dtype: got float64"),
        ({"output_type": "mp4"}, "output_type: got mp4, wanted pil or pt"),
        ({"image_format": "webp"}, "image_format: got webp, wanted jpg or png"),
        ({"partial_postprocess": "maybe"}, "partial_postprocess: got maybe, wanted True or False"),
        ({"scaling_factor": 0}, "scaling_factor: got 0, wanted a finite number above 0"),
        ({"scaling_factor": "nan"}, "scaling_factor: got nan"),
        ({"scaling_factor": 1e-9}, "body: got values from"),
        ({"shift_factor": "inf"}, "shift_factor: got inf, wanted a finite number"),
        ({"shift_factor": [1, 2]}, "shift_factor: got 2 values, wanted 1"),
        ({"scaling_factor": 1, "do_scaling": False}, "do_scaling: got False"),
        ({"sample": 1}, "sample: got 1, wanted one of do_scaling"),
        ({"tensor": "x"}, "tensor: got x"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_parameter_is_named(remote: Remote, query: dict[str, Any], detail: str) -> None:
    body = _latents(1, 2, 4, 4).tobytes()
    right = {"shape": [1, 2, 4, 4], "dtype": "float32", "output_type": "pt"}
    reply = remote.post("photo/decode", body, **right | query)
    _problem(reply, 400, detail)
    (error,) = reply.json()["errors"]
    assert error["field"] == detail.partition(":")[0]


def test_several_rows_are_no_picture(remote: Remote) -> None:
    reply = remote.decode("photo", _latents(2, 2, 4, 4), output_type="pil", accept="image/jpeg")
    _problem(reply, 400, "shape: got 2 rows, wanted 1 row for a picture (or output_type=pt)")


def test_values_that_are_not_finite(remote: Remote) -> None:
    z = _latents(1, 2, 4, 4)
    for value in (np.nan, np.inf):
        z[0, 1, 2, 3] = value
        for query in ({}, {"scaling_factor": 2}):
            _problem(remote.decode("photo", z, **query), 400, "body: got ")


def test_wrong_images_are_named(remote: Remote) -> None:
    images = _images(1, 3, 16, 16)
    _problem(remote.encode("photo", images[:, :2]), 400, "shape: got [1, 2, 16, 16]")
    _problem(remote.encode("photo", images[..., :14]), 400, "shape: got [1, 3, 16, 14]")
    _problem(remote.encode("photo", images * 1.5), 400, "body: got values from -1.4")
    _problem(remote.encode("photo", images * np.nan), 400, "body: got values from nan")
    _problem(remote.encode("photo", images, resize=True), 400, "resize: got True")
    _problem(remote.encode("photo", images, dtype="int8"), 400, "dtype: got int8")
    _problem(remote.post("photo/encode", b"\x00\x01"), 400, "body: got a file that is no picture")
    _problem(remote.post("photo/encode", b""), 400, "body: got an empty file")


def test_statuses(remote: Remote) -> None:
    z, images = _latents(1, 2, 4, 4), _images(1, 3, 16, 16)
    _problem(remote.decode("nobody", z), 404, "nobody")
    _problem(remote.encode("decoder", images), 409, "decoder")
    _problem(remote.decode("plain", z, do_scaling=True), 409, "do_scaling: got True, but")
    _problem(remote.encode("plain", images, draw=1), 409, "draw: plain is a plain autoencoder")
    _problem(remote.decode("photo", z, token=None), 401, "token")
    _problem(remote.decode("photo", z, token="wrong"), 401, "token")
    # A token comes first: whoever has none learns nothing of models and parameters.
    _problem(remote.decode("nobody", z, token=None, output_type="mp4"), 401, "token")
    _problem(remote.decode("photo", _latents(1, 2, 1024, 1024)), 413, "vs. 4194304 bytes")
    _problem(remote.post("photo/decode", b"{}", content_type="application/json"), 415, "tensor/bin")
    assert requests.get(f"{remote.url}/diffusers/photo/decode", timeout=60).status_code == 405


def test_conversions_of_large_arrays(remote: Remote) -> None:
    """In a thread, where the small ones are not."""
    z = _latents(1, 2, 128, 128)
    got = _read(remote.decode("photo", z, do_scaling=True, dtype="float16"))
    wanted = remote.client.decode(z, model="photo", scaled=True, unclipped=True)
    np.testing.assert_allclose(got, 2 * wanted - 1, rtol=2e-3, atol=2e-3)
    images = _images(1, 3, 512, 512)
    latents = _read(remote.encode("photo", images, do_scaling=True))
    unit = (images + 1) / 2
    scaled = remote.client.encode(unit, model="photo", scaled=True).mean
    np.testing.assert_allclose(latents, scaled, atol=1e-5)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
