"""Unary RPCs of a real server through a raw stub: valid calls, and errors with their details."""

import math
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import open_bundle
from common.noise import Stream, standard_normal, uniform
from latentserve._client import codec
from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc, tensor_pb2
from service.models.onnx import Device, Graph
from tests.support.processes import Server

FLOAT32, FLOAT16, UINT8 = (
    tensor_pb2.DATA_TYPE_FLOAT32,
    tensor_pb2.DATA_TYPE_FLOAT16,
    tensor_pb2.DATA_TYPE_UINT8,
)
DIM = 32


@pytest.fixture(scope="module")
def server(each_server: Server) -> Server:
    return each_server


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[latent_service_pb2_grpc.LatentServiceStub]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        yield latent_service_pb2_grpc.LatentServiceStub(channel)


@pytest.fixture(scope="module")
def graphs(models):
    bundle = open_bundle(models / "mnist" / "1")
    return {name: Graph(raw, Device("cpu")) for name, raw in bundle.graphs.items()}


@pytest.fixture(scope="module")
def digits(models):
    return open_bundle(models / "mnist" / "1").golden["encoder.image"]


def images(array) -> tensor_pb2.Images:
    return tensor_pb2.Images(tensor=codec.to_tensor(array))


def raw_images(dtype, shape, data) -> tensor_pb2.Images:
    return tensor_pb2.Images(tensor=tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data))


def bits(tensor) -> bytes:
    return tensor.data


# ------------------------------------------------------------------ good calls


def test_encode_returns_the_output_of_the_encoder_graph(stub, graphs, digits):
    reply = stub.Encode(pb.EncodeRequest(images=images(digits)))
    wanted = graphs["encoder"].run({"image": digits})
    assert bits(reply.mean) == wanted["mean"].tobytes()
    assert bits(reply.log_var) == wanted["log_var"].tobytes()
    assert list(reply.mean.shape) == [len(digits), DIM]
    assert not reply.HasField("z")
    assert not reply.HasField("seed")
    assert (reply.model.name, reply.model.version) == ("mnist", 1)
    assert reply.timing.compute_seconds > 0
    assert reply.timing.total_seconds >= reply.timing.compute_seconds
    assert reply.timing.batch_rows == len(digits)


@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (784,)])
def test_encode_takes_every_accepted_shape_and_dtype(stub, graphs, digits, shape):
    grey = np.rint(digits * 255).astype(np.uint8)
    wanted = graphs["encoder"].run({"image": grey.astype(np.float32) / np.float32(255)})["mean"]
    reply = stub.Encode(pb.EncodeRequest(images=images(grey.reshape(-1, *shape))))
    assert bits(reply.mean) == wanted.tobytes()
    half = digits.astype(np.float16).reshape(-1, *shape)
    wanted = graphs["encoder"].run({"image": half.astype(np.float32).reshape(digits.shape)})["mean"]
    assert bits(stub.Encode(pb.EncodeRequest(images=images(half))).mean) == wanted.tobytes()


def test_encode_draws_z_with_the_seeded_noise(stub, digits):
    request = pb.EncodeRequest(images=images(digits), draw=True, seed=11, offset=5)
    reply = stub.Encode(request)
    mean, log_var = (codec.to_array(tensor) for tensor in (reply.mean, reply.log_var))
    eps = standard_normal(11, 5, len(digits), DIM, stream=Stream.POSTERIOR)
    np.testing.assert_allclose(codec.to_array(reply.z), mean + np.exp(log_var / 2) * eps, atol=1e-6)
    assert reply.seed == 11
    tail = stub.Encode(pb.EncodeRequest(images=images(digits[3:]), draw=True, seed=11, offset=8))
    assert bits(tail.z) == codec.to_array(reply.z)[3:].tobytes()


def test_a_draw_without_a_seed_is_fresh_and_returns_its_seed(stub, digits):
    first, second = (stub.Encode(pb.EncodeRequest(images=images(digits), draw=True)) for _ in "ab")
    assert bits(first.z) != bits(second.z)
    again = stub.Encode(pb.EncodeRequest(images=images(digits), draw=True, seed=first.seed))
    assert bits(again.z) == bits(first.z)


