"""Plans of streams, carried out step by step without I/O."""

import grpc
import numpy as np
import pytest

from latentserve._client import codec, streams
from latentserve._client.describe import Limits
from latentserve._client.options import Retry
from latentserve._client.plans import (
    END,
    BackOff,
    Deliver,
    NextBatch,
    OpenStream,
    Receive,
    Send,
)
from latentserve._client.retries import Retries
from latentserve.errors import InvalidArgument, NotFound, ServerError, Unavailable
from latentserve.v1 import latent_service_pb2 as pb

RETRY = Retry(attempts=3, initial_seconds=0.1)


def decode_stream(window):
    """Plan of DecodeStream against a server of 1 latent dimension that accepts 2 rows a message."""
    limits = Limits(rows={("", 0): 2})
    return streams.decode_stream(
        limits, Retries(RETRY), dtype="float32", window=window, model="", version=0
    )


class Driver:
    """Carries out a plan.

    Args:
        plan: Plan of a stream.
        batches: Batches that `NextBatch` takes.
        failures: Outcome of each `Receive` in turn: an error, or None for a reply. Later ones
            get replies.
        version: Version that the server chooses for requests without one.

    Attributes:
        said: A phrase for each step of the plan; a chunk is named by its first latent.
        opened: Requests that streams were opened with.
        results: Results that the plan delivered.
        versions: Version of the model in each message that was sent.
    """

    def __init__(self, plan, batches=(), failures=(), version=0):
        self.said = []
        self.opened = []
        self.results = []
        self.versions = []
        self._version = version
        self._plan = plan
        self._batches = iter(batches)
        self._failures = iter(failures)
        self._sent = []

    def run(self):
        outcome = None
        while True:
            try:
                if isinstance(outcome, ServerError):
                    step = self._plan.throw(outcome)
                else:
                    step = self._plan.send(outcome)
            except StopIteration:
                return self
            outcome = self._outcome(step)

    def _outcome(self, step):
        match step:
            case OpenStream():
                self.said.append("open")
                self.opened.append(step.request)
                if step.request is not None:
                    self.versions.append(step.request.request.model.version)
                self._sent = []
            case Send():
                z = codec.to_array(step.request.request.latents)
                self.versions.append(step.request.request.model.version)
                self.said.append(f"send {z[0, 0]:g}")
                self._sent.append(z)
            case Receive():
                if error := next(self._failures, None):
                    self.said.append("fails")
                    return error
                self.said.append("receive")
                return self._reply()
            case NextBatch():
                return next(self._batches, END)
            case Deliver():
                self.results.append(step.result)
            case BackOff():
                self.said.append("back off")
        return None

    def _reply(self):
        if self.opened[-1] is None:
            images = {"tensor": codec.to_tensor(self._sent.pop(0))}
            response = pb.DecodeResponse(images=images, model=self._identity())
            return pb.DecodeStreamResponse(response=response)
        request = self.opened[-1]
        rows = codec.to_tensor(np.zeros((request.chunk_rows, 1), np.float32))
        reply = pb.SampleResponse(images={"tensor": rows}, latents=rows, model=self._identity())
        return pb.SampleStreamResponse(response=reply)

    def _identity(self):
        return pb.ModelIdentity(name="m", version=self.versions[-1] or self._version)


def latents(*values):
    return np.array(values, np.float32)[:, None]


def unavailable():
    return Unavailable("gone", grpc.StatusCode.UNAVAILABLE)


def test_batches_are_split_into_chunks_and_their_replies_joined():
    driver = Driver(decode_stream(9), [latents(0, 1, 2), latents(3), latents(4, 5)]).run()
    assert [images[:, 0].tolist() for images in driver.results] == [[0, 1, 2], [3], [4, 5]]
    assert driver.said == [
        "open", "send 0", "send 2", "send 3", "send 4", *4 * ["receive"],
    ]  # fmt: skip


def test_at_most_a_window_of_chunks_is_unanswered():
    driver = Driver(decode_stream(2), [latents(value) for value in range(4)]).run()
    assert driver.said == [
        "open", "send 0", "send 1", "receive", "send 2", "receive", "send 3", "receive", "receive",
    ]  # fmt: skip


