"""`latentserve import` of TAESD's files and of a user's own module, and `export_autoencoder`."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bundle import open_bundle
from export import export_autoencoder
from export.errors import ExportError
from export.import_cli import main
from export.sources import taesd
from export.sources.detect import source_module
from export.sources.imported import ImportOptions
from export.sources.wrap import cut_sigmoid
from latentserve.client import Client
from service.models.onnx import Device, Graph
from tests.support.agreement import check_agreement
from tests.support.processes import Server

pytestmark = pytest.mark.slow

# What a user might have: it is imported by its path, and its neighbour by its name.
_NETS = """
from torch import nn

class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1))
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 8, 4, 4), nn.Tanh(), nn.Conv2d(8, 3, 1))

    def encode(self, x):
        mean, log_var = self.down(x).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z):
        return self.up(z)

class Dense(nn.Module):
    image_shape = (1, 6, 8)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 48), nn.Sigmoid())

    def encode(self, x):
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z):
        return self.decoder(z).view(-1, 1, 6, 8)
"""
_FACTORIES = """
import nets
import torch

def seeded(kind):
    torch.manual_seed(0)
    return kind().eval()

def convolutional():
    return seeded(nets.Convolutional)

def dense():
    return seeded(nets.Dense)

def broken():
    return 1 / 0

