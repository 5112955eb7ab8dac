"""TAEF2, weights of others: exported with free height and width, and equal to torch."""

import numpy as np
import pytest
import torch

from bundle import open_bundle
from service.models.onnx import Device, Graph
from tests.support.taef2 import halves, needs_taef2, photograph, psnr

pytestmark = [needs_taef2, pytest.mark.slow]


@pytest.fixture(scope="module")
def bundle(taef2):
    return open_bundle(taef2 / "taef2" / "1")


def test_the_manifest_states_what_was_measured(bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.image_shape, manifest.latent_shape) == ((3, 64, 64), (32, 8, 8))
    assert (manifest.likelihood, manifest.posterior, manifest.prior) == ("none", "delta", "none")
    assert manifest.rows_at_once == 0
    assert 300 < manifest.bytes_per_pixel < 3000
    assert {graph.opset for graph in manifest.graphs.values()} == {18}
    assert max(manifest.parity.max_abs_difference.values()) < 1e-4
    assert manifest.origin.sha256["taef2_encoder.pth"].startswith("10a4e1021e89")


# Coffee, whose fine print and steam are lost, is the hardest.
@pytest.mark.parametrize(
    ("name", "size", "least"),
    [("astronaut", (512, 512), 31.0), ("chelsea", (296, 448), 31.0), ("coffee", (400, 600), 29.5)],
)
def test_photographs_are_reconstructed(name: str, size: tuple[int, int], least: float, bundle):
    image = photograph(name)
    assert image.shape == (3, *size)
    encoder, decoder = (Graph(bundle.graphs[graph], Device("cpu")) for graph in bundle.graphs)
    z = encoder.run({"image": image[None].astype(np.float32) / 255})["mean"]
    assert z.shape == (1, 32, size[0] // 8, size[1] // 8)
    assert psnr(np.clip(decoder.run({"z": z})["image"][0], 0, 1), image) >= least


@pytest.mark.parametrize("size", [(8, 8), (24, 40), (136, 64)])
def test_onnxruntime_agrees_with_torch_at_any_size(size: tuple[int, int], bundle) -> None:
    image = np.random.default_rng(0).random((3, 3, *size), np.float32)
    encoder, decoder = halves()
    with torch.inference_mode():
        (z,) = encoder(torch.from_numpy(image))
        (picture,) = decoder(z)
    got = Graph(bundle.graphs["encoder"], Device("cpu")).run({"image": image})["mean"]
    np.testing.assert_allclose(got, z.numpy(), atol=2e-5)
    got = Graph(bundle.graphs["decoder"], Device("cpu")).run({"z": z.numpy()})["image"]
    np.testing.assert_allclose(got, picture.numpy(), atol=2e-5)
