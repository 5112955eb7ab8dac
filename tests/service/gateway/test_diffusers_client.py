"""`remote_decode` and `remote_encode` of diffusers, unmodified, against the same VAE in torch.

The server is one that `latentserve import` and `latentserve serve` make.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trustme
from PIL import Image
from torch import Tensor

from latentserve.client import Client
from tests.support import ROOT, taef2, tiny_diffusers, tiny_kl
from tests.support.processes import Server
from tests.support.shared import cached, made_once

diffusers = pytest.importorskip("diffusers")
from diffusers.image_processor import VaeImageProcessor  # noqa: E402
from diffusers.utils.remote_utils import remote_decode, remote_encode  # noqa: E402

pytestmark = pytest.mark.slow

_TOKEN = "secret-of-these-tests"
_SCALE, _SHIFT = tiny_kl.SCALE, tiny_kl.SHIFT
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MODELS = ["kl", pytest.param("taef2", marks=taef2.needs_taef2)]
# Height and width of the latents.
_SIZE = (6, 4)


@dataclass(frozen=True)
class Local:
    """A VAE in torch, as diffusers has it: images in [-1, 1].

    Attributes:
        channels: Channels of its latents; they are 8 times smaller than images.
        encode: Returns the means of posteriors.
        decode: Returns images, not clipped.
    """

    channels: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote-vae") / "models"
    made = made_once(tmp_path_factory, "tiny-kl", cached("tiny-kl", tiny_kl.make))
    shutil.copytree(made / "models", folder)
    if "LATENTSERVE_TAEF2" in os.environ:
        shutil.copytree(request.getfixturevalue("taef2") / "taef2", folder / "taef2")
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("remote-vae-server")
    token = folder / "tokens"
    token.write_text(_TOKEN + "\n")
    arguments = ("--gateway-port", "0", "--token-file", str(token))
    with Server(models, folder / "log", *arguments) as started:
        with Client(started.target, token=_TOKEN) as client:
            client.info()
        yield started


@pytest.fixture(scope="module")
def gateway(server: Server) -> str:
    """Address of the gateway; the token is in it."""
    return server.gateway.replace("http://", f"http://user:{_TOKEN}@")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    # requests asks the environment for proxies.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def locals_of() -> Callable[[str], Local]:
    def local(name: str) -> Local:
        if name == "taef2":
            encoder, decoder = taef2.halves()
            return Local(
                32,
                lambda images: encoder((images + 1) / 2)[0],
                lambda z: decoder(z)[0] * 2 - 1,
            )
        vae = tiny_kl.vae()
        return Local(
            tiny_kl.CHANNELS,
            lambda images: vae.encode(images).latent_dist.mean,
            lambda z: vae.decode(z).sample,
        )

    return local


def _latents(channels: int, rows: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, channels, *_SIZE, generator=torch.manual_seed(1)).to(dtype)


def _packed(latents: Tensor) -> Tensor:
    """Latents as the pipelines of Flux have them: each 2 x 2 of them are one token."""
    rows, channels, height, width = latents.shape
    parts = latents.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(rows, height * width // 4, 4 * channels)


def _decoded(local: Local, latents: Tensor, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """What the VAE makes of latents, in the precision of the server and the dtype of the caller."""
    with torch.inference_mode():
        return local.decode(latents.float() / scale + shift).to(latents.dtype)


def _close(got: Tensor, wanted: Tensor) -> None:
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    tolerance = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[got.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def _same_picture(got: Image.Image, wanted: Image.Image, most: int = 1) -> None:
    assert isinstance(got, Image.Image)
    assert (got.mode, got.size) == (wanted.mode, wanted.size)
    difference = np.abs(np.asarray(got).astype(int) - np.asarray(wanted).astype(int))
    assert difference.max() <= most
    # A picture of one colour would be close to any other of it.
    assert np.asarray(wanted).std() > 5


#: Levels of 255 by which rounding to a dtype may move a pixel.
_LEVELS = {torch.float32: 1, torch.float16: 1, torch.bfloat16: 2}


# Decode.


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["spatial", "packed"])
@pytest.mark.parametrize(
    ("scale", "shift"), [(None, None), (_SCALE, None), (_SCALE, _SHIFT)], ids=["", "scale", "shift"]
)
@pytest.mark.parametrize("name", _MODELS)
def test_every_output_of_remote_decode(
    name: str,
    scale: float | None,
    shift: float | None,
    packed: bool,
    dtype: torch.dtype,
    rows: int,
    gateway: str,
    locals_of: Callable[[str], Local],
) -> None:
    local = locals_of(name)
    tensor = _latents(local.channels, rows, dtype)
    image = _decoded(local, tensor, scale or 1.0, shift or 0.0)
    options: dict[str, Any] = {"do_scaling": scale is not None}
    options |= {"scaling_factor": scale, "shift_factor": shift}
    if packed:
        tensor = _packed(tensor)
        options |= {"height": 8 * _SIZE[0], "width": 8 * _SIZE[1]}
        assert tensor.ndim == 3
    processor = VaeImageProcessor()
    levels = _LEVELS[dtype]

    def decode(**more: Any) -> Any:
        return remote_decode(f"{gateway}/diffusers/{name}/decode", tensor, **options, **more)

    _close(decode(output_type="pt", return_type="pt"), image)
    # With the processor of the caller.
    wanted = processor.postprocess(image, output_type="pil")
    got = decode(output_type="pt", return_type="pil", processor=processor)
    _same_picture(got, wanted[0], levels)
    # With that of the server: of which the pixels are those of float32.
    wanted = processor.postprocess(image.float(), output_type="pil")
    got = decode(output_type="pt", return_type="pil", partial_postprocess=True)
    assert isinstance(got, list) == (rows > 1)
    for one, other in zip(got if rows > 1 else [got], wanted, strict=True):
        _same_picture(one, other, levels)
    got = decode(output_type="pt", return_type="pt", partial_postprocess=True)
    assert (got.dtype, got.shape) == (torch.uint8, (rows, 8 * _SIZE[0], 8 * _SIZE[1], 3))
    for one, other in zip(got, wanted, strict=True):
        _same_picture(Image.fromarray(one.numpy()), other, levels)
    # As the endpoints of video models answer.
    got = decode(output_type="pil", return_type="pt", processor=processor)
    _close(got, processor.postprocess(image, output_type="pt"))
    got = decode(output_type="pil", return_type="pil", processor=processor)
    for one, other in zip(got, wanted, strict=True):
        _same_picture(one, other, levels)
    if rows > 1:
        with pytest.raises(RuntimeError, match="shape: got 2 rows, wanted 1 row for a picture"):
            decode(output_type="pil")
        return
    got = decode(output_type="pil", image_format="png")
    assert got.format == "png"
    _same_picture(got, wanted[0], levels)
    got = decode(output_type="pil", image_format="jpg", partial_postprocess=True)
    assert got.format == "jpeg"
    assert np.abs(np.asarray(got).astype(int) - np.asarray(wanted[0]).astype(int)).mean() < 4


@pytest.mark.parametrize("shift", [None, 0.5])
def test_do_scaling_alone_means_the_factors_of_the_model(
    shift: float | None, gateway: str, locals_of: Callable[[str], Local]
) -> None:
    local = locals_of("kl")
    tensor = _latents(4)
    with pytest.warns(FutureWarning, match="do_scaling"):
        got = remote_decode(
            f"{gateway}/diffusers/kl/decode",
            tensor,
            shift_factor=shift,
            output_type="pt",
            return_type="pt",
        )
    _close(got, _decoded(local, tensor, _SCALE, _SHIFT if shift is None else shift))


@pytest.mark.parametrize("argument", ["input_tensor_type", "output_tensor_type"])
def test_what_is_deprecated(argument: str, gateway: str, locals_of: Callable[[str], Local]) -> None:
    tensor = _latents(4)
    with pytest.warns(FutureWarning, match="base64"):
        got = remote_decode(
            f"{gateway}/diffusers/kl/decode",
            tensor,
            do_scaling=False,
            output_type="pt",
            return_type="pt",
            **{argument: "base64"},
        )
    _close(got, _decoded(locals_of("kl"), tensor))


# Encode.


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize(
    ("scale", "shift"),
    [(None, None), (_SCALE, None), (_SCALE, _SHIFT), (None, _SHIFT)],
    ids=["", "scale", "both", "shift"],
)
@pytest.mark.parametrize("name", _MODELS)
def test_remote_encode_of_tensors_and_pictures(
    name: str,
    scale: float | None,
    shift: float | None,
    dtype: torch.dtype,
    gateway: str,
    locals_of: Callable[[str], Local],
) -> None:
    local = locals_of(name)
    endpoint = f"{gateway}/diffusers/{name}/encode"
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (48, 32, 3), np.uint8))
    # Contiguous: of others, diffusers 0.42 sends a copy that it has freed (docs/diffusers.md).
    preprocessed = VaeImageProcessor().preprocess(picture).contiguous()
    two = torch.cat((preprocessed, preprocessed.flip(2))).contiguous()
    for given, images in (
        (picture, preprocessed),
        (preprocessed.to(dtype), preprocessed.to(dtype).float()),
        (two.to(dtype), two.to(dtype).float()),
    ):
        with torch.inference_mode():
            wanted = (local.encode(images) - (shift or 0.0)) * (scale or 1.0)
        got = remote_encode(endpoint, given, scaling_factor=scale, shift_factor=shift)
        _close(got, wanted if given is picture else wanted.to(dtype))


def test_what_is_encoded_is_decoded_again(gateway: str, locals_of: Callable[[str], Local]) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (48, 32, 3), np.uint8))
    factors = {"scaling_factor": _SCALE, "shift_factor": _SHIFT}
    latents = remote_encode(f"{gateway}/diffusers/kl/encode", picture, **factors)
    got = remote_decode(f"{gateway}/diffusers/kl/decode", latents, image_format="png", **factors)
    local = locals_of("kl")
    with torch.inference_mode():
        image = local.decode(local.encode(VaeImageProcessor().preprocess(picture)))
    _same_picture(got, VaeImageProcessor().postprocess(image)[0])


def test_a_seeded_draw_is_that_of_grpc(server: Server, gateway: str) -> None:
    images = torch.rand(2, 3, 48, 32) * 2 - 1
    got = remote_encode(f"{gateway}/diffusers/kl/encode?draw=1&seed=7", images)
    with Client(server.target, token=_TOKEN) as client:
        wanted = client.encode((images.numpy() + 1) / 2, model="kl", draw=True, seed=7)
    np.testing.assert_allclose(got, wanted.z, atol=1e-4)
    assert np.abs(wanted.z - wanted.mean).max() > 0.1


# Failures.


def _problem(call: Callable[[], Any], status: int, detail: str) -> None:
    """Checks the error that diffusers raises: its text is that of the problem's members."""
    with pytest.raises(RuntimeError) as failed:
        call()
    (problem,) = failed.value.args
    assert problem["status"] == status
    assert detail in problem["detail"]
    assert repr(problem["detail"]) in str(failed.value)


