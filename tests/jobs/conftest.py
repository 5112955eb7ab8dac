"""A client without a server, and sources of jobs."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.job_child import SHAPE, ArithmeticClient


@pytest.fixture
def client() -> ArithmeticClient:
    """A client that computes results by arithmetic."""
    return ArithmeticClient()


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """A source of each kind of job, of 50 rows."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (50, *SHAPE)).astype(np.uint8))
    np.save(tmp_path / "latents.npy", rng.standard_normal((50, 3)).astype(np.float32))
    return {
        "encode": str(tmp_path / "images.npy"),
        "decode": str(tmp_path / "latents.npy"),
        "sample": "50",
    }
