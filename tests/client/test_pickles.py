"""Errors and values of the library pass from one process to another."""

import concurrent.futures
import copy
import dataclasses
import multiprocessing
import pickle
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest

import latentserve.bench
import latentserve.client
import latentserve.errors
import latentserve.jobs
from latentserve._jobs.files import Written
from latentserve._jobs.work import SampleWork
from latentserve.client import (
    Interpolation,
    InvalidArgument,
    Keepalive,
    Labelled,
    LatentMap,
    LatentScaling,
    ModelIdentity,
    ModelInfo,
    Origin,
    Posterior,
    ProtocolError,
    RefusedModel,
    Reloaded,
    Retry,
    Route,
    Samples,
    Scores,
    ServerError,
    ServerInfo,
    Sizes,
    Tls,
    Traversal,
    Violation,
)

MODULES = (latentserve.client, latentserve.errors, latentserve.jobs, latentserve.bench)
# They hold connections, or the lock of a folder.
CLIENTS = {"Client", "AsyncClient", "Plan", "RayRunner"}
MODEL = ModelInfo(
    "mnist", 1, (1, 28, 28), 2, "gaussian", "standard", "bernoulli", ("0", "1"), 512,
    {"elbo": -90.0}, {"encoder": "cpu"}, {"encoder": "00"}, "mnist", datetime.now(UTC), "noise 1",
    "fp32", (0.0, 0.0), (1.0, 1.0), True, (2,), Sizes(8, 8, 8, 64), LatentScaling(0.5, 1.0), 1,
    Origin("diffusers", "AutoencoderKL", "{}", {"a": "00"}, "MIT"),
)  # fmt: skip
ARRAY = np.arange(4, dtype=np.float32).reshape(2, 2)


def server_error(kind=InvalidArgument):
    error = kind(
        "images: got 1",
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        (Violation("images", "got 1"),),
        1.5,
        "0123456789abcdef",
    )
    error.answered = True
    if isinstance(error, InvalidArgument):
        error.index = 3
    return error


VALUES = {
    type(value).__name__: value
    for value in (
        Interpolation(ARRAY, ARRAY),
        Keepalive(11.0, 5.0),
        Labelled(ARRAY, np.array([1])),
        LatentMap(ARRAY, np.array([0, -1]), ARRAY[0], ("a",)),
        MODEL,
        MODEL.latent_scaling,
        MODEL.origin,
        MODEL.sizes,
        Route("mnist", 1, 90),
        ModelIdentity("mnist", 1),
        Posterior(ARRAY, None, ARRAY, 7),
        RefusedModel("mnist", 2, "SHA-256"),
        Reloaded((ModelIdentity("mnist", 1),), (), (), (RefusedModel("a", 1, "b"),)),
        Retry(attempts=9, patience_seconds=1.0),
        Samples(ARRAY, ARRAY, 2**64 - 1, 5),
        Scores(*(ARRAY[0] for _ in range(3)), nll=None, percentile=None, seed=None),
        ServerInfo("1", "2", 3, 4, "mnist", "cpu", (MODEL,)),
        Tls(Path("ca.pem"), b"certificate", b"key", "name"),
        Traversal(ARRAY, ARRAY),
        Violation("images", "got 1"),
        ProtocolError("got 1 row"),
        latentserve.errors.LatentserveError("x"),
        latentserve.jobs.Connection("host:1", tls=True, token_file=Path("/token")),
        latentserve.jobs.Finished(Path("f"), 1, 1, 0, ("lost",), "mnist", 1, 7),
        latentserve.jobs.JobError("locked"),
        latentserve.jobs.MissingPackage("pyarrow", name="pyarrow"),
        latentserve.jobs.Progress("working", 1, 2, 0),
        latentserve.jobs.Shard(
            2,
            range(4, 6),
            7,
            MODEL,
            "/f",
            ("images-00002.npy",),
            "npy",
            (),
            0,
            None,
            SampleWork(5, (1, 28, 28), None, False, {"label": 3}),
        ),
        latentserve.jobs.ShardResult(2, 2, (Written("images-00002.npy", 9, "00"),), "ab"),
        latentserve.jobs.SourceError("no rows"),
        latentserve.bench.Load(rows=(1, 2)),
        latentserve.bench.Report("mnist/1", 1, 1, 1.0, {}, 0, {"p50": 1.0}),
        latentserve.bench.WrongAnswer("two"),
    )
}


def public_classes():
    found = {}
    for module in MODULES:
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            if isinstance(value, type) and value.__module__.startswith("latentserve"):
                found[name] = value
    return {
        name: kind
        for name, kind in found.items()
        if not name.startswith("_") and name not in CLIENTS
    }


def example(kind):
    if issubclass(kind, ServerError):
        return server_error(kind)
    return VALUES[kind.__name__]


def content(value):
    """The value as something that `==` compares."""
    if isinstance(value, BaseException):
        return type(value), value.args, content(vars(value))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return type(value), [content(getattr(value, name)) for name in names]
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: content(inside) for key, inside in value.items()}
    if isinstance(value, tuple | list):
        return [content(inside) for inside in value]
    return value


@pytest.mark.parametrize("name", sorted(public_classes()))
def test_public_values_and_errors_survive_pickling_and_copying(name):
    value = example(public_classes()[name])
    copies = [pickle.loads(pickle.dumps(value, protocol)) for protocol in range(2, 6)]
    for other in (*copies, copy.copy(value), copy.deepcopy(value)):
        assert content(other) == content(value)


def _fails():
    try:
        raise ValueError("the cause")
    except ValueError as cause:
        raise server_error() from cause


def test_an_error_in_a_process_pool_is_raised_to_the_caller():
    """It broke ProcessPoolExecutor, and multiprocessing.Pool waited for ever."""
    context = multiprocessing.get_context("forkserver")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(InvalidArgument, match="images: got 1") as caught:
            pool.submit(_fails).result(60)
        assert content(vars(caught.value)) == content(vars(server_error()))
    with context.Pool(1) as old_pool, pytest.raises(InvalidArgument, match="images: got 1"):
        old_pool.apply_async(_fails).get(60)