def test_an_error_of_diffusers_shows_the_problem(gateway: str) -> None:
    tensor, factors = _latents(4), {"scaling_factor": 1.0}

    def decode(address: str, path: str, tensor: Tensor = tensor, **more: Any) -> Callable[[], Any]:
        return lambda: remote_decode(f"{address}/diffusers/{path}", tensor, **factors, **more)

    detail = "shape: got [1, 3, 6, 4], wanted [N, 4, h, w]"
    _problem(decode(gateway, "kl/decode", tensor[:, :3].contiguous()), 400, detail)
    _problem(decode(gateway, "kl/decode?typo=1"), 400, "typo: got 1, wanted one of")
    detail = "output_type: got mp4, wanted pil or pt"
    _problem(decode(gateway, "kl/decode", output_type="mp4"), 400, detail)
    _problem(decode(gateway, "nobody/decode"), 404, "got 'nobody'")
    _problem(decode(gateway, "kl/code"), 404, "nothing at /diffusers/kl/code")
    bare = gateway.replace(f"user:{_TOKEN}@", "")
    _problem(decode(bare, "kl/decode"), 401, "authorization: ")
    _problem(decode(bare.replace("//", "//user:wrong@"), "kl/decode"), 401, "a wrong token")
    clear = Image.new("RGBA", (32, 48))
    endpoint = f"{gateway}/diffusers/kl/encode"
    _problem(lambda: remote_encode(endpoint, clear), 400, "body: got RGB 48x32 PNG with transpa")


