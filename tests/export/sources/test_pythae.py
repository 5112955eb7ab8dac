"""Models of pythae: default networks without pythae, pickled ones only if they are trusted."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from export.errors import ExportError
from export.sources import pythae as source
from export.sources.imported import Imported, ImportOptions
from tests.support.tiny_pythae import DIM, SHAPE, save

_PLAIN, _TRUSTED = ImportOptions(), ImportOptions(trust_code=True)


def _run(imported: Imported, image: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    assert imported.encoder is not None
    assert imported.decoder is not None
    with torch.inference_mode():
        heads = imported.encoder(image)
        return list(heads), list(imported.decoder(heads[0]))


def test_default_networks(tmp_path: Path) -> None:
    folder = save(tmp_path / "mlp")
    assert source.find(folder)
    imported = source.load(folder, _PLAIN)
    assert (imported.posterior, imported.likelihood) == ("gaussian", "bernoulli")
    assert (imported.prior, imported.origin.class_name) == ("standard", "VAE")
    (mean, log_var), (image, logits) = _run(imported, torch.rand(2, *SHAPE))
    assert mean.shape == log_var.shape == (2, DIM)
    torch.testing.assert_close(image, torch.sigmoid(logits))
    assert image.shape == (2, *SHAPE)


@pytest.mark.parametrize(
    ("name", "posterior", "likelihood", "prior"),
    [
        ("VAE", "gaussian", "bernoulli", "standard"),
        ("BetaVAE", "gaussian", "bernoulli", "standard"),
        ("VAMP", "gaussian", "bernoulli", "none"),
        ("AE", "delta", "none", "none"),
        ("WAE_MMD", "delta", "none", "standard"),
    ],
)
def test_the_same_as_pythae(
    name: str, posterior: str, likelihood: str, prior: str, tmp_path: Path
) -> None:
    models = pytest.importorskip("pythae.models")
    config = getattr(models, f"{name}_Config" if "_" in name else f"{name}Config")
    loss = {"reconstruction_loss": "bce"} if posterior == "gaussian" else {}
    torch.manual_seed(0)
    model = getattr(models, name)(config(input_dim=SHAPE, latent_dim=DIM, **loss)).eval()
    model.save(str(tmp_path / "final_model"))
    assert source.find(tmp_path)
    imported = source.load(tmp_path, _PLAIN)
    assert (imported.posterior, imported.likelihood) == (posterior, likelihood)
    assert (imported.prior, imported.origin.class_name) == (prior, name)
    x = torch.rand(3, *SHAPE)
    heads, images = _run(imported, x)
    with torch.inference_mode():
        answer = model.encoder(x)
        wanted = model.decoder(answer.embedding).reconstruction
    torch.testing.assert_close(heads[0], answer.embedding)
    if posterior == "gaussian":
        torch.testing.assert_close(heads[1], answer.log_covariance)
    torch.testing.assert_close(images[0], wanted)


def test_pickled_networks(tmp_path: Path) -> None:
    folder = save(tmp_path / "conv", pickled=True)
    with pytest.raises(ExportError, match=r"encoder.pkl: .* may do all that .* add --trust-code"):
        source.load(folder, _PLAIN)
    imported = source.load(folder, _TRUSTED)
    assert (imported.posterior, imported.likelihood) == ("gaussian", "bernoulli")
    encoder, decoder = (
        pickle.loads((folder / f"{name}.pkl").read_bytes()) for name in ("encoder", "decoder")
    )
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.add_(0.01)
        x = torch.rand(2, *SHAPE)
        answer = encoder(x)
        wanted = decoder(answer["embedding"])["reconstruction"]
    (mean, log_var), (image, logits) = _run(imported, x)
    torch.testing.assert_close(mean, answer["embedding"])
    torch.testing.assert_close(log_var, answer["log_covariance"])
    torch.testing.assert_close(image, wanted)
    torch.testing.assert_close(torch.sigmoid(logits), wanted)


def test_no_pickle_is_opened_without_trust(tmp_path: Path) -> None:
    folder = save(tmp_path / "conv", pickled=True)

    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (folder / "encoder.pkl").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ExportError, match="--trust-code"):
        source.load(folder, _PLAIN)
    assert source.find(folder)
    assert not (tmp_path / "harm").exists()
    torch.save({"model_state_dict": Harm()}, folder / "model.pt")
    (folder / "model_config.json").write_text(
        json.dumps({"name": "VAEConfig", "input_dim": list(SHAPE), "latent_dim": DIM})
    )
    with pytest.raises(ExportError, match=r"model.pt: holds more than plain weights"):
        source.load(folder, _PLAIN)
    assert not (tmp_path / "harm").exists()


def test_squared_errors_are_no_likelihood(tmp_path: Path) -> None:
    folder = save(tmp_path / "mlp", reconstruction_loss="mse")
    imported = source.load(folder, _PLAIN)
    assert imported.likelihood == "none"
    _, images = _run(imported, torch.rand(2, *SHAPE))
    assert len(images) == 1
    assert 0 < float(images[0].min()) < float(images[0].max()) < 1
    stated = source.load(folder, ImportOptions(likelihood="bernoulli", prior="none"))
    assert (stated.likelihood, stated.prior) == ("bernoulli", "none")


def test_a_decoder_alone(tmp_path: Path) -> None:
    imported = source.load(save(tmp_path / "mlp"), ImportOptions(decoder_only=True))
    assert (imported.encoder, imported.posterior) == (None, "none")


@pytest.mark.parametrize(
    ("config", "options", "problem"),
    [
        ({"name": "HVAEConfig"}, _PLAIN, "model HVAEConfig, wanted one of AE, Adversarial_AE, "),
        ({"input_dim": [64]}, _PLAIN, r"input_dim \[64\], wanted \[C, H, W\]"),
        ({"latent_dim": 4}, _PLAIN, r"shape \[3, 512\], wanted \[4, 512\] as model_config.json"),
        ({"uses_default_encoder": False}, _TRUSTED, r"encoder.pkl: FileNotFoundError"),
        ({}, ImportOptions(size="any"), "--size: wanted 8x8, the size of "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    config: dict, options: ImportOptions, problem: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "mlp", **config)
    with pytest.raises(ExportError, match=problem) as refused:
        source.load(folder, options)
    assert "\n" not in str(refused.value)


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "mlp")
    content = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ExportError, match=r"model.pt: not a whole checkpoint of torch"):
        source.load(folder, _PLAIN)


def test_signed_pixels(tmp_path: Path) -> None:
    folder = save(tmp_path / "mlp")
    plain = source.load(folder, ImportOptions(likelihood="none"))
    signed = source.load(folder, ImportOptions(signed=True))
    assert signed.likelihood == "none"
    x = torch.rand(2, *SHAPE)
    heads, _ = _run(plain, 2 * x - 1)
    got, images = _run(signed, x)
    torch.testing.assert_close(got, heads)
    assert plain.decoder is not None
    with torch.inference_mode():
        torch.testing.assert_close(images[0], (plain.decoder(heads[0])[0] + 1) / 2)
    with pytest.raises(ExportError, match="Bernoulli pixels are in"):
        source.load(folder, ImportOptions(signed=True, likelihood="bernoulli"))
