"""Both clients with conditional models, over a real port: labels, streams, resume, joined calls."""

import asyncio
import io

import grpc
import numpy as np
import pytest
from PIL import Image

from latentserve._client import codec, restyling, streams
from latentserve._client.describe import Limits
from latentserve._client.options import Retry
from latentserve._client.retries import Retries
from latentserve.client import (
    AsyncClient,
    FailedPrecondition,
    InvalidArgument,
    Labelled,
    NotFound,
    Unavailable,
)
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from tests.client.test_stream_plans import Driver
from tests.support.clients import KINDS, awaited, connect
from tests.support.conditional import Conditional, write_conditional
from tests.support.processes import Server
from tests.support.tiny import write_tiny

ROWS = 20
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.random((ROWS, 1, 4, 4)).astype(np.float32)
LATENTS = GENERATOR.standard_normal((ROWS, 3)).astype(np.float32)
LABELS = np.arange(ROWS) % 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that accepts 7 rows per message, so that larger calls are split."""
    folder = tmp_path_factory.mktemp("conditional")
    write_conditional(folder / "models" / "letters", Conditional(percentiles=True))
    write_conditional(folder / "models" / "points", Conditional(posterior="delta"))
    write_tiny(folder / "models" / "plain")
    with Server(folder / "models", folder / "log", "--max-rows", "7") as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module", params=KINDS)
def client(request, server):
    with connect(request.param, server.target) as connected:
        yield connected


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def file_of(image):
    buffer = io.BytesIO()
    Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_conditional_model_is_described_as_one(client):
    assert client.model().conditional
    assert client.model().labels == ("a", "b", "c", "d")
    assert not client.model("plain").conditional


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, list, tuple])
def test_labels_stay_with_their_rows_across_messages(client, kind):
    labels = kind(LABELS.tolist()) if kind in (list, tuple) else LABELS.astype(kind)
    posterior = client.encode(IMAGES, labels=labels)
    images = client.decode(LATENTS, labels=labels)
    scores = client.score(IMAGES, labels=labels)
    for row in (0, 6, 7, 19):
        rows, label = slice(row, row + 1), int(LABELS[row])
        same(posterior.mean[rows], client.encode(IMAGES[rows], labels=label).mean)
        same(images[rows], client.decode(LATENTS[rows], labels=[label]))
        same(scores.elbo[rows], client.score(IMAGES[rows], labels=np.int64(label)).elbo)
    same(client.reconstruct(IMAGES, labels=labels), client.decode(posterior.mean, labels=labels))


def test_one_label_is_that_of_all_rows(client):
    for label in (2, np.uint8(2), [2], np.array(2)):
        same(client.decode(LATENTS, labels=label), client.decode(LATENTS, labels=[2] * ROWS))


def test_reconstruct_takes_target_labels(client):
    mean = client.encode(IMAGES, labels=LABELS).mean
    for targets in (1, LABELS[::-1]):
        made = client.reconstruct(IMAGES, labels=LABELS, target_labels=targets)
        same(made, client.decode(mean, labels=targets))


def test_restyle_shows_each_image_in_each_class(client):
    mean = client.encode(IMAGES, labels=LABELS).mean
    # Two images of three classes each fit into a message of seven rows.
    made = client.restyle(IMAGES, LABELS, [3, 0, 1])
    assert made.shape == (ROWS, 3, 1, 4, 4)
    for column, label in enumerate([3, 0, 1]):
        same(made[:, column], client.decode(mean, labels=label))
    drawn = client.encode(IMAGES, labels=LABELS, seed=7, offset=5).z
    made = client.restyle(IMAGES, LABELS, [2, 2], seed=7, offset=5, dtype="uint8")
    same(made[:, 0], client.decode(drawn, labels=2, dtype="uint8"))
    same(made[:, 0], made[:, 1])
    assert client.restyle(IMAGES[:1], 0, 3).shape == (1, 1, 1, 4, 4)
    files = [file_of(image) for image in IMAGES[:3]]
    grey = np.rint(IMAGES[:3] * 255).astype(np.uint8)
    same(client.restyle(files, LABELS[:3], [1, 2]), client.restyle(grey, LABELS[:3], [1, 2]))


def test_restyle_together_decodes_the_joined_posterior_in_each_class(client):
    # Three messages encode the images, two decode their posterior.
    posterior = client.encode(IMAGES, labels=LABELS)
    to = [3, 0, 1, 2, 2, 1, 0, 3]
    made = client.restyle(IMAGES, LABELS, to, together=True)
    assert made.shape == (8, 1, 4, 4)
    mean = np.repeat(posterior.joined().mean, 8, axis=0)
    same(made, client.decode(mean, labels=to))
    drawn = client.encode(IMAGES, labels=LABELS, seed=7, offset=5).joined()
    made = client.restyle(IMAGES, LABELS, 2, together=True, seed=7, offset=5, dtype="uint8")
    same(made, client.decode(drawn.z, labels=2, dtype="uint8"))
    assert not np.array_equal(drawn.z, drawn.mean)
    # One image alone is what it is without the others, and the order does not matter.
    alone = client.restyle(IMAGES[:1], 0, [1, 2], together=True)
    same(alone, client.restyle(IMAGES[:1], 0, [1, 2])[0])
    one, other = (
        client.restyle(IMAGES[order], LABELS[order], [1, 2], together=True)
        for order in (slice(None), slice(None, None, -1))
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    files = [file_of(image) for image in IMAGES[:3]]
    grey = np.rint(IMAGES[:3] * 255).astype(np.uint8)
    one, other = (client.restyle(each, 1, [1, 2], together=True) for each in (files, grey))
    same(one, other)


def test_what_cannot_be_restyled_together(client):
    with pytest.raises(FailedPrecondition, match="together: got True, but the model is a plain"):
        client.restyle(IMAGES, LABELS, [1], together=True, model="points")
    with pytest.raises(FailedPrecondition, match="plain is not conditional"):
        client.restyle(IMAGES, LABELS, [1], together=True, model="plain")
    with pytest.raises(NotFound):
        client.restyle(IMAGES, LABELS, [1], together=True, model="nothing")
    for labels, to, field in ((wrong(13), [1], "labels[13]"), (LABELS, wrong(13), "to[13]")):
        with pytest.raises(InvalidArgument) as caught:
            client.restyle(IMAGES, labels, to, together=True)
        assert caught.value.violations[0].field == field
        assert str(caught.value).startswith(f"{field}: got 9")


def test_together_is_encoded_and_decoded_by_one_version():
    """Versions 1, then 2 after a reload, where the second call of the first attempt fails."""
    calls = []

    def answer(step):
        calls.append((step.rpc, step.request.model.version))
        if step.rpc == "GetModel":
            return pb.GetModelResponse(model=pb.ModelInfo(max_rows=7, latent_shape=[1]))
        if step.rpc == "Encode":
            version = 1 if len(calls) < 4 else 2
            mean, log_var = (
                codec.to_tensor(np.full((2, 1), value, np.float32)) for value in (version, -20)
            )
            identity = pb.ModelIdentity(version=version)
            return pb.EncodeResponse(mean=mean, log_var=log_var, model=identity)
        if step.request.model.version == 1:
            raise NotFound("version 1", grpc.StatusCode.NOT_FOUND)
        return pb.DecodeResponse(images=tensor_pb2.Images(tensor=step.request.latents))

    def run(plan):
        try:
            step = next(plan)
            while True:
                try:
                    reply = answer(step)
                except NotFound as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as end:
            return end.value

    made = run(restyling.restyle(Limits(), IMAGES[:2], [0, 1], [2], together=True))
    assert calls[-4:] == [("Encode", 0), ("Decode", 1), ("Encode", 0), ("Decode", 2)]
    assert made.tolist() == [[2.0]]


def test_a_path_and_a_grid_take_labels(client):
    path = client.interpolate(IMAGES[0], IMAGES[1], 5, labels=[0, 1], target_labels=[0, 0, 1, 1, 1])
    same(path.images, client.decode(path.latents, labels=[0, 0, 1, 1, 1]))
    same(path.latents[:1], client.encode(IMAGES[:1], labels=0).mean)
    path = client.interpolate(LATENTS[0], LATENTS[1], 5, labels=3)
    same(path.images, client.decode(path.latents, labels=3))
    walk = client.traverse(
        [0, 1], steps=2, middle=IMAGES[0], labels=0, target_labels=[[0, 1], [2, 3]]
    )
    points = walk.latents.reshape(4, 3)
    same(walk.images.reshape(4, 1, 4, 4), client.decode(points, labels=[0, 1, 2, 3]))
    walk = client.traverse(2, steps=3, labels=1)
    same(walk.images[0], client.decode(walk.latents[0], labels=1))


def test_samples_have_their_labels(client):
    samples = client.sample_with_latents(ROWS, seed=7)
    assert samples.labels.dtype == np.int64
    assert samples.labels.shape == (ROWS,)
    assert len(set(samples.labels.tolist())) > 1
    same(client.decode(samples.latents, labels=samples.labels), samples.images)
    chunks = list(client.sample_stream(ROWS, seed=7, chunk_rows=3))
    same(np.concatenate([chunk.labels for chunk in chunks]), samples.labels)
    assert set(client.sample_with_latents(9, seed=7, label=2).labels.tolist()) == {2}
    assert client.sample_with_latents(3, seed=7, model="plain").labels is None


def test_streams_take_labelled_batches(client):
    cuts = [slice(0, 9), slice(9, 10), slice(10, 20)]
    batches = [Labelled(IMAGES[rows], LABELS[rows]) for rows in cuts]
    posteriors = list(client.encode_stream(batches, seed=7))
    whole = client.encode(IMAGES, labels=LABELS, seed=7)
    for name in ("mean", "log_var", "z"):
        same(np.concatenate([getattr(part, name) for part in posteriors]), getattr(whole, name))
    batches = [Labelled(LATENTS[rows], LABELS[rows]) for rows in cuts]
    same(np.concatenate(list(client.decode_stream(batches))), client.decode(LATENTS, labels=LABELS))
    # One label for all batches, but for those that have their own.
    batches = [LATENTS[:9], Labelled(LATENTS[9:], 3)]
    made = list(client.decode_stream(batches, labels=1))
    same(made[0], client.decode(LATENTS[:9], labels=1))
    same(made[1], client.decode(LATENTS[9:], labels=3))
    (posterior,) = client.encode_stream([IMAGES], labels=2)
    same(posterior.mean, client.encode(IMAGES, labels=2).mean)


def wrong(row, label=9):
    labels = LABELS.copy()
    labels[row] = label
    return labels


def test_a_label_out_of_range_is_counted_in_the_whole_call(client):
    for call, field in (
        (lambda: client.encode(IMAGES, labels=wrong(13)), "labels[13]"),
        (lambda: client.decode(LATENTS, labels=wrong(13)), "labels[13]"),
        (lambda: client.score(IMAGES, labels=wrong(19, -1)), "labels[19]"),
        (
            lambda: client.reconstruct(IMAGES, labels=0, target_labels=wrong(13)),
            "target_labels[13]",
        ),
        (lambda: list(client.decode_stream([Labelled(LATENTS, wrong(13))])), "labels[13]"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            call()
        assert caught.value.violations[0].field == field
        assert str(caught.value).startswith(f"{field}: got ")
        assert caught.value.index is None


def test_labels_where_there_should_be_none_and_the_other_way_round(client):
    for call in (client.encode, client.score, client.reconstruct):
        with pytest.raises(FailedPrecondition, match="labels: got none"):
            call(IMAGES)
        with pytest.raises(FailedPrecondition, match="plain is not conditional"):
            call(IMAGES, labels=0, model="plain")
    with pytest.raises(FailedPrecondition, match="plain is not conditional"):
        client.restyle(IMAGES, 0, [1, 2], model="plain")
    with pytest.raises(FailedPrecondition, match="target_labels: got none, but labels 0 and 1"):
        client.interpolate(IMAGES[0], IMAGES[1], 5, labels=[0, 1])


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ([0, 1], ValueError, "labels: got 2 labels, wanted one for each of 20 rows, or one for"),
        (LABELS.astype(float), TypeError, "labels: got dtype float64, wanted whole numbers"),
        (LABELS > 0, TypeError, "labels: got dtype bool, wanted whole numbers"),
        (True, TypeError, "labels: got dtype bool, wanted whole numbers"),
        (["a"] * ROWS, TypeError, "labels: got text, wanted an array of numbers"),
        (LABELS[None], ValueError, r"labels: got shape \[1, 20\], wanted \[N\]"),
        ([], ValueError, r"labels: got shape \[0\], wanted \[N\] with at least 1"),
        (2**31, ValueError, r"labels: got 2147483648, wanted -2\^31 to 2\^31 - 1"),
    ],
)
def test_labels_that_cannot_be_sent(client, labels, error, text):
    with pytest.raises(error, match=text):
        client.encode(IMAGES, labels=labels)


def test_labels_of_a_stream_are_one_or_those_of_its_batches(client):
    with pytest.raises(ValueError, match="wanted one for all batches, or batches of Labelled"):
        list(client.encode_stream([IMAGES], labels=LABELS))


def test_a_resumed_stream_sends_the_labels_of_unanswered_rows_again():
    sent = []

    class Recording(Driver):
        def _outcome(self, step):
            request = getattr(step, "request", None)
            if isinstance(request, pb.DecodeStreamRequest):
                sent.append(list(request.request.labels))
            return super()._outcome(step)

    plan = streams.decode_stream(
        Limits(rows={("", 0): 2}), Retries(Retry(attempts=3)), dtype="float32", window=2
    )
    z = np.arange(5, dtype=np.float32)[:, None]
    batches = [Labelled(z[:3], [5, 6, 7]), Labelled(z[3:], [8, 9])]
    gone = Unavailable("gone", grpc.StatusCode.UNAVAILABLE)
    driver = Recording(plan, batches, [None, gone]).run()
    assert [images[:, 0].tolist() for images in driver.results] == [[0, 1, 2], [3, 4]]
    assert sent == [[5, 6], [7], [8, 9], [7], [8, 9]]


def test_joined_calls_keep_the_labels_of_their_rows(server):
    async def scene():
        async with AsyncClient(server.target, coalesce=True) as client:
            posterior = await client.encode(IMAGES, labels=LABELS)
            restyled = await client.restyle(IMAGES, LABELS, [2])
            elbo = (await client.score(IMAGES, labels=LABELS)).elbo
            rows = [slice(row, row + 1) for row in range(ROWS)]
            parts = await asyncio.gather(
                *(client.encode(IMAGES[row], labels=int(LABELS[row.start])) for row in rows)
            )
            same(np.concatenate([part.mean for part in parts]), posterior.mean)
            parts = await asyncio.gather(
                *(client.decode(posterior.mean[row], labels=LABELS[row]) for row in rows)
            )
            same(np.concatenate(parts), await client.decode(posterior.mean, labels=LABELS))
            parts = await asyncio.gather(
                *(
                    client.reconstruct(IMAGES[row], labels=LABELS[row], target_labels=2)
                    for row in rows
                )
            )
            same(np.concatenate(parts), restyled[:, 0])
            parts = await asyncio.gather(
                *(client.score(IMAGES[row], labels=LABELS[row]) for row in rows)
            )
            same(np.concatenate([part.elbo for part in parts]), elbo)
            # Those without a label, or with a wrong one, fail alone.
            calls = [
                client.encode(IMAGES[:1], **labels)
                for labels in ({"labels": 0}, {}, {"labels": 9}, {"labels": 1}, {"labels": None})
            ]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(outcome).__name__ for outcome in outcomes] == [
                "Posterior", "FailedPrecondition", "InvalidArgument", "Posterior",
                "FailedPrecondition",
            ]  # fmt: skip
            assert outcomes[2].violations[0].field == "labels[0]"
            with pytest.raises(ValueError, match="labels: got 2 labels, wanted one for each of 3"):
                await client.encode(IMAGES[:3], labels=[0, 1])

    awaited(scene())