def test_decode_returns_the_output_of_the_decoder_graph_in_every_format(stub, graphs):
    z = standard_normal(0, 0, 9, DIM)
    wanted = graphs["decoder"].run({"z": z})["image"]
    for image_format in (pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_FLOAT32):
        reply = stub.Decode(pb.DecodeRequest(latents=codec.to_tensor(z), format=image_format))
        assert bits(reply.images.tensor) == wanted.tobytes()
        assert list(reply.images.tensor.shape) == [9, 1, 28, 28]
    request = pb.DecodeRequest(latents=codec.to_tensor(z), format=pb.IMAGE_FORMAT_UINT8)
    reply = stub.Decode(request)
    assert bits(reply.images.tensor) == np.rint(wanted * np.float32(255)).astype("u1").tobytes()


def test_sample_decodes_the_seeded_noise(stub, graphs):
    reply = stub.Sample(pb.SampleRequest(count=6, seed=3, offset=2, return_latents=True))
    z = standard_normal(3, 2, 6, DIM)
    assert bits(reply.latents) == z.tobytes()
    assert bits(reply.images.tensor) == graphs["decoder"].run({"z": z})["image"].tobytes()
    assert (reply.seed, reply.offset) == (3, 2)


def test_sample_returns_latents_only_on_request(stub):
    assert not stub.Sample(pb.SampleRequest(count=1)).HasField("latents")


def test_seed_zero_is_a_seed_and_an_absent_one_is_fresh(stub):
    zero = [bits(stub.Sample(pb.SampleRequest(count=1, seed=0)).images.tensor) for _ in "ab"]
    assert zero[0] == zero[1]
    fresh = [stub.Sample(pb.SampleRequest(count=1)) for _ in "ab"]
    assert fresh[0].seed != fresh[1].seed
    again = stub.Sample(pb.SampleRequest(count=1, seed=fresh[0].seed))
    assert bits(again.images.tensor) == bits(fresh[0].images.tensor)


def test_temperature_and_truncation_shape_the_latents(stub):
    def latents(**fields):
        request = pb.SampleRequest(count=20, seed=1, return_latents=True, **fields)
        return codec.to_array(stub.Sample(request).latents)

    free = latents()
    assert (latents(temperature=0.5) == free * np.float32(0.5)).all()
    assert (latents(temperature=0.0) == 0).all()
    assert (latents(label=-1) == free).all()
    bounded = latents(truncation=0.75)
    assert np.abs(bounded).max() <= 0.75
    assert (latents(truncation=0.75, temperature=2.0) == bounded * 2).all()


def test_samples_are_equal_in_two_halves_and_on_a_second_server(stub, models, tmp_path):
    whole = bits(stub.Sample(pb.SampleRequest(seed=7, count=100)).images.tensor)
    halves = [
        bits(stub.Sample(pb.SampleRequest(seed=7, count=50, offset=start)).images.tensor)
        for start in (0, 50)
    ]
    assert b"".join(halves) == whole
    with Server(models, tmp_path / "log", "--threads", "1") as second:
        second.wait_until_serving()
        with grpc.insecure_channel(second.target) as channel:
            other = latent_service_pb2_grpc.LatentServiceStub(channel)
            request = pb.SampleRequest(seed=7, count=50, offset=50)
            assert bits(other.Sample(request).images.tensor) == halves[1]


@settings(max_examples=25)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_samples_do_not_depend_on_how_a_job_is_split(stub, seed, sizes):
    total, offset, parts = sum(sizes), 0, []
    for size in sizes:
        request = pb.SampleRequest(seed=seed, count=size, offset=offset)
        parts.append(bits(stub.Sample(request).images.tensor))
        offset += size
    whole = stub.Sample(pb.SampleRequest(seed=seed, count=total))
    assert b"".join(parts) == bits(whole.images.tensor)


