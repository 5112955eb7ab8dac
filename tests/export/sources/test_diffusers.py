"""Autoencoders of diffusers: read as what they are, and refused in one line if they are not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from export.errors import ExportError
from export.sources import diffusers as source
from export.sources.imported import ImportOptions
from tests.support import tiny_diffusers

pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

_PLAIN = ImportOptions()
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small AutoencoderKL. Not to be changed: copy it."""
    return tiny_diffusers.save(
        tiny_diffusers.make("AutoencoderKL"), tmp_path_factory.mktemp("kl") / "vae"
    )


@pytest.fixture
def copied(kl: Path, tmp_path: Path) -> Path:
    """A copy of `kl`."""
    return shutil.copytree(kl, tmp_path / "vae")


@pytest.mark.parametrize("name", source.CLASSES)
def test_modules_compute_what_diffusers_does(name: str, tmp_path: Path) -> None:
    vae = tiny_diffusers.make(name)
    folder = tiny_diffusers.save(vae, tmp_path / name)
    assert source.find(folder)
    imported = source.load(folder, _PLAIN)
    gaussian = "KL" in name
    assert imported.posterior == ("gaussian" if gaussian else "delta")
    assert (imported.likelihood, imported.prior) == ("none", "none")
    assert imported.sizes is not None
    assert imported.sizes.factor == imported.sizes.multiple == imported.sizes.least == 2
    assert imported.image_shape == (3, 64, 64)
    assert imported.origin.class_name == name
    for size in ((64, 64), (10, 26)):
        image = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
        wanted = tiny_diffusers.encode(vae, image)
        with torch.inference_mode():
            assert imported.encoder is not None
            got = imported.encoder(image)
            assert len(got) == len(wanted) == 1 + gaussian
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            assert imported.decoder is not None
            (picture,) = imported.decoder(wanted[0])
        torch.testing.assert_close(
            picture, tiny_diffusers.decode(vae, wanted[0]), atol=2e-5, rtol=1e-5
        )


