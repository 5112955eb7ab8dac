"""Bundles whose weights are stored in fp16: half the bytes, the same bits, the same speed."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from bundle import open_bundle
from export.graphs import export_graphs
from export.verify import check_structure
from export.weights import round_weights, shrink
from latentserve.client import Client
from service.models.onnx import Device, Graph
from tests.support.processes import Server, latentserve
from tests.support.shared import cached, made_once
from tests.support.untrained import KINDS, Kind, random_model
from training.model.config import ModelConfig, PriorConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def halved(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the `gmm` model: weights in fp16, and a decoder in fp16, too."""

    def make(folder: Path) -> None:
        for name, options in (("gmm", ()), ("gmm-decoder", ("--decoder", "fp16"))):
            done = latentserve(
                "export", kinds / "runs" / "gmm", "--to", folder / name, "--weights", "fp16",
                *options,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert "weights in fp16: test ELBO" in done.stderr

    return made_once(tmp_path_factory, "halved", cached("halved", make))


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("flow-gmm", "conditional", "rgb")
        else pytest.param(kind, marks=pytest.mark.long)
        for kind in KINDS
    ],
)  # fmt: skip
def test_graphs_of_rounded_weights_give_the_same_bits_from_half_the_bytes(kind: str) -> None:
    model = round_weights(random_model(KINDS[kind]))
    rng = np.random.default_rng(0)
    for name, graph in export_graphs(model).items():
        content = shrink(graph.content)
        check_structure(dataclasses.replace(graph, content=content))
        dim = KINDS[kind].model.latent_dim
        values = {
            "image": rng.random((3, *KINDS[kind].shape), np.float32),
            "z": rng.standard_normal((3, dim), np.float32),
            "eps": rng.standard_normal((3, dim), np.float32),
            "u": rng.random((3, 1), np.float32),
            "label": np.arange(3) if KINDS[kind].model.conditional else np.full(3, -1),
        }
        inputs = {tensor: values[tensor] for tensor in graph.inputs}
        wanted = Graph(graph.content, Device("cpu")).run(inputs)
        got = Graph(content, Device("cpu")).run(inputs)
        for tensor, answer in wanted.items():
            assert (got[tensor] == answer).all(), (name, tensor)
        if name in ("encoder", "decoder"):
            assert len(content) < len(graph.content)


@pytest.mark.long
@pytest.mark.parametrize("dim", [45])
def test_triangular_factors_are_stored_without_their_zeros(dim: int) -> None:
    kind = Kind(
        ModelConfig(
            KINDS["gmm"].model.network, dim, prior=PriorConfig("flow-gmm", components=9, width=6)
        )
    )
    graphs = export_graphs(round_weights(random_model(kind)))
    rng = np.random.default_rng(0)
    for name, inputs in (
        ("prior", {
            "eps": rng.standard_normal((3, dim), np.float32),
            "u": rng.random((3, 1), np.float32),
            "label": np.array([-1, 0, 2]),
        }),
        ("prior_density", {
            "z": rng.standard_normal((3, dim), np.float32), "label": np.array([-1, 0, 2]),
        }),
    ):  # fmt: skip
        plain, small = (
            graphs[name],
            dataclasses.replace(graphs[name], content=shrink(graphs[name].content)),
        )
        check_structure(small)
        assert len(plain.content) - len(small.content) > 0.4 * 4 * 9 * dim * dim
        wanted = Graph(plain.content, Device("cpu")).run(inputs)
        for tensor, answer in Graph(small.content, Device("cpu")).run(inputs).items():
            assert (wanted[tensor] == answer).all(), (name, tensor)


def test_weights_that_are_not_numbers_of_fp16_stay_as_they_are() -> None:
    graph = export_graphs(random_model(KINDS["gmm"]))["encoder"]
    assert shrink(graph.content) == onnx.load_from_string(graph.content).SerializeToString()


def test_rounding_leaves_the_model_itself_unchanged() -> None:
    model = random_model(KINDS["flow-gmm"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = round_weights(model)
    assert all((model.state_dict()[name] == tensor).all() for name, tensor in before.items())
    for name, tensor in rounded.state_dict().items():
        assert tensor.dtype == before[name].dtype
        if tensor.is_floating_point():
            assert torch.equal(tensor, before[name].half().float()), name


def test_the_manifest_and_the_card_say_it(halved: Path, kinds: Path) -> None:
    plain = open_bundle(kinds / "models" / "gmm" / "1")
    assert plain.manifest.weights == "fp32"
    for name in ("gmm", "gmm-decoder"):
        bundle = open_bundle(halved / name / "1")
        assert bundle.manifest.weights == "fp16"
        card = (halved / name / "1" / "README.md").read_text()
        assert "Weights are stored in fp16." in card
        assert "--weights fp16" in card
        metrics = bundle.manifest.metrics
        assert metrics["elbo"] == pytest.approx(plain.manifest.metrics["elbo"], abs=0.05)
        for graph in ("encoder", "decoder"):
            share = len(bundle.graphs[graph]) / len(plain.graphs[graph])
            assert share < 0.85, (name, graph)


def test_a_server_computes_with_the_rounded_weights(
    halved: Path, kinds: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (5, 1, 8, 8), np.uint8)
    plain = Graph(open_bundle(kinds / "models" / "gmm" / "1").graphs["encoder"], Device("cpu"))
    with (
        Server(halved, tmp_path / "log") as server,
        Client(server.wait_until_serving().target) as client,
    ):
        got = client.encode(images, model="gmm").mean
        wanted = plain.run({"image": images.astype(np.float32) / np.float32(255)})["mean"]
        assert 0 < np.abs(got - wanted).max() < 0.01


def test_what_cannot_be_done_is_refused(halved: Path, kinds: Path, tmp_path: Path) -> None:
    again = latentserve(
        "export", halved / "gmm" / "1", "--to", tmp_path / "gmm", "--weights", "fp16"
    )
    assert again.returncode == 1
    assert "--weights: got fp16; a bundle keeps its graphs" in again.stderr
    missing = latentserve(
        "export", kinds / "runs" / "rgb", "--to", tmp_path / "rgb", "--weights", "fp16"
    )
    assert missing.returncode == 1
    assert "fp16: its cost in nats is measured on" in missing.stderr
