"""Models of diffusers, pythae and ONNX, imported by the command and served, against the originals.

They have random weights, and are as small as their class allows.
"""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from export.import_cli import main
from latentserve.client import Client
from tests.support import tiny_diffusers, tiny_pythae
from tests.support.agreement import check_agreement
from tests.support.onnx_pairs import dense_decoder, dense_encoder, write_optimum, write_pair
from tests.support.processes import Server
from tests.support.shared import cached, made_once

pytest.importorskip("diffusers")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.slow

#: Arguments of the classes of diffusers that are served.
_DIFFUSERS = {
    "AutoencoderDC": {},
    "AutoencoderKL": tiny_diffusers.BY_EIGHT,
    "AutoencoderKLFlux2": {},
    "AutoencoderTiny": {},
    "AsymmetricAutoencoderKL": {},
    "VQModel": {},
}
#: Classes of a fixed size, since their layers are those of AutoencoderKL.
_FIXED = ("AsymmetricAutoencoderKL", "AutoencoderKLFlux2")
_LICENCE = ("--licence", "CC0-1.0")


def make(folder: Path) -> None:
    """Writes the sources and imports each."""
    sources, models = folder / "sources", folder / "models"
    for name, arguments in _DIFFUSERS.items():
        tiny_diffusers.save(tiny_diffusers.make(name, **arguments), sources / name.lower())
    tiny_pythae.save(sources / "mlp")
    tiny_pythae.save(sources / "conv", pickled=True)
    write_optimum(sources / "optimum")
    write_pair(sources / "pair", dense_encoder(), dense_decoder())
    options = {
        "conv": ("--trust-code",),
        "pair": ("--likelihood", "bernoulli", "--prior", "standard"),
        **{name.lower(): ("--size", "24x40") for name in _FIXED},
    }
    for source in sorted(sources.iterdir()):
        arguments = (*_LICENCE, *options.get(source.name, ()))
        assert main([str(source), "--to", str(models / source.name), *arguments]) == 0


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `sources` and `models`. Not to be changed."""
    return made_once(tmp_path_factory, "imported", cached("imported", make))


@pytest.fixture(scope="module")
def client(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    log = tmp_path_factory.mktemp("imported-server") / "log"
    with (
        Server(imported / "models", log) as server,
        Client(server.target, timeout=60.0) as connected,
    ):
        yield connected


def _images(channels: int, *sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.random((3, channels, *size), np.float32) for size in sizes]


@pytest.mark.parametrize("name", _DIFFUSERS)
def test_diffusers(name: str, client: Client, tmp_path: Path) -> None:
    vae = tiny_diffusers.make(name, **_DIFFUSERS[name])
    model = name.lower()
    check_agreement(
        client,
        model,
        lambda image: tiny_diffusers.encode(vae, image),
        lambda z: tiny_diffusers.decode(vae, z),
        _images(3, *([(64, 64)] if name not in _FIXED else []), (24, 40)),
        tmp_path,
    )
    info = client.model(model)
    assert (info.likelihood, info.prior) == ("none", "none")
    (image,) = _images(3, (24, 40))
    if (scale := getattr(vae.config, "scaling_factor", None)) is None:
        assert info.latent_scaling is None
        return
    scaled = client.encode(image, model=model, scaled=True).mean
    wanted = tiny_diffusers.encode(vae, torch.from_numpy(image))[0] * scale
    np.testing.assert_allclose(scaled, wanted, atol=1e-4)


def test_pythaes_perceptron(imported: Path, client: Client, tmp_path: Path) -> None:
    weights = torch.load(imported / "sources" / "mlp" / "model.pt")["model_state_dict"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def encode(image: Tensor) -> tuple[Tensor, Tensor]:
        hidden = linear("encoder.layers.0.0", image.flatten(1)).relu()
        return linear("encoder.embedding", hidden), linear("encoder.log_var", hidden)

    def decode(z: Tensor) -> Tensor:
        hidden = linear("decoder.layers.0.0", z).relu()
        return linear("decoder.layers.1.0", hidden).sigmoid().reshape(-1, *tiny_pythae.SHAPE)

    images = _images(1, (8, 8))
    check_agreement(client, "mlp", encode, decode, images, tmp_path)
    _check_scores_and_samples(client, "mlp", images[0])


def test_pythaes_pickled_networks(imported: Path, client: Client, tmp_path: Path) -> None:
    folder = imported / "sources" / "conv"
    weights = torch.load(folder / "model.pt")["model_state_dict"]
    nets = {}
    for part in ("encoder", "decoder"):
        nets[part] = pickle.loads((folder / f"{part}.pkl").read_bytes())
        own = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(part)}
        nets[part].load_state_dict(own)

    images = _images(1, (8, 8))
    check_agreement(
        client,
        "conv",
        lambda image: tuple(nets["encoder"](image).values()),
        lambda z: nets["decoder"](z)["reconstruction"],
        images,
        tmp_path,
    )
    _check_scores_and_samples(client, "conv", images[0])


def test_optimums_pair(imported: Path, client: Client, tmp_path: Path) -> None:
    folder = imported / "sources" / "optimum"
    encoder, decoder = (_graph(folder / f"vae_{p}" / "model.onnx") for p in ("encoder", "decoder"))
    check_agreement(
        client,
        "optimum",
        lambda image: encoder(2 * image - 1)[0].chunk(2, dim=1),
        lambda z: (decoder(z)[0] + 1) / 2,
        _images(3, (64, 64), (24, 40)),
        tmp_path,
    )


def test_a_pair_with_flat_latents(imported: Path, client: Client, tmp_path: Path) -> None:
    folder = imported / "sources" / "pair"
    encoder, decoder = _graph(folder / "encoder.onnx"), _graph(folder / "decoder.onnx")
    images = _images(1, (8, 8))
    check_agreement(
        client, "pair", lambda image: encoder(image)[1:], lambda z: decoder(z)[0], images, tmp_path
    )
    _check_scores_and_samples(client, "pair", images[0])


def test_cards_name_source_and_licence(imported: Path) -> None:
    wanted = {
        "autoencoderkl": "AutoencoderKL of diffusers",
        "conv": "VAE of pythae",
        "optimum": "AutoencoderKL of onnx",
    }
    for name, origin in wanted.items():
        card = (imported / "models" / name / "1" / "README.md").read_text()
        assert f"{origin}; licence: CC0-1.0" in card


@pytest.mark.parametrize(
    ("source", "arguments", "problem"),
    [
        ("conv", (), "add --trust-code"),
        ("truncated", (), "not a whole safetensors file"),
        ("other", (), "class UNet2DConditionModel, wanted one of"),
        ("misfit", (), "they do not fit each other"),
        ("empty", (), "holds no model that can be imported"),
    ],
)
def test_a_source_that_is_refused_leaves_nothing(
    source: str,
    arguments: tuple[str, ...],
    problem: str,
    imported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = imported / "sources" / source
    if source in ("truncated", "other"):
        folder = tiny_diffusers.save(tiny_diffusers.make("AutoencoderTiny"), tmp_path / source)
    if source == "truncated":
        file = folder / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    elif source == "other":
        (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    elif source == "misfit":
        folder = write_pair(tmp_path / source, dense_encoder(dim=5), dense_decoder(dim=7))
    elif source == "empty":
        folder = tmp_path / source
        folder.mkdir()
    target = tmp_path / "models" / "new"
    assert main([str(folder), "--to", str(target), *arguments]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("latentserve import: ")
    assert problem in last
    assert not target.exists()


def _graph(file: Path):
    session = onnxruntime.InferenceSession(str(file))
    (value,) = session.get_inputs()

    def run(tensor: Tensor) -> list[Tensor]:
        answers = session.run(None, {value.name: tensor.numpy()})
        return [torch.from_numpy(answer) for answer in answers]

    return run


def _check_scores_and_samples(client: Client, model: str, image: np.ndarray) -> None:
    assert np.isfinite(client.score(image, model=model).elbo).all()
    samples = client.sample(2, model=model, seed=1)
    assert samples.shape == (2, *image.shape[1:])
    assert (samples == client.sample(2, model=model, seed=1)).all()