def test_server_and_model_info_agree_with_the_manifest(stub, models):
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.default_model == "mnist"
    assert info.limits.max_rows == 4096
    assert info.limits.max_message_bytes == 64 * 2**20
    assert [model.name for model in info.models] == ["mnist"]
    listed = stub.ListModels(pb.ListModelsRequest()).models
    assert list(listed) == list(info.models)
    model = stub.GetModel(pb.GetModelRequest()).model
    assert model == listed[0]
    manifest = open_bundle(models / "mnist" / "1").manifest
    assert (model.image_shape.channels, model.image_shape.height) == (1, 28)
    assert model.latent_dim == DIM
    assert model.max_rows == 4096
    assert model.metrics["elbo"] == manifest.metrics["elbo"]
    assert [graph.device for graph in model.graphs] == ["cpu", "cpu"]
    assert (model.posterior, model.prior, model.precision) == ("gaussian", "standard", "fp32")
    assert model.graphs[0].sha256 == manifest.graphs["encoder"].sha256
    assert model.created_at.ToDatetime() == manifest.created_at.replace(tzinfo=None)
    assert model.noise == manifest.noise


# ------------------------------------------------------------------- bad calls

GOOD = np.zeros((2, 1, 28, 28), np.float32)
NAN, ABOVE, BELOW = (np.full((1, 784), value, np.float32) for value in (np.nan, 1.5, -0.1))
LATENT = codec.to_tensor(np.zeros((1, DIM), np.float32))

