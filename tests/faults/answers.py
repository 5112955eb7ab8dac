"""Calls, streams and jobs, and what an undisturbed server answers to them."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle.layout import find_versions
from latentserve import jobs
from latentserve.client import Client
from latentserve.jobs import Progress
from tests.faults.http_client import Arrays, HttpClient
from tests.support import ROOT

#: What calls: both have the methods that are called here.
AnyClient = Client | HttpClient

#: Version of the model that the servers answer for.
SHIPPED_VERSION = max(find_versions(ROOT / "models" / "mnist2d"))

_VARIANTS = 8
_CHUNK = 20
_STREAM_ROWS = 600
_JOB_ROWS = 1500
#: Rows of a large reply: 12 MB of float32 pixels.
LARGE_ROWS = 4000


@dataclass(frozen=True)
class Answers:
    """The answers that are right, as float arrays whose bytes count.

    Attributes:
        unary: Those of `UNARY`, in its order.
        large: That of `large`.
        upload: That of `upload`.
        streams: Those of `STREAMS`, in its order, whole.
        job: SHA-256 of the shards of `run_job`, by file name.
    """

    unary: tuple[Arrays, ...]
    large: Arrays
    upload: Arrays
    streams: tuple[Arrays, ...]
    job: dict[str, str]

    @classmethod
    def of(cls, target: str, folder: Path) -> "Answers":
        """Asks a server that nothing disturbs.

        Args:
            target: Its address.
            folder: Folder for a job, which is created.
        """
        with Client(target) as client:
            streams = tuple(_joined(list(stream(client))) for stream in STREAMS)
            run_job(client, folder)
            return cls(
                unary=tuple(call(client) for call in UNARY),
                large=large(client),
                upload=upload(client),
                streams=streams,
                job=digests(folder),
            )


def wrong_rows(got: Arrays, wanted: Arrays) -> int:
    """Number of rows that are missing, too many, or differ in any byte of any array."""
    rows = max(len(array) for array in (*got, *wanted))
    same = np.zeros(rows, bool)
    common = min(len(array) for array in (*got, *wanted))
    same[:common] = len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=False):
        if one.dtype != other.dtype or one.shape[1:] != other.shape[1:]:
            return rows
        same[:common] &= (_bytes(one[:common]) == _bytes(other[:common])).all(axis=1)
    return int(rows - same.sum())


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


def _joined(chunks: list[Arrays]) -> Arrays:
    return tuple(map(np.concatenate, zip(*chunks, strict=True)))


# ------------------------------------------------------------------------------- unary calls


def _images(variant: int, rows: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(variant).integers(0, 256, (rows, 28, 28), np.uint8)


def _latents(variant: int, rows: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(variant).standard_normal((rows, 2), np.float32)


def _unary() -> Iterator[Callable[[AnyClient], Arrays]]:
    def encode(client: AnyClient, variant: int) -> Arrays:
        posterior = client.encode(_images(variant), seed=variant)
        assert posterior.log_var is not None
        assert posterior.z is not None
        return posterior.mean, posterior.log_var, posterior.z

    def decode(client: AnyClient, variant: int) -> Arrays:
        return (client.decode(_latents(variant)),)

    def sample(client: AnyClient, variant: int) -> Arrays:
        samples = client.sample_with_latents(5, seed=variant, dtype="uint8")
        return samples.images, samples.latents

    def reconstruct(client: AnyClient, variant: int) -> Arrays:
        return (client.reconstruct(_images(variant)),)

    def score(client: AnyClient, variant: int) -> Arrays:
        scores = client.score(_images(variant, 2), draws=3, seed=variant)
        return (np.stack([scores.elbo, scores.kl], axis=1),)

    for variant in range(_VARIANTS):
        for method in (encode, decode, sample, reconstruct, score):
            yield lambda client, method=method, variant=variant: method(client, variant)  # type: ignore[misc]


UNARY = tuple(_unary())
_PIXELS = np.random.default_rng(0).random((LARGE_ROWS, 28, 28), np.float32)


def large(client: AnyClient) -> Arrays:
    """A unary call whose reply takes many packets."""
    return (client.sample(LARGE_ROWS, seed=5),)


def upload(client: AnyClient) -> Arrays:
    """A unary call whose request takes many packets: 12 MB of float32 pixels."""
    posterior = client.encode(_PIXELS)
    assert posterior.log_var is not None
    return posterior.mean, posterior.log_var


def narrow(client: AnyClient) -> Arrays:
    """A unary call of four rows, the first ones of `large`."""
    return (client.sample(4, seed=5),)


# ----------------------------------------------------------------------------------- streams


def _sample_stream(client: AnyClient) -> Iterator[Arrays]:
    for chunk in client.sample_stream(_STREAM_ROWS, seed=3, chunk_rows=_CHUNK):
        yield chunk.images, chunk.latents


def _encode_stream(client: AnyClient) -> Iterator[Arrays]:
    batches = (_images(batch, _CHUNK) for batch in range(_STREAM_ROWS // _CHUNK))
    for posterior in client.encode_stream(batches, seed=4):
        assert posterior.log_var is not None
        assert posterior.z is not None
        yield posterior.mean, posterior.log_var, posterior.z


def _decode_stream(client: AnyClient) -> Iterator[Arrays]:
    batches = (_latents(batch, _CHUNK) for batch in range(_STREAM_ROWS // _CHUNK))
    for images in client.decode_stream(batches, dtype="uint8"):
        yield (images,)


STREAMS = (_sample_stream, _encode_stream, _decode_stream)


# -------------------------------------------------------------------------------------- jobs


def run_job(
    client: Client,
    folder: Path,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """A dataset job in three shards; of the shipped version, as a reload may add another."""
    jobs.sample(
        client,
        _JOB_ROWS,
        folder,
        seed=6,
        latents=True,
        version=SHIPPED_VERSION,
        shard_rows=_JOB_ROWS // 3,
        progress=progress,
    )


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the shards in the folder of a job, by file name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.npy"))
    }
