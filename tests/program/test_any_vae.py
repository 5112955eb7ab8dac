"""A trained autoencoder made by others, TAEF2, served beside the models of the repository."""

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentserve import jobs
from latentserve.client import Client
from tests.support.processes import Server
from tests.support.taef2 import needs_taef2, photograph, psnr
from tests.support.waiting import wait_until

pytestmark = [needs_taef2, pytest.mark.slow]

_FILES = ("png", "jpeg", "webp")
_FORMATS = ("float32", "float16", "bfloat16", "uint8", *_FILES)
_SHIPPED = Path(__file__).parents[2] / "models"
# Lossy files at quality 95 cost the photographs up to a decibel.
_LEAST = {"jpeg": 30.5, "webp": 30.0}


@pytest.fixture(scope="module")
def all_models(taef2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with TAEF2, `mnist` and `mnist2d`."""
    folder = tmp_path_factory.mktemp("models")
    for model in (taef2 / "taef2", _SHIPPED / "mnist", _SHIPPED / "mnist2d"):
        (folder / model.name).symlink_to(model)
    return folder


@pytest.fixture(scope="module")
def server(all_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("any-vae") / "log"
    with Server(all_models, log, "--http-port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.target, timeout=120.0) as connected:
        yield connected


@pytest.fixture(scope="module")
def photographs() -> list[NDArray[np.uint8]]:
    """Three sizes of photographs, uint8 [3, H, W]."""
    astronaut, cat = photograph("astronaut"), photograph("chelsea")
    return [cat, astronaut[:, :256, 120:376], cat[:, 40:216, 80:400]]


def test_three_models_load_quickly_and_have_few_metrics(server: Server, client: Client) -> None:
    client.reconstruct(np.zeros((1, 3, 64, 64), np.uint8), model="taef2")
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(fields[11]) + int(fields[12])) / 100 < 5.0, "seconds of CPU"
    assert len(server.samples()) < 2000


def test_photographs_of_three_sizes_at_once_in_every_format(
    client: Client, photographs: list[NDArray[np.uint8]]
) -> None:
    def ratio(case: tuple[NDArray[np.uint8], str]) -> float:
        image, wanted = case
        answer = client.reconstruct(image[None], model="taef2", dtype=wanted)  # type: ignore[call-overload]
        got = _pixels(answer[0]) if wanted in _FILES else np.asarray(answer[0])
        assert got.shape == image.shape
        return psnr(got / np.float32(255) if got.dtype == np.uint8 else got, image)

    cases = [(image, wanted) for wanted in _FORMATS for image in photographs]
    with ThreadPoolExecutor(3) as pool:
        for (image, wanted), got in zip(cases, pool.map(ratio, cases), strict=True):
            assert got >= _LEAST.get(wanted, 31.0), (wanted, image.shape)


def test_encode_and_decode_of_files_and_arrays_agree_with_reconstruct(
    client: Client, photographs: list[NDArray[np.uint8]]
) -> None:
    for image in photographs:
        wanted = client.reconstruct(image[None], model="taef2")
        from_array = client.encode(image[None], model="taef2").mean
        from_file = client.encode([_png(image)], model="taef2").mean
        assert from_array.shape == (1, 32, image.shape[1] // 8, image.shape[2] // 8)
        assert (from_file == from_array).all()
        assert (client.decode(from_array, model="taef2") == wanted).all()
        halves = client.encode(image[None], model="taef2", latent_dtype="bfloat16").mean
        assert halves.dtype == np.float32
        np.testing.assert_allclose(halves, from_array, rtol=2**-8)


def test_streams_mix_sizes(client: Client, photographs: list[NDArray[np.uint8]]) -> None:
    batches = [image[None] for image in photographs * 2]
    latents = [posterior.mean for posterior in client.encode_stream(batches, model="taef2")]
    images = list(client.decode_stream(latents, model="taef2"))
    for batch, (got,) in zip(batches, images, strict=True):
        assert psnr(got, batch[0]) >= 31.0
        assert (client.reconstruct(batch, model="taef2")[0] == got).all()


def test_a_job_of_mixed_sizes_that_is_killed_resumes_to_the_same_bytes(
    server: Server, client: Client, photographs: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    source = tmp_path / "photographs"
    source.mkdir()
    small = [image[:, :64, :96] for image in photographs] + [photographs[0][:, :96, :64]]
    pictures = [*photographs, *small * 3]
    for number, image in enumerate(pictures):
        (source / f"{number:02}.png").write_bytes(_png(image))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "latentserve", "batch", "encode", str(source)),
        *("--to", str(killed), "--model", "taef2", "--shard-rows", "2", "--server", server.target),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: _lines(killed / "cursor.jsonl") >= 2 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    done = jobs.encode(client, source, whole, model="taef2", shard_rows=2)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    assert done.rows == len(pictures)
    assert _digests(killed) == _digests(whole)

    rows: dict[int, NDArray[np.float32]] = {}
    for line in (whole / "cursor.jsonl").read_text().splitlines():
        shard = json.loads(line)
        (name,) = (file["name"] for file in shard["files"])
        rows |= zip(shard["row_numbers"], np.load(whole / name), strict=True)
    for number, image in enumerate(pictures):
        assert (rows[number] == client.encode(image[None], model="taef2").mean[0]).all()

    jobs.decode(client, whole, tmp_path / "decoded", model="taef2", shard_rows=100)
    decoded: dict[int, NDArray[np.uint8]] = {}
    for line in (tmp_path / "decoded" / "cursor.jsonl").read_text().splitlines():
        shard = json.loads(line)
        (name,) = (file["name"] for file in shard["files"])
        decoded |= zip(shard["row_numbers"], np.load(tmp_path / "decoded" / name), strict=True)
    for number, image in enumerate(photographs):
        assert psnr(decoded[number] / np.float32(255), image) >= 31.0


def test_digits_do_not_wait_for_photographs(client: Client) -> None:
    """`benchmarks.spatial` measures how long they take; here, that none waits for a photograph."""
    latent = client.encode(photograph("astronaut")[None], model="taef2").mean
    digit = np.zeros((1, 28, 28), np.uint8)

    def decode() -> float:
        began = time.perf_counter()
        for _ in client.decode_stream([latent] * 4, model="taef2", window=2):
            pass
        return (time.perf_counter() - began) / 4

    beside: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        decoding = pool.submit(decode)
        while not decoding.done():
            began = time.perf_counter()
            client.encode(digit, model="mnist")
            beside.append(time.perf_counter() - began)
    assert np.percentile(beside, 90) < decoding.result() / 5


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content)) as file:
        return np.asarray(file).transpose(2, 0, 1)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def _digests(folder: Path) -> dict[str, bytes]:
    names = ("*.npy", "cursor.jsonl", "rows.jsonl")
    return {path.name: path.read_bytes() for name in names for path in folder.glob(name)}