BAD = {
    "no images": ("Encode", pb.EncodeRequest(), "images"),
    "no shape": (
        "Encode",
        pb.EncodeRequest(images=raw_images(FLOAT32, [], b"")),
        "images.tensor.shape",
    ),
    "wrong height": (
        "Encode",
        pb.EncodeRequest(images=images(np.zeros((2, 1, 27, 28), np.float32))),
        "images.tensor.shape",
    ),
    "three channels": (
        "Encode",
        pb.EncodeRequest(images=images(np.zeros((2, 3, 28, 28), np.float32))),
        "images.tensor.shape",
    ),
    "no rows": (
        "Encode",
        pb.EncodeRequest(images=raw_images(FLOAT32, [0, 784], b"")),
        "images.tensor.shape",
    ),
    "negative rows": (
        "Encode",
        pb.EncodeRequest(images=raw_images(FLOAT32, [-1, 784], b"")),
        "images.tensor.shape",
    ),
    "too many rows": (
        "Encode",
        pb.EncodeRequest(images=images(np.zeros((4097, 784), np.uint8))),
        "images.tensor.shape",
    ),
    "no dtype": (
        "Encode",
        pb.EncodeRequest(images=raw_images(0, [1, 784], b"0" * 784)),
        "images.tensor.dtype",
    ),
    "unknown dtype": (
        "Encode",
        pb.EncodeRequest(images=raw_images(77, [1, 784], b"0" * 784)),
        "images.tensor.dtype",
    ),
    "too few bytes": (
        "Encode",
        pb.EncodeRequest(images=raw_images(FLOAT32, [1, 784], b"0" * 3135)),
        "images.tensor.data",
    ),
    "too many bytes": (
        "Encode",
        pb.EncodeRequest(images=raw_images(UINT8, [1, 784], b"0" * 785)),
        "images.tensor.data",
    ),
    "NaN pixel": ("Encode", pb.EncodeRequest(images=images(NAN)), "images.tensor.data"),
    "pixel above 1": ("Encode", pb.EncodeRequest(images=images(ABOVE)), "images.tensor.data"),
    "pixel below 0": ("Encode", pb.EncodeRequest(images=images(BELOW)), "images.tensor.data"),
    "half NaN": (
        "Encode",
        pb.EncodeRequest(images=images(NAN.astype(np.float16))),
        "images.tensor.data",
    ),
    "encode offset": (
        "Encode",
        pb.EncodeRequest(images=images(GOOD), draw=True, seed=1, offset=2**64 - 1),
        "offset",
    ),
    "no latents": ("Decode", pb.DecodeRequest(), "latents.shape"),
    "huge latent": (
        "Decode",
        pb.DecodeRequest(latents=codec.to_tensor(np.full((1, DIM), 1e7, np.float32))),
        "latents.data",
    ),
    "temperature above the limit": (
        "Sample",
        pb.SampleRequest(count=1, temperature=3e38),
        "temperature",
    ),
    "uint8 latents": (
        "Decode",
        pb.DecodeRequest(latents=codec.to_tensor(np.zeros((1, DIM), np.uint8))),
        "latents.dtype",
    ),
    "wrong dim": (
        "Decode",
        pb.DecodeRequest(latents=codec.to_tensor(np.zeros((1, DIM + 1), np.float32))),
        "latents.shape",
    ),
    "one axis": (
        "Decode",
        pb.DecodeRequest(latents=codec.to_tensor(np.zeros(DIM, np.float32))),
        "latents.shape",
    ),
    "infinite latent": (
        "Decode",
        pb.DecodeRequest(latents=codec.to_tensor(np.full((1, DIM), np.inf, np.float32))),
        "latents.data",
    ),
    "NaN latent": (
        "Decode",
        pb.DecodeRequest(latents=codec.to_tensor(np.full((1, DIM), np.nan, np.float32))),
        "latents.data",
    ),
    "unknown format": ("Decode", pb.DecodeRequest(latents=LATENT, format=9), "format"),
    "count 0": ("Sample", pb.SampleRequest(), "count"),
    "count below 0": ("Sample", pb.SampleRequest(count=-5), "count"),
    "count above limit": ("Sample", pb.SampleRequest(count=4097), "count"),
    "huge count": ("Sample", pb.SampleRequest(count=2**63 - 1), "count"),
    "offset past the end": ("Sample", pb.SampleRequest(count=2, offset=2**64 - 1), "offset"),
    "temperature below 0": ("Sample", pb.SampleRequest(count=1, temperature=-1), "temperature"),
    "NaN temperature": ("Sample", pb.SampleRequest(count=1, temperature=math.nan), "temperature"),
    "truncation 0": ("Sample", pb.SampleRequest(count=1, truncation=0), "truncation"),
    "infinite truncation": (
        "Sample",
        pb.SampleRequest(count=1, truncation=math.inf),
        "truncation",
    ),
    "sample format": ("Sample", pb.SampleRequest(count=1, format=-1), "format"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_the_field_got_and_wanted_and_the_server_stays_up(stub, case):
    rpc, request, field = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, rpc)(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field
    assert "got " in violation.description
    assert ", wanted " in violation.description
    assert caught.value.details() == f"{field}: {violation.description}"
    assert details(caught.value, error_details_pb2.ErrorInfo).reason == "INVALID_ARGUMENT"
    answers(stub)


@pytest.mark.parametrize("rpc", ["Encode", "Decode", "Sample", "GetModel"])
@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (pb.ModelSelector(name="nope"), "model.name: got 'nope', wanted one of mnist"),
        (pb.ModelSelector(name="mnist", version=2), "model.version: got 2, wanted 1"),
        (pb.ModelSelector(version=-1), "model.version: got -1, wanted 1"),
    ],
)
def test_an_unknown_model_or_version_is_not_found(stub, rpc, selector, text):
    requests = {
        "Encode": pb.EncodeRequest(model=selector, images=images(GOOD)),
        "Decode": pb.DecodeRequest(model=selector, latents=LATENT),
        "Sample": pb.SampleRequest(model=selector, count=1),
        "GetModel": pb.GetModelRequest(model=selector),
    }
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, rpc)(requests[rpc])
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert text in caught.value.details()
    assert details(caught.value, error_details_pb2.ErrorInfo).reason == "MODEL_NOT_FOUND"
    answers(stub)


def test_a_label_for_a_prior_without_classes_is_a_failed_precondition(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Sample(pb.SampleRequest(count=1, label=0))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "mnist" in caught.value.details()
    assert details(caught.value, error_details_pb2.ErrorInfo).reason == "NOT_FOR_THIS_MODEL"
    answers(stub)


def test_a_message_above_the_limit_is_refused_and_the_server_stays_up(stub):
    big = raw_images(UINT8, [1, 784], b"0" * (65 * 2**20))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(images=big))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    answers(stub)


def test_a_malformed_request_is_an_invalid_argument_and_the_server_stays_up(server, stub):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/latentserve.v1.LatentService/Encode")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff" * 100)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "request: got 100 bytes, wanted the message EncodeRequest"
    answers(stub)