@taef2.needs_taef2
def test_a_model_without_factors_says_so(gateway: str) -> None:
    endpoint = f"{gateway}/diffusers/taef2/decode"
    with pytest.warns(FutureWarning, match="do_scaling"):
        _problem(
            lambda: remote_decode(endpoint, _latents(32)), 409, "do_scaling: got True, but the"
        )


def test_over_tls(
    models: Path, tmp_path: Path, locals_of: Callable[[str], Local], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    for name, blob in (
        ("ca.pem", authority.cert_pem),
        ("server.pem", certificate.cert_chain_pems[0]),
        ("server.key", certificate.private_key_pem),
    ):
        blob.write_to_path(str(tmp_path / name))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    arguments = (
        "--tls-cert",
        str(tmp_path / "server.pem"),
        "--tls-key",
        str(tmp_path / "server.key"),
    )
    tensor = _latents(4)
    with Server(models, tmp_path / "log", *arguments, "--gateway-port", "0") as server:
        address = server.gateway
        assert address.startswith("https://")
        got = _decode_once_loaded(f"{address}/diffusers/kl/decode", tensor)
    _close(got, _decoded(locals_of("kl"), tensor))


def _decode_once_loaded(endpoint: str, tensor: Tensor) -> Tensor:
    options = {"do_scaling": False, "output_type": "pt", "return_type": "pt"}
    deadline = time.monotonic() + 60
    while True:
        try:
            return remote_decode(endpoint, tensor, **options)  # type: ignore[no-any-return]
        except RuntimeError as error:
            (problem,) = error.args
            if problem["status"] != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


# Pipelines, and the page.


def test_a_pipeline_that_decodes_elsewhere(gateway: str, locals_of: Callable[[str], Local]) -> None:
    # The one kind of pipeline with latents that needs no other library.
    pipeline = pytest.importorskip("diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(32, 64),
        layers_per_block=1,
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=32,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    # Its own VAE is only asked how much smaller latents are: 8 times.
    vae = tiny_diffusers.make("VQModel", **tiny_diffusers.BY_EIGHT)
    pipe = pipeline.KandinskyV22Pipeline(unet, diffusers.DDPMScheduler(), vae)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        torch.randn(2, 32),
        torch.randn(2, 32),
        height=64,
        width=64,
        num_inference_steps=2,
        output_type="latent",
    ).images
    images = remote_decode(
        f"{gateway}/diffusers/kl/decode",
        latents,
        do_scaling=False,
        output_type="pt",
        partial_postprocess=True,
    )
    wanted = VaeImageProcessor().postprocess(_decoded(locals_of("kl"), latents))
    assert len(images) == len(wanted) == 2
    for got, local in zip(images, wanted, strict=True):
        _same_picture(got, local)


class _StandIn:
    """A pipeline whose weights are gigabytes: returns latents as those of its class do."""

    def __init__(self, *, packed: bool):
        self._packed = packed

    def from_pretrained(self, _name: str, *, vae: None, torch_dtype: torch.dtype) -> "_StandIn":
        assert vae is None
        self._dtype = torch_dtype
        return self

    def to(self, device: str) -> "_StandIn":
        assert device == "cuda"
        return self

    def __call__(
        self, _prompt: str, *, output_type: str, height: int = 64, width: int = 64
    ) -> SimpleNamespace:
        assert output_type == "latent"
        latents = torch.randn(1, 4, height // 8, width // 8, dtype=self._dtype)
        return SimpleNamespace(images=_packed(latents) if self._packed else latents)


def test_the_examples_of_the_page_run(
    gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, packed in (("StableDiffusionXLPipeline", False), ("FluxPipeline", True)):
        monkeypatch.setattr(diffusers, name, _StandIn(packed=packed), raising=False)
    monkeypatch.setenv("LATENTSERVE_TOKEN", _TOKEN)
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(3).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save("photo.png")
    page = (ROOT / "docs" / "diffusers.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    host = gateway.partition("@")[2]
    sizes = []
    for example in examples:
        code = example.replace("://localhost:8000", f"://user:{_TOKEN}@{host}")
        code = code.replace("@localhost:8000", f"@{host}")
        # The models here are tiny, and attention takes the square of the size.
        code = re.sub(r"diffusers/(sdxl|flux)/", "diffusers/kl/", code)
        code = code.replace("height=768", "height=96").replace("width=1024", "width=128")
        exec(compile(code, "docs/diffusers.md", "exec"), {})
        for picture in map(Path, ("lighthouse.png", "again.png")):
            if picture.exists():
                with Image.open(picture) as made:
                    sizes.append(made.size)
                picture.unlink()
    assert sizes == [(64, 64), (128, 96), (96, 64)]