def test_a_pipelines_folder_holds_a_vae(kl: Path, tmp_path: Path) -> None:
    shutil.copytree(kl, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert source.find(tmp_path)
    assert source.load(tmp_path, _PLAIN).origin.class_name == "AutoencoderKL"


def test_one_file_of_weights_with_a_config(kl: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    shutil.copy(kl / _WEIGHTS, weights)
    assert source.find(weights)
    imported = source.load(weights, ImportOptions(config=kl / "config.json"))
    assert set(imported.origin.sha256) == {"config.json", "mine.safetensors"}
    with pytest.raises(ExportError, match=r"mine.safetensors: no config.json beside it; wanted --"):
        source.load(weights, _PLAIN)


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    vae = tiny_diffusers.make("AutoencoderKL").half()
    imported = source.load(tiny_diffusers.save(vae, tmp_path / "vae"), _PLAIN)
    assert imported.notes == (
        "The weights are float16; they are served in float32, where nothing overflows.",
    )
    assert imported.decoder is not None
    assert {weight.dtype for weight in imported.decoder.parameters()} == {torch.float32}


def test_weights_that_overflowed_are_refused(tmp_path: Path) -> None:
    vae = tiny_diffusers.make("AutoencoderKL").half()
    vae.decoder.conv_out.bias.data[0] = float("inf")
    with pytest.raises(
        ExportError,
        match=r"decoder.conv_out.bias: not all values are finite; wanted .* saved in float32",
    ):
        source.load(tiny_diffusers.save(vae, tmp_path / "vae"), _PLAIN)


def test_weights_with_the_old_names_of_attention(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    new = load_file(copied / _WEIGHTS)
    old = {
        name.replace("to_q", "query")
        .replace("to_k", "key")
        .replace("to_v", "value")
        .replace("to_out.0", "proj_attn"): tensor
        for name, tensor in new.items()
    }
    assert old.keys() != new.keys()
    save_file(old, copied / _WEIGHTS)
    imported = source.load(copied, _PLAIN)
    assert imported.decoder is not None


def test_a_checkpoint_of_torch_is_read_without_running_code(kl: Path, copied: Path) -> None:
    from safetensors.torch import load_file

    (copied / _WEIGHTS).unlink()
    torch.save(load_file(kl / _WEIGHTS), copied / "diffusion_pytorch_model.bin")
    assert source.load(copied, _PLAIN).origin.class_name == "AutoencoderKL"
    torch.save({"weights": Path("code")}, copied / "diffusion_pytorch_model.bin")
    with pytest.raises(ExportError, match="holds more than plain weights"):
        source.load(copied, _PLAIN)


@pytest.mark.parametrize(
    ("config", "options", "scaling"),
    [
        ({}, {}, (0.18215, 0.0, (), ())),
        ({"shift_factor": 0.25}, {}, (0.18215, 0.25, (), ())),
        ({}, {"scaling_factor": 2.0, "shift_factor": 1.0}, (2.0, 1.0, (), ())),
        (
            {"scaling_factor": 0.5, "latents_mean": [0, 1, 2, 3], "latents_std": [1, 2, 3, 4]},
            {},
            (None, 0.0, (0, 1, 2, 3), (2, 4, 6, 8)),
        ),
    ],
)
def test_scaling(config: dict, options: dict, scaling: tuple, copied: Path) -> None:
    file = copied / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    got = source.load(copied, ImportOptions(**options)).latent_scaling
    assert got is not None
    assert (got.scale, got.shift, got.mean, got.std) == scaling


def test_no_scaling_factor_is_noted(tmp_path: Path) -> None:
    vae = tiny_diffusers.make("AutoencoderTiny")
    folder = tiny_diffusers.save(vae, tmp_path / "vae", scaling_factor=None)
    imported = source.load(folder, _PLAIN)
    assert imported.latent_scaling is None
    assert "wanted --scaling-factor" in imported.notes[0]


def test_a_fixed_size(kl: Path) -> None:
    imported = source.load(kl, ImportOptions(size=(32, 48)))
    assert (imported.sizes, imported.image_shape) == (None, (3, 32, 48))
    assert imported.latent_shape == (4, 16, 24)
    with pytest.raises(ExportError, match="got 33x48, wanted multiples of 2"):
        source.load(kl, ImportOptions(size=(33, 48)))
    # As many latents as attention would take 4 GiB for, as where the size is free.
    with pytest.raises(ExportError, match="got 512x512, wanted at most 16384 pixels"):
        source.load(kl, ImportOptions(size=(512, 512)))


def test_a_decoder_alone(kl: Path) -> None:
    imported = source.load(kl, ImportOptions(decoder_only=True))
    assert (imported.encoder, imported.posterior) == (None, "none")


def _truncate(folder: Path) -> None:
    file = folder / _WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def _class(name: str):
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_truncate, "safetensors: not a whole safetensors file"),
        (_class("UNet2DConditionModel"), "config.json: class UNet2DConditionModel, wanted one of"),
        (_class("AutoencoderKLWan"), "class AutoencoderKLWan, .* video and audio are not support"),
        (_class("AutoencoderTiny"), "not the weights of this AutoencoderTiny: 134 weights are "),
        (lambda folder: (folder / _WEIGHTS).unlink(), "no weights; wanted diffusion_pytorch_mode"),
        (lambda folder: (folder / "config.json").write_text("{"), "no config.json with a _class"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, problem: str, copied: Path) -> None:
    change(copied)
    with pytest.raises(ExportError, match=problem) as refused:
        source.load(copied, _PLAIN)
    assert "\n" not in str(refused.value)


def test_pixels_that_are_not_signed(kl: Path) -> None:
    image = torch.rand(1, 3, 8, 8)
    imported = source.load(kl, ImportOptions(signed=False))
    signed = source.load(kl, _PLAIN)
    assert imported.encoder is not None
    assert signed.encoder is not None
    with torch.inference_mode():
        torch.testing.assert_close(imported.encoder(2 * image - 1), signed.encoder(image))