def test_the_text_of_an_error_is_bounded(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Sample(pb.SampleRequest(model=pb.ModelSelector(name="x" * 100_000), count=1))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert len(caught.value.details()) < 400
    with pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(images=raw_images(FLOAT32, [1] * 50_000, b"")))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_rpc_is_unimplemented(server):
    with grpc.insecure_channel(server.target) as channel:
        call = channel.unary_unary("/latentserve.v1.LatentService/Dream")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def details(error, kind):
    status = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    assert status.code == error.code().value[0]
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")


def answers(stub) -> None:
    reply = stub.Sample(pb.SampleRequest(count=2, seed=7))
    assert list(reply.images.tensor.shape) == [2, 1, 28, 28]


def test_the_fixture_server_is_the_trained_one(client: Client):
    assert client.model().metrics["elbo"] < 200


# ------------------------------------------------- every kind of model, untrained

SAMPLED = [
    "gmm", "flow", "flow-gmm", "iwae", "delta-gmm", "rgb", "gaussian", "logistic", "mixture"
]  # fmt: skip
LABELLED = {"gmm": 3, "flow-gmm": 10, "delta-gmm": 3, "logistic": 3}


@pytest.fixture(scope="module")
def kinds_stub(kinds_server: Server) -> Iterator[latent_service_pb2_grpc.LatentServiceStub]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(kinds_server.target, options=options) as channel:
        yield latent_service_pb2_grpc.LatentServiceStub(channel)


@pytest.fixture(scope="module")
def kinds_graphs(kinds):
    bundles = {path.name: open_bundle(path / "1") for path in (kinds / "models").iterdir()}
    return {
        name: {graph: Graph(raw, Device("cpu")) for graph, raw in bundle.graphs.items()}
        for name, bundle in bundles.items()
    }


def sampled(stub, name: str, count: int, seed: int = 7, **fields):
    """The latents and images of a Sample call, as bytes."""
    request = pb.SampleRequest(
        model=pb.ModelSelector(name=name), count=count, seed=seed, return_latents=True, **fields
    )
    reply = stub.Sample(request)
    assert reply.seed == seed
    return bits(reply.latents), bits(reply.images.tensor)


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"truncation": 0.75}, {"temperature": 0.0}, {"offset": 99}]
)
def test_sample_is_the_decoder_graph_on_the_prior_graph(kinds_stub, kinds_graphs, name, fields):
    graphs = kinds_graphs[name]
    dim = kinds_stub.GetModel(
        pb.GetModelRequest(model=pb.ModelSelector(name=name))
    ).model.latent_dim
    offset, temperature = fields.get("offset", 0), np.float32(fields.get("temperature", 1))
    for label in (None, -1, *range(LABELLED.get(name, 0))):
        eps = standard_normal(7, offset, 70, dim, truncation=fields.get("truncation")) * temperature
        z = eps
        if "prior" in graphs:
            labels = np.full(70, -1 if label is None else label, np.int64)
            z = graphs["prior"].run({"eps": eps, "u": uniform(7, offset, 70), "label": labels})["z"]
        images = graphs["decoder"].run({"z": z})["image"]
        given = fields | ({} if label is None else {"label": label})
        assert sampled(kinds_stub, name, 70, **given) == (z.tobytes(), images.tobytes())


@settings(max_examples=25)
@given(
    st.sampled_from(SAMPLED),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.data(),
)
def test_samples_of_any_prior_and_label_do_not_depend_on_how_a_job_is_split(
    kinds_stub, name, seed, sizes, data
):
    label = data.draw(st.integers(-1, LABELLED.get(name, 0) - 1))
    start = data.draw(st.integers(0, 2**64 - sum(sizes)))
    parts, offset = [], start
    for size in sizes:
        parts.append(sampled(kinds_stub, name, size, seed, offset=offset, label=label))
        offset += size
    whole = sampled(kinds_stub, name, sum(sizes), seed, offset=start, label=label)
    assert (b"".join(z for z, _ in parts), b"".join(image for _, image in parts)) == whole


@pytest.mark.parametrize("name", LABELLED)
def test_label_minus_one_is_no_label_and_samples_differ_by_label(kinds_stub, name):
    drawn = [sampled(kinds_stub, name, 40, label=label)[0] for label in range(LABELLED[name])]
    assert len(set(drawn)) == LABELLED[name]
    assert sampled(kinds_stub, name, 40, label=-1) == sampled(kinds_stub, name, 40)
    assert sampled(kinds_stub, name, 40)[0] not in drawn


