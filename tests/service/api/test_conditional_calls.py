"""RPCs of conditional models over a real port: labels are a part of a row."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from bundle import open_bundle
from common import likelihood
from common.classes import draw_classes
from common.noise import Stream, standard_normal, uniform
from latentserve.v1 import latent_service_pb2 as pb
from service.engine.paths import linear, traverse
from service.models.onnx import Device, Graph
from tests.support.conditional import Conditional, write_conditional
from tests.support.processes import TRANSPORTS, Server
from tests.support.stubs import array, details, images, stub_of, tensor
from tests.support.tiny import write_tiny

WEIGHTS = (0.5, 0.25, 0.125, 0.125)
MODELS = {
    "letters": Conditional(),
    "mixture": Conditional(prior="gmm", percentiles=True),
    "point": Conditional(posterior="delta", likelihood="none"),
}
RNG = np.random.default_rng(3)
PIXELS = RNG.random((5, 1, 4, 4)).astype(np.float32)
Z = RNG.standard_normal((5, 3)).astype(np.float32)
LABELS = [3, 0, 1, 1, 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, kind in MODELS.items():
        write_conditional(root / name, kind)
    write_tiny(root / "plain")
    return root


@pytest.fixture(scope="module", params=TRANSPORTS)
def running(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "log"
    arguments = ("--transport", request.param, "--batch-window-seconds", "0.02", "--max-rows", "40")
    with Server(folder, log, *arguments) as server:
        yield server.wait_until_serving()


@pytest.fixture(scope="module")
def stub(running: Server) -> Iterator[Any]:
    with stub_of(running.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def graphs(folder: Path) -> dict[str, dict[str, Graph]]:
    return {
        name: {
            graph: Graph(content, Device("cpu"), threads=1)
            for graph, content in open_bundle(folder / name / "1").graphs.items()
        }
        for name in MODELS
    }


def int64(labels: Any) -> np.ndarray:
    return np.array(labels, np.int64)


def named(name: str) -> pb.ModelSelector:
    return pb.ModelSelector(name=name)


def same(message: Any, wanted: np.ndarray) -> None:
    got = array(message)
    assert got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


# ------------------------------------------------------------------------- good calls


def test_a_conditional_model_is_described_as_one(stub):
    model = stub.GetModel(pb.GetModelRequest(model=named("letters"))).model
    assert model.conditional
    assert list(model.labels) == ["a", "b", "c", "d"]
    assert not stub.GetModel(pb.GetModelRequest(model=named("plain"))).model.conditional


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("draw", [False, True])
def test_each_row_is_encoded_with_its_label(stub, graphs, dtype, draw):
    given = PIXELS if dtype == np.float32 else np.rint(PIXELS * 255).astype(np.uint8)
    pixels = PIXELS if dtype == np.float32 else given.astype(np.float32) / np.float32(255)
    wanted = graphs["letters"]["encoder"].run({"image": pixels, "label": int64(LABELS)})
    drawn = {"draw": True, "seed": 7} if draw else {}  # the long way, and the fast path
    reply = stub.Encode(
        pb.EncodeRequest(model=named("letters"), images=images(given), labels=LABELS, **drawn)
    )
    same(reply.mean, wanted["mean"])
    same(reply.log_var, wanted["log_var"])
    for row, label in enumerate(LABELS):
        alone = stub.Encode(
            pb.EncodeRequest(
                model=named("letters"), images=images(given[row : row + 1]), labels=[label]
            )
        )
        same(alone.mean, wanted["mean"][row : row + 1])
    for_all = stub.Encode(
        pb.EncodeRequest(model=named("letters"), images=images(given), labels=[2], **drawn)
    )
    wanted = graphs["letters"]["encoder"].run({"image": pixels, "label": int64([2] * 5)})
    same(for_all.mean, wanted["mean"])


def test_each_latent_is_decoded_with_its_label(stub, graphs):
    for name in ("letters", "point"):
        for labels in (LABELS, [3]):
            inputs = {"z": Z, "label": int64(np.broadcast_to(labels, 5))}
            wanted = graphs[name]["decoder"].run(inputs)["image"]
            fast = pb.DecodeRequest(model=named(name), latents=tensor(Z), labels=labels)
            same(stub.Decode(fast).images.tensor, wanted.clip(0, 1))
            raw = pb.DecodeRequest(
                model=named(name), latents=tensor(Z), labels=labels, unclipped=True
            )
            same(stub.Decode(raw).images.tensor, wanted)


def test_calls_with_different_labels_share_a_batch(stub, graphs):
    inputs = {"z": Z, "label": int64(LABELS)}
    wanted = graphs["letters"]["decoder"].run(inputs)["image"]

    def decode(row: int) -> Any:
        return stub.Decode(
            pb.DecodeRequest(
                model=named("letters"), latents=tensor(Z[row : row + 1]), labels=[LABELS[row]]
            )
        )

    for _ in range(20):
        with ThreadPoolExecutor(5) as pool:
            replies = list(pool.map(decode, range(5)))
        for row, reply in enumerate(replies):
            same(reply.images.tensor, wanted[row : row + 1])
        if any(reply.timing.batch_rows > 1 for reply in replies):
            return
    raise AssertionError("no batch was shared")


def test_a_request_of_many_rows_is_split_into_batches_with_their_labels(stub, graphs):
    z = np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32)
    labels = int64(np.arange(40) % 4)
    wanted = graphs["letters"]["decoder"].run({"z": z, "label": labels})["image"]
    reply = stub.Decode(
        pb.DecodeRequest(model=named("letters"), latents=tensor(z), labels=labels.tolist())
    )
    same(reply.images.tensor, wanted)


def test_an_image_is_reconstructed_in_its_class_or_in_target_classes(stub, graphs):
    encoder, decoder = (graphs["letters"][name] for name in ("encoder", "decoder"))
    mean = encoder.run({"image": PIXELS, "label": int64(LABELS)})["mean"]

    def reconstructed(**options: Any) -> Any:
        request = pb.ReconstructRequest(
            model=named("letters"), images=images(PIXELS), labels=LABELS, **options
        )
        return stub.Reconstruct(request).images.tensor

    for targets, used in (([], LABELS), ([1], [1] * 5), ([0, 1, 2, 3, 0], [0, 1, 2, 3, 0])):
        wanted = decoder.run({"z": mean, "label": int64(used)})["image"]
        same(reconstructed(target_labels=targets), wanted)
    targets = [0, 1, 2, 3] * 5
    z = mean.repeat(4, axis=0)
    wanted = decoder.run({"z": z, "label": int64(targets)})["image"]
    same(reconstructed(target_labels=targets), wanted)
    # All images of a row are decoded from one draw.
    drawn = array(
        stub.Encode(
            pb.EncodeRequest(
                model=named("letters"), images=images(PIXELS), labels=LABELS, draw=True, seed=7
            )
        ).z
    )
    wanted = decoder.run({"z": drawn.repeat(4, axis=0), "label": int64(targets)})["image"]
    same(reconstructed(target_labels=targets, draw=True, seed=7), wanted)


def test_a_path_is_decoded_in_one_class_or_in_target_classes(stub, graphs):
    encoder, decoder = (graphs["letters"][name] for name in ("encoder", "decoder"))
    ends = encoder.run({"image": PIXELS[:2], "label": int64([3, 0])})["mean"]
    path = linear(ends[0], ends[1], 4)
    for targets in ([1], [3, 3, 0, 0]):
        reply = stub.Interpolate(
            pb.InterpolateRequest(
                model=named("letters"), images=images(PIXELS[:2]), steps=4, labels=[3, 0],
                target_labels=targets, return_latents=True,
            )
        )  # fmt: skip
        same(reply.latents, path)
        inputs = {"z": path, "label": int64(np.broadcast_to(targets, 4))}
        same(reply.images.tensor, decoder.run(inputs)["image"])
    # Latents were encoded before: they need a class to be decoded with alone.
    path = linear(Z[0], Z[1], 4)
    wanted = decoder.run({"z": path, "label": int64([2] * 4)})["image"]
    for labels in ({"labels": [2]}, {"labels": [2, 2]}, {"target_labels": [2]}):
        request = pb.InterpolateRequest(
            model=named("letters"), latents=tensor(Z[:2]), steps=4, **labels
        )
        same(stub.Interpolate(request).images.tensor, wanted)


def test_a_grid_is_decoded_in_the_class_of_its_middle_or_in_target_classes(stub, graphs):
    encoder, decoder = (graphs["letters"][name] for name in ("encoder", "decoder"))
    middle = encoder.run({"image": PIXELS[:1], "label": int64([3])})["mean"][0]
    for kind, start in (("image", middle), ("latent", Z[0]), ("", np.zeros(3, np.float32))):
        grid, _, _ = traverse(start, np.ones(3, np.float32), (0, 1), 2, 3.0)
        given = {"image": {"image": images(PIXELS[:1])}, "latent": {"latent": tensor(Z[:1])}}
        for labels, used in (
            ({"labels": [3]}, [3] * 4),
            ({"labels": [3], "target_labels": [1]}, [1] * 4),
            ({"labels": [3], "target_labels": [0, 1, 2, 3]}, [0, 1, 2, 3]),
            ({"target_labels": [0, 1, 2, 3]}, [0, 1, 2, 3]),
        ):
            request = pb.TraverseRequest(
                model=named("letters"), steps=2, **given.get(kind, {}), **labels
            )
            if kind == "image" and "labels" not in labels:
                continue
            wanted = decoder.run({"z": grid, "label": int64(used)})["image"]
            same(stub.Traverse(request).images.tensor, wanted)


@pytest.mark.parametrize("name", ["letters", "mixture"])
def test_images_are_scored_given_their_labels(stub, graphs, name):
    labels = int64(LABELS)
    found = graphs[name]["encoder"].run({"image": PIXELS, "label": labels})
    mean, log_var = found["mean"], found["log_var"]

    def nll(z: np.ndarray) -> np.ndarray:
        logits = graphs[name]["decoder"].run({"z": z, "label": labels})["logits"]
        return likelihood.pixel_nll("bernoulli", logits, PIXELS)

    def log_prior(z: np.ndarray) -> np.ndarray:
        if name == "letters":
            return likelihood.gaussian_log_density(z)
        # Whose graph adds a thousand to each row with another label.
        inputs = {"z": z, "label": np.full(len(z), -1)}
        return graphs[name]["prior_density"].run(inputs)["log_prob"].astype(np.float64)

    reply = stub.Score(
        pb.ScoreRequest(
            model=named(name), images=images(PIXELS), labels=LABELS, draws=3, seed=7, offset=2
        )
    )
    np.testing.assert_allclose(array(reply.reconstruction), nll(mean), rtol=1e-5)
    density = likelihood.gaussian_log_density(mean, mean, log_var)
    kl = likelihood.standard_kl(mean, log_var) if name == "letters" else density - log_prior(mean)
    np.testing.assert_allclose(array(reply.kl), kl, rtol=1e-5)
    bound = likelihood.ImportanceBound(5)
    for draw in range(3):
        eps = standard_normal(7, 2, 5, 3, stream=Stream.SCORE, draw=draw)
        z = mean + np.exp(np.float32(0.5) * log_var) * eps
        log_posterior = likelihood.gaussian_log_density(z, mean, log_var)
        bound.add(log_prior(z) - nll(z) - log_posterior)
    np.testing.assert_allclose(array(reply.nll), bound.nll(), rtol=1e-4)
    assert reply.HasField("percentile") == (name == "mixture")


@pytest.mark.parametrize("name", ["letters", "mixture"])
@pytest.mark.parametrize("label", [None, -1, 0, 3])
def test_a_sample_without_a_label_draws_its_class_as_often_as_in_the_data(
    stub, graphs, name, label
):
    given = {} if label is None else {"label": label}
    request = pb.SampleRequest(
        model=named(name), count=40, seed=7, offset=5, return_latents=True, **given
    )
    reply = stub.Sample(request)
    u, labels = uniform(7, 5, 40), int64([label or 0] * 40)
    if label in (None, -1):
        labels, u = draw_classes(WEIGHTS, u)
        assert len(set(labels.tolist())) == 4
    z = standard_normal(7, 5, 40, 3)
    if name == "mixture":
        inputs = {"eps": z, "u": u, "label": np.full(40, -1)}
        z = graphs[name]["prior"].run(inputs)["z"]
    assert list(reply.labels) == labels.tolist()
    same(reply.latents, z)
    same(reply.images.tensor, graphs[name]["decoder"].run({"z": z, "label": labels})["image"])
    chunks = stub.SampleStream(pb.SampleStreamRequest(request=request, chunk_rows=7))
    replies = [chunk.response for chunk in chunks]
    assert [row for chunk in replies for row in chunk.labels] == labels.tolist()
    assert b"".join(chunk.images.tensor.data for chunk in replies) == reply.images.tensor.data


def test_streams_take_labels(stub, graphs):
    inputs = {"image": PIXELS, "label": int64(LABELS)}
    wanted = graphs["letters"]["encoder"].run(inputs)["mean"]
    requests = [
        pb.EncodeStreamRequest(
            request=pb.EncodeRequest(
                model=named("letters"),
                images=images(PIXELS[row : row + 2]),
                labels=LABELS[row : row + 2],
            )
        )
        for row in (0, 2, 4)
    ]
    replies = list(stub.EncodeStream(iter(requests)))
    mean = np.concatenate([array(reply.response.mean) for reply in replies])
    assert mean.tobytes() == wanted.tobytes()
    wanted = graphs["letters"]["decoder"].run({"z": Z, "label": int64([1] * 3 + [2] * 2)})["image"]
    requests = [
        pb.DecodeStreamRequest(
            request=pb.DecodeRequest(
                model=named("letters"), latents=tensor(Z[rows]), labels=[label]
            )
        )
        for rows, label in ((slice(0, 3), 1), (slice(3, 5), 2))
    ]
    replies = list(stub.DecodeStream(iter(requests)))
    made = np.concatenate([array(reply.response.images.tensor) for reply in replies])
    assert made.tobytes() == wanted.tobytes()


def test_a_sample_of_another_model_has_no_labels(stub):
    assert not stub.Sample(pb.SampleRequest(model=named("plain"), count=3)).labels


# ---------------------------------------------------------------------------- errors


def call(rpc: str, name: str, **options: Any) -> Any:
    """A request of 5 rows, 2 ends, or a grid of 4 points with an image in the middle."""
    model: Any = named(name)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "Encode": (pb.EncodeRequest, {"images": images(PIXELS)}),
        "Decode": (pb.DecodeRequest, {"latents": tensor(Z)}),
        "Reconstruct": (pb.ReconstructRequest, {"images": images(PIXELS)}),
        "Score": (pb.ScoreRequest, {"images": images(PIXELS)}),
        "Interpolate": (pb.InterpolateRequest, {"images": images(PIXELS[:2]), "steps": 4}),
        "Traverse": (pb.TraverseRequest, {"image": images(PIXELS[:1]), "steps": 2}),
    }
    kind, fields = kinds[rpc]
    return kind(model=model, **fields, **options)


RPCS = ["Encode", "Decode", "Reconstruct", "Score", "Interpolate", "Traverse"]
TARGETED = ["Reconstruct", "Interpolate", "Traverse"]


def refusal(stub: Any, rpc: str, request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, rpc)(request)
    return caught.value


@pytest.mark.parametrize("rpc", RPCS)
def test_labels_that_are_absent_where_they_are_needed(stub, rpc):
    error = refusal(stub, rpc, call(rpc, "letters"))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details().startswith("labels: got none, but letters is conditional on the class")


@pytest.mark.parametrize("rpc", RPCS)
def test_labels_that_are_given_where_there_are_none(stub, rpc):
    error = refusal(stub, rpc, call(rpc, "plain", labels=[0]))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "labels: got 1 label, but plain is not conditional on the class"


@pytest.mark.parametrize("rpc", TARGETED)
def test_target_labels_that_are_given_where_there_are_none(stub, rpc):
    request = call(rpc, "plain", target_labels=[0, 1])
    if rpc == "Interpolate":
        request.latents.CopyFrom(tensor(Z[:2]))
    elif rpc == "Traverse":
        request.ClearField("image")
    error = refusal(stub, rpc, request)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details().startswith("target_labels: got 2 labels, but plain is not conditional")


@pytest.mark.parametrize("rpc", RPCS)
def test_a_wrong_number_of_labels(stub, rpc):
    error = refusal(stub, rpc, call(rpc, "letters", labels=[0, 1, 2]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    wanted = {
        "Interpolate": "one for each of 2 ends, or one for all",
        "Traverse": "one",
    }.get(rpc, "one for each of 5 rows, or one for all")
    assert error.details() == f"labels: got 3 labels, wanted {wanted}"


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("label", [4, -1, 2**31 - 1])
def test_a_label_out_of_range_is_named(stub, rpc, label):
    labels = {"Interpolate": [0, label], "Traverse": [label]}.get(rpc, [0, 1, 2, label, label])
    field = {"Interpolate": "labels[1]", "Traverse": "labels[0]"}.get(rpc, "labels[3]")
    error = refusal(stub, rpc, call(rpc, "letters", labels=labels))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == f"{field}: got {label}, wanted 0 to 3"
    (violation,) = details(error, error_details_pb2.BadRequest).field_violations
    assert violation.field == field


@pytest.mark.parametrize(
    ("rpc", "targets", "text"),
    [
        ("Reconstruct", [0] * 7, "7 labels, wanted a multiple of 5, the number of images, or one"),
        ("Reconstruct", [0] * 45, "45 labels, wanted at most 40, the images of a reply"),
        ("Interpolate", [0, 1], "2 labels, wanted one for each of 4 images, or one for all"),
        ("Traverse", [0, 1], "2 labels, wanted one for each of 4 points, or one for all"),
    ],
)
def test_a_wrong_number_of_target_labels(stub, rpc, targets, text):
    error = refusal(stub, rpc, call(rpc, "letters", labels=[0], target_labels=targets))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(f"target_labels: got {text}")


@pytest.mark.parametrize("rpc", TARGETED)
def test_a_target_label_out_of_range_is_named(stub, rpc):
    targets = [0, 1, 9, 2] if rpc != "Reconstruct" else [0] * 7 + [9, 0, 0]
    request = call(rpc, "letters", labels=[0], target_labels=targets)
    error = refusal(stub, rpc, request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    field = "target_labels[7]" if rpc == "Reconstruct" else "target_labels[2]"
    assert error.details() == f"{field}: got 9, wanted 0 to 3"


def test_two_classes_without_a_target_have_no_path_between_them(stub):
    for ends in ({"images": images(PIXELS[:2])}, {"latents": tensor(Z[:2])}):
        request = pb.InterpolateRequest(model=named("letters"), steps=4, labels=[1, 2], **ends)
        error = refusal(stub, "Interpolate", request)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert error.details().startswith("target_labels: got none, but labels 1 and 2")


def test_an_error_of_labels_ends_a_stream_with_its_status(stub):
    message = pb.EncodeStreamRequest(request=call("Encode", "letters", labels=[0, 1]))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.EncodeStream(iter([message])))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    message = pb.DecodeStreamRequest(request=call("Decode", "letters"))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.DecodeStream(iter([message])))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
