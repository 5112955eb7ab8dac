"""An autoencoder of Stable Diffusion's shape, 84 M random weights, through `latentserve import`."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bundle import open_bundle
from service.models.onnx import Device, Graph

pytestmark = pytest.mark.long

diffusers = pytest.importorskip("diffusers")

_MOST_SECONDS, _MOST_BYTES = 600.0, 8 << 30


@pytest.mark.timeout(1200)
def test_is_imported_within_ten_minutes_and_8_gib(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    assert sum(weights.numel() for weights in vae.parameters()) > 83_000_000
    vae.save_pretrained(tmp_path / "vae")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "latentserve", "import", "vae", "--to", "models/large"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    # In kilobytes, of the command or of a process that it started, the larger one.
    peak = max(usage.ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    print(f"{seconds:.0f} s, {peak / 2**30:.2f} GiB")
    assert process.returncode == 0
    assert seconds <= _MOST_SECONDS
    assert peak <= _MOST_BYTES

    bundle = open_bundle(tmp_path / "models" / "large" / "1")
    assert bundle.manifest.rows_at_once == 1
    z = np.random.default_rng(0).standard_normal((1, 4, 32, 32), np.float32)
    with torch.inference_mode():
        wanted = (vae.eval().decode(torch.from_numpy(z), return_dict=False)[0].numpy() + 1) / 2
    got = Graph(bundle.graphs["decoder"], Device("cpu")).run({"z": z})["image"]
    assert got.shape == (1, 3, 256, 256)
    assert np.abs(got - wanted).max() <= 1e-4 * max(1.0, np.abs(wanted).max())