def test_a_plain_autoencoder_encodes_to_a_point(kinds_stub, kinds_graphs):
    pixels = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    for name in ("delta", "delta-gmm"):
        request = pb.EncodeRequest(model=pb.ModelSelector(name=name), images=images(pixels))
        reply = kinds_stub.Encode(request)
        assert (
            bits(reply.mean)
            == kinds_graphs[name]["encoder"].run({"image": pixels})["mean"].tobytes()
        )
        assert not reply.HasField("log_var")
        assert not reply.HasField("z")
        decoded = kinds_stub.Decode(
            pb.DecodeRequest(model=pb.ModelSelector(name=name), latents=reply.mean)
        )
        assert list(decoded.images.tensor.shape) == [5, 1, 8, 8]


ONE = images(np.zeros((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("rpc", "name", "fields", "said"),
    [
        ("Sample", "delta", {"count": 1}, "delta is a plain autoencoder; it has no prior"),
        ("Sample", "delta", {"count": 1, "label": 0}, "the prior of delta knows no classes"),
        (
            "Sample",
            "flow",
            {"count": 1, "label": 0},
            "label: got 0, but the prior of flow knows no",
        ),
        (
            "Sample",
            "iwae",
            {"count": 1, "label": 2},
            "label: got 2, but the prior of iwae knows no",
        ),
        ("Encode", "delta", {"images": ONE, "draw": True}, "draw: delta is a plain autoencoder"),
        ("Encode", "delta-gmm", {"images": ONE, "draw": True, "seed": 1}, "no posterior to draw"),
    ],
)
def test_an_operation_the_model_lacks_is_a_failed_precondition(kinds_stub, rpc, name, fields, said):
    requests = {"Sample": pb.SampleRequest, "Encode": pb.EncodeRequest}
    with pytest.raises(grpc.RpcError) as caught:
        getattr(kinds_stub, rpc)(requests[rpc](model=pb.ModelSelector(name=name), **fields))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert said in caught.value.details()
    assert details(caught.value, error_details_pb2.ErrorInfo).reason == "NOT_FOR_THIS_MODEL"


@pytest.mark.parametrize("label", [3, -2, 2**31 - 1, -(2**31)])
def test_a_label_out_of_range_is_an_invalid_argument(kinds_stub, label):
    selector = pb.ModelSelector(name="gmm")
    with pytest.raises(grpc.RpcError) as caught:
        kinds_stub.Sample(pb.SampleRequest(model=selector, count=1, label=label))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"label: got {label}, wanted -1 to 2"


def test_list_models_describes_models_of_every_kind(kinds_stub):
    models = {model.name: model for model in kinds_stub.ListModels(pb.ListModelsRequest()).models}
    kinds = {name: (model.posterior, model.prior) for name, model in models.items()}
    assert kinds == {
        "conditional": ("gaussian", "gmm"),
        "cvae": ("gaussian", "standard"),
        "delta": ("delta", "none"),
        "delta-gmm": ("delta", "flow-gmm"),
        "flow": ("gaussian", "flow"),
        "flow-gmm": ("gaussian", "flow-gmm"),
        "gaussian": ("gaussian", "standard"),
        "gmm": ("gaussian", "gmm"),
        "iwae": ("gaussian", "standard"),
        "logistic": ("gaussian", "gmm"),
        "mixture": ("gaussian", "standard"),
        "rgb": ("gaussian", "standard"),
    }
    for name, model in models.items():
        graphs = [graph.name for graph in model.graphs]
        learned = ["prior", "prior_density"] if "prior" in graphs else []
        assert graphs == ["encoder", "decoder", *learned]
        assert bool(learned) == (model.prior not in ("standard", "none"))
        assert [graph.device for graph in model.graphs] == ["cpu"] * len(graphs)
        classes = {**LABELLED, "conditional": 3, "cvae": 3}.get(name, 0)
        assert list(model.labels) == [f"class {index}" for index in range(classes)]
        assert model.precision == "fp32"
        assert ("elbo" in model.metrics) == (model.posterior == "gaussian")
        assert model.metrics["reconstruction"] > 0
