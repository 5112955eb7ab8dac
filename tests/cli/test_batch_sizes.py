"""Dataset jobs over images of several sizes, against a real server: killed, resumed, read back."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.in_process import run_cli
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial
from tests.support.waiting import wait_until

SIZES = [(16, 24), (40, 16), (32, 32)]
PHOTOS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Server of a model of free size."""
    folder = tmp_path_factory.mktemp("free")
    write_spatial(folder / "models" / "free", Spatial())
    with Server(folder / "models", folder / "log") as running:
        yield running.wait_until_serving()


@pytest.fixture
def server_env(server: Server) -> dict[str, str]:
    return {"LATENTSERVE_SERVER": server.target}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of pictures in several formats; their sizes are in no order."""
    folder = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for row in range(PHOTOS):
        pixels = np.random.default_rng(row).integers(0, 256, (*rng.choice(SIZES), 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{row:03}.{rng.choice(['png', 'jpg', 'webp'])}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows_of(folder: Path, name: str) -> list[np.ndarray]:
    """The rows of an array in their order, as docs/jobs.md reads them."""
    rows: dict[int, np.ndarray] = {}
    for line in (folder / "cursor.jsonl").read_text().splitlines():
        shard = json.loads(line)
        file = next(file for file in shard["files"] if file["name"].startswith(f"{name}-"))
        rows |= zip(shard["row_numbers"], np.load(folder / file["name"]), strict=True)
    return [rows[number] for number in range(len(rows))]


def test_photos_of_several_sizes_are_encoded_drawn_and_decoded(
    server_env, client, photos, tmp_path
):
    encode = ("batch", "encode", photos, "--seed", "7", "--offset", "5", "--to", tmp_path / "l")
    done = run_cli(*encode, "--shard-rows", "25", env=server_env)
    assert done.returncode == 0, done.stderr
    names = (tmp_path / "l" / "rows.jsonl").read_text().splitlines()
    z = rows_of(tmp_path / "l", "z")
    for row, name in enumerate(map(json.loads, names)):
        content = (photos / name).read_bytes()
        wanted = client.encode([content], seed=7, offset=5 + row)
        assert (z[row] == wanted.z[0]).all(), name
    done = run_cli("batch", "decode", tmp_path / "l", "--to", tmp_path / "i", env=server_env)
    assert done.returncode == 0, done.stderr
    images = rows_of(tmp_path / "i", "images")
    for row in range(0, PHOTOS, 7):
        assert (images[row] == client.decode(z[row][None], dtype="uint8")[0]).all()


def wait_for_shards(folder: Path, count: int) -> None:
    cursor = folder / "cursor.jsonl"
    wait_until(lambda: cursor.exists() and cursor.read_bytes().count(b"\n") >= count, seconds=60)


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", ["npy", "parquet"])
def test_a_job_killed_at_random_moments_leaves_the_bytes_of_an_uninterrupted_one(
    server_env, photos, tmp_path, shard_format
):
    encode = (
        "batch", "encode", photos, "--seed", "7", "--shard-rows", "4", "--format", shard_format,
        "--to",
    )  # fmt: skip
    done = run_cli(*encode, tmp_path / "unbroken", env=server_env)
    assert done.returncode == 0, done.stderr
    shards = len((tmp_path / "unbroken" / "cursor.jsonl").read_text().splitlines())
    rng = random.Random(shard_format)
    kills = 0
    for complete in sorted(rng.sample(range(1, shards - 5), 3)):
        process = subprocess.Popen(
            [sys.executable, "-m", "latentserve", *map(str, encode), str(tmp_path / "j")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **server_env},
        )  # fmt: skip
        wait_for_shards(tmp_path / "j", complete)
        process.kill()
        kills += process.wait(30) == -signal.SIGKILL
    done = run_cli(*encode, tmp_path / "j", env=server_env)
    assert done.returncode == 0, done.stderr
    assert kills > 1
    assert contents(tmp_path / "j") == contents(tmp_path / "unbroken")


def test_resized_pictures_have_the_size_that_the_job_planned(server_env, client, photos, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    for row, orientation in enumerate((1, 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / f"{row}.jpg", exif=exif)
    sources = [tmp_path / "0.jpg", tmp_path / "1.jpg", *sorted(photos.glob("*.png"))[:2]]
    done = run_cli("batch", "encode", *sources, "--to", tmp_path / "j", env=server_env)
    assert done.returncode == 1
    assert done.stderr == (
        f"latentserve batch: {sources[0]}: got height 50 and width 71, wanted multiples of 4 "
        "from 8 up, at most 1048576 pixels in all, or resize\n"
    )
    resize = ("batch", "encode", *sources, "--resize", "--to", tmp_path / "j")
    done = run_cli(*resize, env=server_env)
    assert done.returncode == 0, done.stderr
    means = rows_of(tmp_path / "j", "mean")
    assert [mean.shape[1:] for mean in means[:2]] == [(12, 18), (18, 12)]
    for source, mean in zip(sources, means, strict=True):
        assert (client.encode([source.read_bytes()], resize=True).mean[0] == mean).all()
    done = run_cli(
        "batch", "encode", *sources, "--bucket", "64", "--to", tmp_path / "b", env=server_env
    )
    assert done.returncode == 0, done.stderr
    assert [mean.shape[1:] for mean in rows_of(tmp_path / "b", "mean")[:2]] == [(14, 18), (18, 14)]


def test_a_picture_that_the_server_refuses_is_named(server_env, photos, tmp_path):
    for row in range(3):
        pixels = np.zeros((16, 16, 3 if row < 2 else 4), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
    done = run_cli("batch", "encode", photos, tmp_path / "0.png", tmp_path / "1.png",
                   tmp_path / "2.png", "--to", tmp_path / "j", env=server_env)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"latentserve batch: {tmp_path / '2.png'}: got RGB 16x16 PNG with"
    )


def test_scaled_latents_in_float16_are_read_back_and_samples_have_a_size(
    server_env, client, photos, tmp_path
):
    size = ("--size", "16x24", "--scaled", "--latent-dtype", "float16")
    encode = ("batch", "encode", photos, *size, "--to", tmp_path / "l")
    done = run_cli(*encode, env=server_env)
    assert done.returncode == 0, done.stderr
    means = np.load(tmp_path / "l" / "mean-00000.npy")
    assert (means.dtype, means.shape) == (np.float16, (PHOTOS, 2, 4, 6))
    first = min(photos.iterdir()).read_bytes()
    wanted = client.encode([first], resize=(16, 24), scaled=True, latent_dtype="float16")
    assert (means[0] == wanted.mean[0]).all()
    decode = ("batch", "decode", tmp_path / "l", "--dtype", "float32", "--to", tmp_path / "i")
    done = run_cli(*decode, env=server_env)
    assert done.returncode == 0, done.stderr
    images = np.load(tmp_path / "i" / "images-00000.npy")
    assert (images[:5] == client.decode(means[:5], scaled=True)).all()
    sample = ("batch", "sample", "-n", "3", "--seed", "7", "--size", "16x24", "--latents")
    done = run_cli(*sample, "--to", tmp_path / "s", env=server_env)
    assert done.returncode == 0, done.stderr
    drawn = client.sample(3, seed=7, size=(16, 24), dtype="uint8")
    assert (np.load(tmp_path / "s" / "images-00000.npy") == drawn).all()
    assert np.load(tmp_path / "s" / "latents-00000.npy").shape == (3, 2, 4, 6)


def test_a_bucket_that_the_model_cannot_take_is_one_line(server_env, photos, tmp_path):
    bucket = ("batch", "encode", photos, "--bucket", "4", "--to", tmp_path / "j")
    done = run_cli(*bucket, env=server_env)
    assert done.returncode == 1
    assert done.stderr == (
        "latentserve batch: bucket: got 4, but the model takes multiples of 4 from 8 up, at most "
        "1048576 pixels in all; the smallest bucket that fits is 12, the largest 1044\n"
    )


def test_options_that_contradict_each_other_or_the_source_are_refused(server_env, photos, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 16, 16), np.uint8))
    for arguments, said in (
        ((tmp_path / "x.npy", "--size", "8x8"), f"{tmp_path / 'x.npy'}: got an npy file, wanted"),
        ((tmp_path / "x.npy", "--bucket", "64"), f"{tmp_path / 'x.npy'}: got an npy file, wanted"),
        ((photos, "--size", "8x8", "--bucket", "64"), "bucket: got 64 and a size, (8, 8), wanted"),
    ):
        done = run_cli("batch", "encode", *arguments, "--to", tmp_path / "j", env=server_env)
        assert done.returncode == 1
        assert done.stderr.startswith(f"latentserve batch: {said}")
    # Arrays of several sizes keep theirs.
    np.save(tmp_path / "y.npy", np.zeros((1, 3, 24, 16), np.uint8))
    arrays = ("batch", "encode", tmp_path / "x.npy", tmp_path / "y.npy", "--resize", "--seed", "1")
    done = run_cli(*arrays, "--to", tmp_path / "j", env=server_env)
    assert done.returncode == 0, done.stderr
    assert [mean.shape for mean in rows_of(tmp_path / "j", "mean")] == [(2, 4, 4)] * 2 + [(2, 6, 4)]


def test_a_job_that_would_be_refused_again_is_not_to_be_resumed(server_env, tmp_path):
    sample = ("batch", "sample", "-n", "3", "--label", "1", "--to", tmp_path / "j")
    done = run_cli(*sample, env=server_env)
    assert done.returncode == 1
    assert done.stderr.endswith(f"; 0 of 3 rows are complete in {tmp_path / 'j'}\n")