def without_decode():
    return nets.nn.Flatten()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mine.py`, a module of factories."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(_NETS)
    (folder / "mine.py").write_text(_FACTORIES)
    return folder / "mine.py"


@pytest.fixture(scope="module")
def nets() -> dict[str, nn.Module]:
    """The models of `mine.py` in this process."""
    space: dict[str, type[nn.Module]] = {}
    exec(compile(_NETS, "nets", "exec"), space)
    torch.manual_seed(0)
    convolutional = space["Convolutional"]().eval()
    torch.manual_seed(0)
    return {"convolutional": convolutional, "dense": space["Dense"]().eval()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def models(own: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with both models of `mine.py`."""
    folder = tmp_path_factory.mktemp("models")
    trusted = ("--trust-code", "--licence", "CC0", "--images", str(pictures))
    for arguments in (
        (f"{own}:convolutional", "--to", folder / "convolutional", "--size", "any",
         "--range", "signed", "--scaling-factor", "0.5", "--shift-factor", "0.25"),
        (f"{own}:dense", "--to", folder / "dense", "--likelihood", "bernoulli",
         "--prior", "standard"),
    ):  # fmt: skip
        assert main([*map(str, arguments), *trusted]) == 0
    return folder


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    log = tmp_path_factory.mktemp("import") / "log"
    with Server(models, log) as server, Client(server.target, timeout=60.0) as connected:
        yield connected


def _run(call: Callable[[Tensor], Tensor], array: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return call(torch.from_numpy(array)).numpy()


def test_a_module_of_free_size_is_served_as_torch_computes_it(client, nets, tmp_path) -> None:
    net = nets["convolutional"]
    rng = np.random.default_rng(1)
    images = [rng.random((3, 3, *size), np.float32) for size in ((64, 64), (12, 40))]
    check_agreement(
        client,
        "convolutional",
        lambda x: net.encode(2 * x - 1),
        lambda z: (net.decode(z) + 1) / 2,
        images,
        tmp_path,
    )
    mean = _run(lambda x: net.encode(2 * x - 1)[0], images[0])
    scaled = client.encode(images[0], model="convolutional", scaled=True)
    np.testing.assert_allclose(scaled.mean, (mean - 0.25) * 0.5, atol=1e-4)


def test_a_decoder_that_ended_in_a_sigmoid_scores_and_samples(client, nets, tmp_path) -> None:
    net = nets["dense"]
    image = np.random.default_rng(1).random((3, 1, 6, 8), np.float32)
    check_agreement(client, "dense", net.encode, net.decode, [image], tmp_path)
    assert client.sample(2, model="dense", seed=1).shape == (2, 1, 6, 8)
    assert np.isfinite(client.score(image, model="dense").elbo).all()


def test_manifest_and_card_say_where_it_comes_from(models: Path) -> None:
    manifest = open_bundle(models / "convolutional" / "1").manifest
    assert manifest.origin is not None
    assert manifest.origin.sha256.keys() == {"mine.py"}
    assert (manifest.origin.class_name, manifest.origin.licence) == ("Convolutional", "CC0")
    assert (manifest.image_shape, manifest.latent_shape) == ((3, 64, 64), (4, 16, 16))
    assert (manifest.posterior, manifest.prior, manifest.likelihood) == ("gaussian", "none", "none")
    card = (models / "convolutional" / "1" / "README.md").read_text()
    assert "Convolutional of torch; licence: CC0" in card
    assert f"of a folder: {manifest.metrics['psnr']:.2f} dB" in card.replace("\n", " ")
    dense = models / "dense" / "1"
    assert open_bundle(dense).manifest.likelihood == "bernoulli"
    assert {path.name for path in dense.glob("*.png")} == {"reconstructions.png", "samples.png"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{own}:dense",), "--trust-code"),
        (("{own}:missing", "--trust-code"), "has no function missing"),
        (("{own}:broken", "--trust-code"), "ZeroDivisionError"),
        (("{own}:without_decode", "--trust-code"), "without decode"),
        (("{own}:convolutional", "--trust-code"), "Wanted --size"),
        (("{own}:convolutional", "--size", "30", "--trust-code"), "wanted [2, 3, 30, 30]"),
        (("{own}:dense", "--size", "any", "--trust-code"), "wanted [c, h, w]"),
        (("{own}:convolutional", "--size", "8", "--likelihood", "bernoulli", "--trust-code"),
         "ends in an nn.Sigmoid"),
        (("{own}:dense", "--decoder-only", "--trust-code"), "latent_shape"),
        (("{own}:dense", "--trust-code", "--shift-factor", "0.1"), "wanted --scaling-factor too"),
        (("{folder}",), "holds no model that can be imported"),
        (("{folder}/nothing",), "no such file or folder"),
        (("{own}:dense", "--trust-code", "--images", "{folder}"), "no images"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(
    arguments, said, own: Path, tmp_path: Path, capsys
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    filled = [each.format(own=own, folder=folder) for each in arguments]
    assert main([*filled, "--to", str(tmp_path / "models" / "new")]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("latentserve import: ")
    assert said in last
    assert not (tmp_path / "models" / "new").exists()


def test_a_name_that_is_taken_is_refused(own: Path, models: Path, capsys) -> None:
    assert main([f"{own}:dense", "--to", str(models / "dense"), "--trust-code"]) == 1
    assert "the name is taken, by version 1" in capsys.readouterr().err
    assert main([f"{own}:dense", "--to", str(models / "Dense!"), "--trust-code"]) == 1
    assert "model name: got 'Dense!'" in capsys.readouterr().err


def test_a_dry_run_prints_what_would_be_made(own: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "dense"
    assert main([f"{own}:dense", "--to", str(target), "--trust-code", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "source:     Dense of torch" in plan
    assert "likelihood: none: no Score" in plan
    assert not target.exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State dicts of TAESD's shape with random weights."""
    folder = tmp_path_factory.mktemp("taesd")
    for name, weights in _taesd_weights(4).items():
        torch.save(weights, folder / f"taesdxl_{name}.pth")
    return folder


def test_taesd_is_found_by_its_files(pair: Path) -> None:
    for source in (pair, pair / "taesdxl_encoder.pth", pair / "taesdxl_decoder.pth"):
        assert source_module(source)[0] == "taesd"
        imported = taesd.load(source, ImportOptions())
        assert imported.origin.class_name == "TAESDXL"
        assert imported.latent_shape == (4, 8, 8)
        assert imported.latent_scaling is not None
        assert imported.latent_scaling.scale == 1.0


def test_taesd_reads_the_decoder_alone(pair: Path) -> None:
    imported = taesd.load(pair, ImportOptions(decoder_only=True, size=(32, 48)))
    assert (imported.encoder, imported.posterior) == (None, "none")
    assert (imported.image_shape, imported.sizes) == ((3, 32, 48), None)


def test_taesd_refuses_other_files(pair: Path, tmp_path: Path) -> None:
    good = (pair / "taesdxl_encoder.pth").read_bytes()
    decoder = tmp_path / "x_decoder.pth"
    decoder.write_bytes((pair / "taesdxl_decoder.pth").read_bytes())
    encoder = tmp_path / "x_encoder.pth"
    with pytest.raises(ExportError, match="--decoder-only"):
        taesd.load(decoder, ImportOptions())
    wide = io.BytesIO()
    torch.save(_taesd_weights(16)["encoder"], wide)
    for content, said in (
        (good[: len(good) // 2], "not a whole checkpoint"),
        (pickle.dumps(_Evil()), "holds more than plain weights"),
        (wide.getvalue(), "they are not a pair"),
        ((pair / "taesdxl_decoder.pth").read_bytes(), "not those of a TAESD encoder"),
    ):
        encoder.write_bytes(content)
        with pytest.raises(ExportError, match=said):
            taesd.load(tmp_path, ImportOptions())
    assert _Evil.runs == 0


class _Evil:
    runs = 0

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _ran, ()


def _ran() -> None:
    _Evil.runs += 1


def _taesd_weights(latents: int) -> dict[str, dict[str, Tensor]]:
    """Encoder and decoder, from the published order of layers: blocks (b), convolutions (c)."""

    def weights(layers: list[tuple[str, int, int]]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for index, (kind, channels, filters) in enumerate(layers):
            if kind == "b":
                for layer in (0, 2, 4):
                    made[f"{index}.conv.{layer}.weight"] = torch.randn(64, 64, 3, 3) / 50
                    made[f"{index}.conv.{layer}.bias"] = torch.zeros(64)
            elif kind in "cd":
                made[f"{index}.weight"] = torch.randn(filters, channels, 3, 3) / 30
                if kind == "c":
                    made[f"{index}.bias"] = torch.zeros(filters)
        return made

    torch.manual_seed(0)
    block, down, none = ("b", 64, 64), ("d", 64, 64), ("-", 0, 0)
    level = [down, block, block, block]
    up = [block, block, block, none, down]
    return {
        "encoder": weights([("c", 3, 64), block, *level * 3, ("c", 64, latents)]),
        "decoder": weights([none, ("c", latents, 64), none, *up * 3, block, ("c", 64, 3)]),
    }


def test_the_public_function_in_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "import.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    assert "export_autoencoder" in code
    assert len(code.splitlines()) <= 24
    (tmp_path / "example.py").write_text(code)
    subprocess.run([sys.executable, "example.py"], cwd=tmp_path, check=True, timeout=200)
    assert open_bundle(tmp_path / "models" / "tiny" / "1").manifest.likelihood == "bernoulli"


def test_the_public_function_checks_shapes(tmp_path: Path) -> None:
    net = nn.Conv2d(1, 1, 1)
    shapes = {"image_shape": (1, 8, 8), "report": lambda _line: None}
    with pytest.raises(ExportError, match=r"wanted \[2, 4\]"):
        export_autoencoder(net, net, tmp_path / "x", latent_shape=(4,), **shapes)
    with pytest.raises(ExportError, match="torch cannot run it"):
        export_autoencoder(nn.Linear(5, 5), net, tmp_path / "x", latent_shape=(1, 8, 8), **shapes)
    with pytest.raises(ExportError, match="torch cannot run it"):
        export_autoencoder(None, nn.Linear(5, 5), tmp_path / "x", latent_shape=(4,), **shapes)
    spoilt = nn.Conv2d(1, 1, 1)
    nn.init.constant_(spoilt.weight, torch.inf)
    with pytest.raises(ExportError, match="not finite"):
        export_autoencoder(None, spoilt, tmp_path / "x", latent_shape=(1, 8, 8), **shapes)
    assert not (tmp_path / "x").exists()


def test_the_public_function_leaves_batch_norms_of_a_model_in_training_as_they_are(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3)
    )
    decoder = nn.Sequential(
        nn.Linear(3, 64), nn.BatchNorm1d(64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8))
    )
    images = torch.rand(16, 1, 8, 8)
    decoder(encoder(images))  # as a training does
    wanted = copy.deepcopy(encoder).eval(), copy.deepcopy(decoder).eval()
    path = export_autoencoder(
        encoder,
        decoder,
        tmp_path / "normed",
        image_shape=(1, 8, 8),
        latent_shape=(3,),
        report=lambda _line: None,
    )
    bundle = open_bundle(path)
    with torch.inference_mode():
        mean = wanted[0](images)
        found = Graph(bundle.graphs["encoder"], Device("cpu")).run({"image": images.numpy()})
        np.testing.assert_allclose(found["mean"], mean, atol=1e-5)
        found = Graph(bundle.graphs["decoder"], Device("cpu")).run({"z": mean.numpy()})
        np.testing.assert_allclose(found["image"], wanted[1](mean), atol=1e-5)


def test_a_sigmoid_is_cut_only_at_the_end() -> None:
    z = torch.randn(2, 3)
    last = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Unflatten(1, (1, 2, 2)))
    logits = last[0](z)
    assert cut_sigmoid(last, z)
    torch.testing.assert_close(last(z).flatten(1), logits)
    assert not cut_sigmoid(nn.Sequential(nn.Sigmoid(), nn.Linear(3, 4)), z)
