"""The blocking client against a real server: arguments, results, errors and retries."""

import inspect
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from PIL import Image

import latentserve.client
from bundle import open_bundle
from latentserve._cli.operate import _figures
from latentserve._client import codec
from latentserve.cli import main
from latentserve.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Posterior,
    ProtocolError,
    Retry,
    Unavailable,
)
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.flaky import Failure, Flaky, serving
from tests.support.processes import Server
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server that accepts 5 rows per message, so that every larger array is split."""
    folder = tmp_path_factory.mktemp("small")
    write_tiny(folder / "models" / "tiny")
    with Server(folder / "models", folder / "log", "--max-rows", "5") as server:
        yield server.wait_until_serving()


def test_decode_of_encode_is_nearest_to_the_encoded_digit(client, models):
    digits = open_bundle(models / "mnist" / "1").golden["encoder.image"]
    posterior = client.encode(digits)
    assert isinstance(posterior, Posterior)
    assert posterior.mean.shape == posterior.log_var.shape == (len(digits), 32)
    np.testing.assert_allclose(posterior.std, np.exp(posterior.log_var / 2))
    images = client.decode(posterior.mean)
    assert images.dtype == np.float32
    # Trained for seconds, but each image is still nearest to the digit that it was encoded from.
    distances = ((images[:, None] - digits[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(len(digits))).mean() > 0.8
    as_bytes = client.decode(posterior.mean, dtype="uint8")
    assert (as_bytes == np.rint(images * np.float32(255))).all()


def test_equal_seeds_give_equal_samples_and_other_seeds_others(client):
    assert (client.sample(9, seed=7) == client.sample(9, seed=7)).all()
    assert (client.sample(9, seed=7) != client.sample(9, seed=8)).any()
    assert (client.sample(9) != client.sample(9)).any()


def test_sample_returns_the_fresh_seed_that_it_used(client):
    samples = client.sample_with_latents(4, offset=3)
    again = client.sample_with_latents(4, seed=samples.seed, offset=3)
    assert (again.images == samples.images).all()
    assert (client.decode(samples.latents) == samples.images).all()


def test_arrays_larger_than_a_message_are_split_and_joined(small):
    images = np.random.default_rng(0).random((23, 1, 4, 4), dtype=np.float32)
    with Client(small.target) as client:
        posterior = client.encode(images, seed=4, offset=10)
        one_by_one = [client.encode(images[i : i + 1], seed=4, offset=10 + i) for i in range(23)]
        for name in ("mean", "log_var", "z"):
            parts = np.concatenate([getattr(posterior, name) for posterior in one_by_one])
            assert (getattr(posterior, name) == parts).all()
        decoded = client.decode(posterior.z)
        assert (decoded[20:] == client.decode(posterior.z[20:])).all()
        assert decoded.shape == (23, 1, 4, 4)
        whole = client.sample(23, seed=1)
        assert (whole[7:12] == client.sample(5, seed=1, offset=7)).all()


def test_a_split_array_has_one_fresh_seed(small):
    images = np.zeros((12, 16), np.float32)
    with Client(small.target) as client:
        posterior = client.encode(images, draw=True)
        assert posterior.seed is not None
        again = client.encode(images, seed=posterior.seed)
        assert (again.z == posterior.z).all()
        assert len(np.unique(posterior.z, axis=0)) == 12


def test_encode_draws_only_on_request(client):
    posterior = client.encode(np.zeros((1, 784), np.uint8))
    assert posterior.z is None
    assert posterior.seed is None


def test_lists_and_float64_arrays_are_accepted(small):
    with Client(small.target) as client:
        assert client.decode([[0.0, 1.0, -1.0]]).shape == (1, 1, 4, 4)
        assert client.encode(np.full((1, 4, 4), 0.5)).mean.dtype == np.float32


def test_invalid_argument_carries_the_field_violation_of_the_server(client):
    with pytest.raises(InvalidArgument) as caught:
        client.encode(np.full((1, 784), 2.0, np.float32))
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    violation = caught.value.violations[0]
    assert violation.field == "images.tensor.data"
    assert violation.description == "got values from 2 to 2, wanted values from 0 to 1 (or UINT8)"
    assert str(caught.value) == f"{violation.field}: {violation.description}"


def test_a_server_error_can_be_pickled(client):
    """As in a pool of processes, which pickles what a worker raises."""
    with pytest.raises(InvalidArgument) as caught:
        client.encode([b"no picture"])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is InvalidArgument
    assert str(copy) == str(caught.value)
    assert copy.__dict__ == caught.value.__dict__
    assert (copy.code, copy.index) == (grpc.StatusCode.INVALID_ARGUMENT, 0)
    assert copy.violations[0].field == "images.encoded.files[0]"
    # Some pickle these as well, such as Dask.
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.sample(0), ValueError, "n: got 0"),
        (lambda c: c.sample(1, dtype="float64"), ValueError, "wanted 'float32' or 'uint8'"),
        (lambda c: c.sample(1, seed=-1), ValueError, "seed: got -1, wanted 0 to"),
        (lambda c: c.sample(1, seed=2**64), ValueError, "seed: got 18446744073709551616"),
        (lambda c: c.sample(1, offset=-1), ValueError, "offset: got -1, wanted 0 to"),
        (lambda c: c.sample(9, offset=2**64 - 8), ValueError, "offset: got 18446744073709551608"),
        (lambda c: c.encode(np.zeros((1, 784)), seed=-2), ValueError, "seed: got -2"),
        (lambda c: c.decode(np.zeros((2, 3), np.uint8)), TypeError, "uint8"),
        (lambda c: c.decode(np.zeros(3)), ValueError, r"shape \[3\]"),
        (lambda c: c.decode(np.zeros((2, 3), np.int32)), TypeError, "int32"),
        (lambda c: c.encode(np.zeros((0, 784))), ValueError, "no rows"),
    ],
)
def test_invalid_arguments_are_refused_before_a_call(client, call, error, message):
    with pytest.raises(error, match=message):
        call(client)


def test_an_unreachable_server_is_named():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{closed.getsockname()[1]}"
    retry = Retry(patience_seconds=1.0)
    with Client(target, retry=retry) as client, pytest.raises(Unavailable, match=target):
        client.info()


def test_a_call_beyond_its_timeout_fails_within_seconds(server):
    began = time.monotonic()
    with Client(server.target) as client, pytest.raises(DeadlineExceeded):
        client.sample(4096, timeout=0.005)
    assert time.monotonic() - began < 3


def test_returned_arrays_are_writable(small):
    with Client(small.target) as client:
        for rows in (1, 12):
            images = client.sample(rows, seed=1)
            images *= 2
            posterior = client.encode(images / 2)
            np.add(posterior.mean, 1, out=posterior.mean)


def test_max_rows_is_queried_again_after_a_restart_lowered_it(tmp_path):
    write_tiny(tmp_path / "models" / "tiny")
    with Server(tmp_path / "models", tmp_path / "log") as first:
        first.wait_until_serving()
        port = first.target.rpartition(":")[2]
        with Client(first.target) as client:
            wanted = client.sample(50, seed=1)
            first.stop()
            with Server(
                tmp_path / "models", tmp_path / "log2", "--port", port, "--max-rows", "10"
            ) as second:
                second.wait_until_serving()
                assert (client.sample(50, seed=1) == wanted).all()


@pytest.mark.parametrize(("failures", "calls"), [(2, 3), (9, 4)])
def test_unavailable_is_retried_a_few_times(failures, calls):
    flaky = Flaky(failures)
    with serving(flaky) as target, Client(target, retry=Retry(attempts=4)) as client:
        if failures < calls:
            assert client.info().version == "9"
        else:
            with pytest.raises(Unavailable, match="not yet"):
                client.info()
    assert flaky.calls == calls


def test_calls_cancelled_by_a_stopping_server_are_retried():
    flaky = Flaky(2, failure=Failure(grpc.StatusCode.CANCELLED))
    with serving(flaky) as target, Client(target) as client:
        assert client.info().version == "9"
    assert flaky.calls == 3


def test_large_requests_are_retried():
    model = pb.GetModelResponse(model=pb.ModelInfo(name="x", max_rows=10_000))
    with serving(Flaky(0, model)) as target, Client(target) as client:
        client.model()
        learnt = dict(client._limits.rows)
    tensor = codec.to_tensor(np.zeros((4000, 2), np.float32))
    flaky = Flaky(2, pb.EncodeResponse(mean=tensor, log_var=tensor))
    with serving(flaky) as target, Client(target) as client:
        client._limits.rows.update(learnt)
        assert client.encode(np.zeros((4000, 784), np.float32)).mean.shape == (4000, 2)
    assert flaky.calls == 3


def test_one_client_serves_several_threads(client):
    wanted = [client.sample(3, seed=seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda seed: client.sample(3, seed=seed), range(16)))
    assert all((a == b).all() for a, b in zip(got, wanted, strict=True))


def test_public_names_are_sorted_and_documented():
    assert latentserve.client.__all__ == sorted(latentserve.client.__all__)
    for name in latentserve.client.__all__:
        assert getattr(latentserve.client, name).__doc__


def test_both_clients_have_the_same_methods_and_docstrings():
    methods = {name for name in vars(Client) if not name.startswith("_")} - {"close"}
    assert methods == {name for name in vars(AsyncClient) if not name.startswith("_")} - {"aclose"}
    for name in methods:
        text = inspect.getdoc(getattr(Client, name))
        assert inspect.getdoc(getattr(AsyncClient, name)) == text
        parameters = inspect.signature(getattr(Client, name)).parameters
        others = inspect.signature(getattr(AsyncClient, name)).parameters
        assert [
            (parameter.name, parameter.kind, parameter.default) for parameter in others.values()
        ] == [
            (parameter.name, parameter.kind, parameter.default) for parameter in parameters.values()
        ]
        for parameter in parameters.values():
            stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
            assert parameter.name == "self" or f"    {stars}{parameter.name}: " in text


@pytest.mark.parametrize("public", [Client, AsyncClient])
def test_a_client_class_belongs_to_the_public_module(public):
    assert public.__module__ == "latentserve.client"
    assert pickle.loads(pickle.dumps(public)) is public


# ------------------------------------------------- every kind of model, untrained


def test_a_plain_autoencoder_encodes_without_variance_and_cannot_sample(kinds_client):
    images = np.random.default_rng(0).random((5, 8, 8), np.float32)
    posterior = kinds_client.encode(images, model="delta")
    assert posterior.mean.shape == (5, 2)
    assert posterior.log_var is None
    assert posterior.std is None
    assert posterior.z is None
    assert kinds_client.decode(posterior.mean, model="delta").shape == (5, 1, 8, 8)
    with pytest.raises(FailedPrecondition, match="draw: delta is a plain autoencoder"):
        kinds_client.encode(images, model="delta", draw=True)
    with pytest.raises(FailedPrecondition, match="it has no prior to sample from"):
        kinds_client.sample(1, model="delta")


def test_replies_of_which_only_some_have_a_log_var_are_a_protocol_error():
    tensor = codec.to_tensor(np.zeros((2, 3), np.float32))
    with_it, without = (
        pb.EncodeResponse(mean=tensor, log_var=tensor),
        pb.EncodeResponse(mean=tensor),
    )
    assert codec.joined_where_sent([without, without], "log_var") is None
    assert codec.joined_where_sent([with_it, with_it], "log_var").shape == (4, 3)
    for replies in ([with_it, without], [without, with_it]):
        with pytest.raises(ProtocolError):
            codec.joined_where_sent(replies, "log_var")


def test_samples_of_a_label_do_not_depend_on_how_a_job_is_split(kinds_client):
    whole = kinds_client.sample_with_latents(100, seed=7, label=2, model="gmm")
    parts = [kinds_client.sample(50, seed=7, offset=o, label=2, model="gmm") for o in (0, 50)]
    assert (np.concatenate(parts) == whole.images).all()
    assert (kinds_client.decode(whole.latents, model="gmm") == whole.images).all()
    assert (kinds_client.sample(100, seed=7, label=1, model="gmm") != whole.images).any()
    any_class = kinds_client.sample(100, seed=7, model="gmm")
    assert (kinds_client.sample(100, seed=7, label=-1, model="gmm") == any_class).all()


def test_an_unknown_label_is_refused(kinds_client):
    with pytest.raises(InvalidArgument, match="label: got 3, wanted -1 to 2"):
        kinds_client.sample(1, label=3, model="gmm")
    with pytest.raises(FailedPrecondition, match="the prior of iwae knows no classes"):
        kinds_client.sample(1, label=0, model="iwae")


def test_model_info_has_posterior_prior_labels_and_graphs(kinds_client):
    gmm = kinds_client.model("gmm")
    assert (gmm.posterior, gmm.prior, gmm.precision) == ("gaussian", "gmm", "fp32")
    assert gmm.labels == ("class 0", "class 1", "class 2")
    assert (
        list(gmm.devices) == list(gmm.checksums) == ["encoder", "decoder", "prior", "prior_density"]
    )
    delta = kinds_client.model("delta")
    assert (delta.posterior, delta.prior, delta.labels) == ("delta", "none", ())
    assert list(delta.devices) == ["encoder", "decoder"]


def test_latentserve_encode_writes_the_arrays_that_the_model_has(kinds_server, tmp_path, capsys):
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8), np.uint8))
    written = tmp_path / "points.npz"
    call = [
        "encode", str(tmp_path / "images.npy"), "-o", str(written), "--server", kinds_server.target
    ]  # fmt: skip
    assert main([*call, "--model", "delta"]) == 0
    assert capsys.readouterr().out == f"{written}: mean of 3 images\n"
    with np.load(written) as arrays:
        assert arrays.files == ["mean"]
    decode = ["decode", str(written), "-o", str(tmp_path / "x.npy"), "--model", "delta"]
    assert main([*decode, "--server", kinds_server.target]) == 0
    assert main([*call, "--model", "iwae", "--seed", "1"]) == 0
    with np.load(written) as arrays:
        assert arrays.files == ["mean", "log_var", "z"]


def test_latentserve_sample_by_label_draws_a_row_for_each_class(
    kinds_server, kinds_client, tmp_path, capsys
):
    call = ["sample", "--server", kinds_server.target, "--model", "gmm", "--seed", "7"]
    assert main([*call, "--by-label", "-n", "4", "-o", str(tmp_path / "all.npy")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'all.npy'}: 12 images, seed 7\n"
    images = np.load(tmp_path / "all.npy")
    for label in range(3):
        wanted = kinds_client.sample(4, seed=7, label=label, model="gmm")
        assert (images[4 * label : 4 * label + 4] == wanted).all()
        path = tmp_path / f"{label}.npy"
        assert main([*call, "-n", "4", "--label", str(label), "-o", str(path)]) == 0
        assert (np.load(path) == wanted).all()
    assert main([*call, "--by-label", "--zoom", "1", "-o", str(tmp_path / "all.png")]) == 0
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size == (10 * 10 + 2, 3 * 10 + 2)
    assert main([*call[:-2], "--by-label", "-o", str(tmp_path / "fresh.npy")]) == 0
    capsys.readouterr()
    call[call.index("gmm")] = "flow"
    assert main([*call, "--by-label"]) == 1
    assert "--by-label: the prior of flow knows no classes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*call, "--by-label", "--label", "1"])


def test_latentserve_info_shows_prior_labels_and_metrics(kinds_server, capsys):
    assert main(["info", "--server", kinds_server.target]) == 0
    said = capsys.readouterr().out
    assert "  latents    2, posterior delta (plain autoencoder), prior none (cannot be" in said
    assert "prior flow-gmm (flow over a mixture of Gaussians)" in said
    assert "  labels     0 class 0, 1 class 1, 2 class 2\n" in said
    assert "  labels     none\n" in said
    assert "encoder cpu, decoder cpu, prior cpu, prior_density cpu\n" in said
    assert "  decoder    fp32\n" in said
    assert "  test ELBO  " in said
    assert "  test reconstruction  " in said
    assert max(map(len, said.splitlines())) <= 110


def test_latentserve_info_formats_the_metrics_of_the_manifest():
    metrics = {
        "elbo": 90.5, "nll": 82.51, "nll_stderr": 0.26, "importance_draws": 1000.0, "fid": 0.437,
        "label_agreement": 0.9513,
    }  # fmt: skip
    assert list(_figures(metrics)) == [
        "test ELBO  90.50 nats (lower is better)",
        "test NLL   82.51 +- 0.26 nats (importance-weighted, K = 1000)",
        "samples    classifier-FID 0.44 (lower is better)",
        "by label   95.1% match the requested label",
    ]
    assert list(_figures({})) == []
