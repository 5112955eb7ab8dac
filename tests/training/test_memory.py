"""Trainings on more images than memory holds, under a limit that the kernel keeps."""

import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.confine import memory_limit

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

DIFFERENT, FILE_ROWS = 2_048, 50_000
OPTIONS = (
    "--preset", "dense-gmm", "--device", "cpu", "--steps", "6", "--set", "layers=32:relu",
    "--set", "latent_dim=8", "--set", "prior.components=4", "--augment", "flip,shift",
)  # fmt: skip


def picture(seed: int) -> bytes:
    """A picture of 64 x 64 in colour: rectangles that compress well."""
    rng = np.random.default_rng(seed)
    pixels = np.full((64, 64, 3), rng.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        top, left, bottom, right = rng.integers(0, 64, 4)
        pixels[min(top, bottom) : bottom + 9, min(left, right) : right + 9] = rng.integers(
            0, 256, 3
        )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_parquet(folder: Path, rows: int) -> None:
    """Writes `rows` pictures, of which `DIFFERENT` differ, in files of `FILE_ROWS`."""
    pictures = pa.array([picture(seed) for seed in range(DIFFERENT)])
    folder.mkdir()
    for start in range(0, rows, FILE_ROWS):
        chosen = np.arange(start, min(rows, start + FILE_ROWS))
        table = pa.table(
            {"image": pictures.take(pa.array(chosen % DIFFERENT)), "label": pa.array(chosen % 10)}
        )
        pq.write_table(table, folder / f"{start:08}.parquet", row_group_size=10_000)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("rows", "limit"),
    [
        pytest.param(100_000, 1_100 << 20, marks=pytest.mark.long, id="100,000 in 1.1 GiB"),
        pytest.param(1_000_000, 4 << 30, marks=pytest.mark.long, id="1,000,000 in 4 GiB"),
    ],
)
def test_pictures_that_do_not_fit_in_memory_are_trained_on(
    rows: int, limit: int, tmp_path: Path
) -> None:
    """Decoded they take 1.1 and 11.4 GiB; a second start uses the images decoded before.

    A training on 3,000 such images takes 0.7 GiB, of torch and its activations.
    """
    if shutil.disk_usage(tmp_path).free < 16_000 * rows:
        pytest.skip("wanted a disk with space for the decoded images")
    write_parquet(tmp_path / "data", rows)
    environment = {**os.environ, "LATENTSERVE_DATA_DIR": str(tmp_path / "cache")}
    for attempt, said in (("first", f"reading {rows} images from"), ("second", "decoded before")):
        began = time.monotonic()
        with memory_limit(limit) as confined:
            done = subprocess.run(
                [
                    *confined, sys.executable, "-m", "latentserve", "train", *OPTIONS,
                    "--data", f"parquet:{tmp_path / 'data'}", "--out", str(tmp_path / attempt),
                ],
                env=environment, capture_output=True, text=True, timeout=3000, check=False,
            )  # fmt: skip
        print(f"{attempt} start: {time.monotonic() - began:.0f} s\n{done.stderr}")
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
        assert (tmp_path / attempt / "report.html").exists()
    images = next((tmp_path / "cache" / "decoded").glob("data-*/images"))
    assert images.stat().st_size == rows * 3 * 64 * 64
    shutil.rmtree(tmp_path / "cache")
