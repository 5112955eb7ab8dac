"""Bundles of schema 1.2: spatial latents, free sizes, no likelihood, no encoder; the latent map."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import BundleError, LatentMap, LatentScaling, open_bundle
from tests.support.spatial import Spatial, write_spatial

KINDS = {
    "free": Spatial(),
    "fixed": Spatial(free=False, scaling=None),
    "grey": Spatial(channels=1, multiple=8, least=16),
    "point": Spatial(posterior="delta"),
    "point, sampled": Spatial(posterior="delta", prior="standard"),
    "no likelihood": Spatial(likelihood="none", prior="none"),
    "decoder alone": Spatial(posterior="none", prior="none", likelihood="none"),
    "per channel": Spatial(scaling=LatentScaling(mean=(0.5, -1.0), std=(2.0, 3.0))),
}


@pytest.fixture
def spatial(tmp_path: Path) -> Path:
    """A bundle of a model of free size, with a map."""
    return write_spatial(tmp_path / "spatial", Spatial(mapped=True))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "manifest.json"
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_spatial_model_reads_back(kind: Spatial, tmp_path: Path) -> None:
    bundle = open_bundle(write_spatial(tmp_path / "m", kind))
    manifest = bundle.manifest
    assert (manifest.latent_shape, manifest.image_shape) == (kind.latent_shape, kind.image_shape)
    assert manifest.spatial
    assert manifest.latent_dim == np.prod(kind.latent_shape)
    assert (manifest.latent_scaling, manifest.tolerance_kind) == (kind.scaling, "relative")
    assert (manifest.sizes is not None) == kind.free
    assert ("encoder" in bundle.graphs) == (kind.posterior != "none")
    assert ("decoder.logits" in bundle.golden) == (kind.likelihood != "none")
    assert bundle.golden["decoder.z"].shape[1:] == kind.latent_shape
    assert (manifest.dataset, manifest.parity, bundle.latent_map) == (None, None, None)


@pytest.mark.parametrize(
    "limits", [{"multiple": 12, "least": 12}, {"least": 20}, {"least": 8, "most_pixels": 255}]
)
def test_a_golden_size_that_the_sizes_exclude_is_refused(
    limits: dict[str, int], spatial: Path
) -> None:
    edit(spatial, lambda fields: fields["sizes"].update(limits))
    assert "image_shape: got [3, 16, 16], which sizes exclude" in refusal(spatial)


def test_golden_rows_of_another_size_are_refused(spatial: Path) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["image_shape"], fields["latent_shape"] = [3, 32, 16], [2, 8, 4]
        fields["latent_dim"] = 64

    edit(spatial, change)
    assert "encoder.image is float32 [2, 3, 16, 16], wanted float32 ['N', 3, 32, 16]" in refusal(
        spatial
    )


def test_the_map_reads_back(spatial: Path) -> None:
    found = open_bundle(spatial).latent_map
    assert found is not None
    assert (found.mean.dtype, found.mean.shape) == (np.float16, (20, 32))
    assert (found.labels.dtype, found.labels.shape) == (np.int16, (20,))
    assert (found.kl.dtype, found.kl.shape) == (np.float32, (32,))
    again = LatentMap.from_bytes(found.to_bytes(), 32, 3)
    for name in ("mean", "labels", "kl"):
        assert getattr(again, name).tobytes() == getattr(found, name).tobytes()


def test_a_damaged_map_is_refused(spatial: Path) -> None:
    content = (spatial / "map.npz").read_bytes()
    (spatial / "map.npz").write_bytes(content[:-1] + b"?")
    assert "map.npz: SHA-256" in refusal(spatial)
    (spatial / "map.npz").unlink()
    assert "map.npz" in refusal(spatial)


MAP = LatentMap(
    np.zeros((3, 4), np.float16), np.array([-1, 0, 1], np.int16), np.zeros(4, np.float32)
)
WRONG_MAPS = {
    "dtype": (replace(MAP, mean=np.zeros((3, 4), np.float32)), "mean is float32 [3, 4]"),  # type: ignore[arg-type]
    "dimensions": (replace(MAP, mean=np.zeros((3, 5), np.float16)), "mean is float16 [3, 5]"),
    "rows": (replace(MAP, mean=np.zeros((2, 4), np.float16)), "wanted float16 [3, 4]"),
    "kl": (replace(MAP, kl=np.zeros(3, np.float32)), "kl is float32 [3], wanted float32 [4]"),
    "class": (replace(MAP, labels=np.array([0, 1, 2], np.int16)), "labels: got 2, wanted -1 to 1"),
    "class below": (replace(MAP, labels=np.array([0, 1, -2], np.int16)), "labels: got -2"),
    "infinite": (replace(MAP, mean=np.full((3, 4), np.inf, np.float16)), "not finite"),
    "too many": (
        LatentMap(np.zeros((2001, 4), np.float16), np.zeros(2001, np.int16), MAP.kl),
        "2001 rows, wanted at most 2000",
    ),
}


@pytest.mark.parametrize(("wrong", "said"), WRONG_MAPS.values(), ids=WRONG_MAPS)
def test_a_map_of_another_model_is_refused(wrong: LatentMap, said: str) -> None:
    with pytest.raises(BundleError) as caught:
        LatentMap.from_bytes(wrong.to_bytes(), 4, 2)
    assert said in str(caught.value)


def test_a_map_without_kl_belongs_to_a_plain_autoencoder() -> None:
    plain = replace(MAP, kl=np.zeros(0, np.float32))
    assert LatentMap.from_bytes(plain.to_bytes(), 4, 2).kl.shape == (0,)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}"])
def test_a_malformed_map_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError):
        LatentMap.from_bytes(content, 4, 2)


def test_a_map_with_other_arrays_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((3, 1, 4, 4), np.uint8))
    with pytest.raises(BundleError, match="wanted kl, labels and mean"):
        LatentMap.from_bytes(buffer.getvalue(), 4, 2)
