"""Loaded models of every kind, tiny."""

from typing import Any

import pytest

from bundle import open_bundle
from service.models.model import load_model
from service.models.onnx import Device
from tests.support.conditional import Conditional, write_conditional
from tests.support.inference import InProcess
from tests.support.spatial import Spatial, write_spatial
from tests.support.tiny import write_tiny

SHAPE, DIM = (1, 4, 4), 3


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Loaded models by their identity.

    Two versions of `one`; `classes` is conditional; `plain` is a plain autoencoder; `raw` takes
    images of any size, `half` is a decoder alone.
    """
    root = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        write_tiny(root / "one", shape=SHAPE, dim=DIM, seed=seed)
    write_conditional(root / "classes", Conditional(shape=SHAPE, dim=DIM, percentiles=True))
    write_conditional(
        root / "plain", Conditional(posterior="delta", likelihood="none", shape=SHAPE, dim=DIM)
    )
    write_spatial(root / "raw", Spatial(likelihood="none", most_pixels=256))
    write_spatial(root / "half", Spatial(likelihood="none", posterior="none", prior="none"))
    return {
        f"{path.parent.name}/{path.name}": load_model(open_bundle(path), Device("cpu"), threads=1)
        for path in root.glob("*/*")
    }


@pytest.fixture
def running(loaded):
    made = InProcess(*loaded.values())
    yield made
    made.close()