def test_a_resumed_stream_resends_one_unanswered_chunk_until_it_gets_a_reply():
    driver = Driver(
        decode_stream(3),
        [latents(value) for value in range(5)],
        failures=[None, unavailable(), unavailable()],
    ).run()
    assert [images[0, 0] for images in driver.results] == [0, 1, 2, 3, 4]
    assert driver.said == [
        "open", "send 0", "send 1", "send 2", "receive", "send 3", "fails", "back off",
        "open", "send 1", "fails", "back off",
        "open", "send 1", "receive", "send 2", "send 3", "send 4", *3 * ["receive"],
    ]  # fmt: skip


def not_found():
    return NotFound("no such version", grpc.StatusCode.NOT_FOUND)


def test_a_resumed_stream_names_the_version_that_has_answered():
    batches = [latents(0), latents(1), latents(2)]
    driver = Driver(decode_stream(1), batches, [None, unavailable()], version=3).run()
    assert driver.versions == [0, 0, 3, 3]
    assert len(driver.results) == 3


def test_a_resumed_stream_whose_version_is_gone_goes_on_with_the_one_that_is_served():
    batches = [latents(0), latents(1), latents(2)]
    failures = [None, unavailable(), not_found()]
    driver = Driver(decode_stream(1), batches, failures, version=3).run()
    assert driver.versions == [0, 0, 3, 0, 0]
    assert len(driver.results) == 3
    with pytest.raises(NotFound):
        Driver(decode_stream(1), batches, [*failures, not_found()], version=3).run()


def test_a_version_that_the_caller_has_stated_is_never_changed():
    plan = streams.decode_stream(
        Limits(rows={("", 7): 2}), Retries(RETRY), dtype="float32", window=1, version=7
    )
    batches = [latents(0), latents(1)]
    driver = Driver(plan, batches, [None, unavailable()]).run()
    assert driver.versions == [7, 7, 7]
    plan = streams.decode_stream(
        Limits(rows={("", 7): 2}), Retries(RETRY), dtype="float32", window=1, version=7
    )
    with pytest.raises(NotFound):
        Driver(plan, batches, [None, unavailable(), not_found()]).run()


def test_a_resumed_sample_stream_names_the_version_that_has_answered():
    for failures, versions in (
        ([None, unavailable()], [0, 3]),
        ([None, unavailable(), not_found()], [0, 3, 0]),
    ):
        plan = streams.sample_stream(
            Limits(), Retries(RETRY), 6, dtype="float32", chunk_rows=2, seed=7, offset=10
        )
        driver = Driver(plan, failures=failures, version=3).run()
        assert driver.versions == versions
        assert sum(len(samples.images) for samples in driver.results) == 6


def test_a_reply_resets_the_number_of_attempts():
    one_by_one = [failure for _ in range(9) for failure in (unavailable(), None)]
    driver = Driver(decode_stream(1), [latents(value) for value in range(9)], one_by_one).run()
    assert len(driver.results) == 9


@pytest.mark.parametrize(
    ("failures", "error"),
    [
        ([unavailable(), unavailable(), unavailable()], Unavailable),
        ([InvalidArgument("latents", grpc.StatusCode.INVALID_ARGUMENT)], InvalidArgument),
    ],
)
def test_an_error_is_raised_when_not_retryable_or_out_of_attempts(failures, error):
    driver = Driver(decode_stream(2), [latents(0)], failures)
    with pytest.raises(error):
        driver.run()
    assert driver.said.count("open") == len(failures)


def test_a_sample_stream_resumes_after_the_last_chunk():
    plan = streams.sample_stream(
        Limits(), Retries(RETRY), 6, dtype="float32", chunk_rows=2, seed=7, offset=10
    )
    driver = Driver(plan, failures=[None, unavailable()]).run()
    assert [len(samples.images) for samples in driver.results] == [2, 2, 2]
    assert driver.said == [
        "open", "receive", "fails", "back off", "open", "receive", "receive", "receive",
    ]  # fmt: skip
    assert [(opened.request.offset, opened.request.count) for opened in driver.opened] == [
        (10, 6), (12, 4),
    ]  # fmt: skip
