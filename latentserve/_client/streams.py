"""What goes into a stream and what comes out of it, whoever carries it."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import grpc
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec, requests
from latentserve._client.codec import ArrayFormat, Images
from latentserve._client.options import Retry
from latentserve._client.values import Posterior
from latentserve.errors import ResourceExhausted, ServerError, Unavailable
from latentserve.v1 import latent_service_pb2 as pb

Batch = TypeVar("Batch", contravariant=True)
Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True)
class Message:
    """A message of a stream.

    Attributes:
        request: What is sent.
        last: Whether it is the last one of its batch.
    """

    request: Any
    last: bool


class Talk(Protocol[Batch, Result]):
    """How batches become messages, and replies results."""

    rpc: str

    def messages(self, batch: Batch) -> Iterator[Message]:
        """Cuts a batch into messages."""
        ...

    def result(self, replies: list[Any]) -> Result:
        """Makes the result of the replies to all messages of a batch."""
        ...


class Window(Generic[Result]):
    """What has been sent and not been answered; so much would be sent again.

    Args:
        talk: Makes the results.
    """

    def __init__(self, talk: Talk[Any, Result]):
        self._talk = talk
        self._replies: list[Any] = []
        self.unanswered: deque[Message] = deque()

    def answered(self, reply: Any) -> list[Result]:
        """Takes the reply to the oldest message; returns the result, if that was the last."""
        message = self.unanswered.popleft()
        self._replies.append(reply.response)
        if not message.last:
            return []
        replies, self._replies = self._replies, []
        return [self._talk.result(replies)]


class Encoding:
    """Batches of images to posteriors; the rows of the whole stream are numbered.

    Args:
        most: The most rows and bytes of a message.
        seed: Of the draws, or None for none.
        offset: Number of the first row.
        resize: Whether files are to be made fit.
        model: Which model.
    """

    rpc = "EncodeStream"

    def __init__(
        self,
        most: tuple[int, int],
        *,
        seed: int | None,
        offset: int,
        resize: bool,
        model: pb.ModelSelector,
    ):
        self._most = most
        self._seed = seed
        self._offset = offset
        self._resize = resize
        self._model = model

    def messages(self, batch: Images) -> Iterator[Message]:
        """Cuts a batch into messages."""
        source = codec.image_source(batch, resize=self._resize)
        codec.check_draw(self._seed, self._offset, len(source))
        start = 0
        while start < len(source):
            rows = source.piece(start, *self._most)
            request = requests.encode_request(source, rows, self._model, self._seed, self._offset)
            yield Message(pb.EncodeStreamRequest(request=request), rows.stop == len(source))
            start = rows.stop
        self._offset += len(source)

    def result(self, replies: list[Any]) -> Posterior:
        """Puts a batch's posteriors together."""
        return requests.posterior_of(replies, self._seed)


class Decoding:
    """Batches of latents to images.

    Args:
        most: The most rows and bytes of a message.
        dtype: How the images come back.
        model: Which model.
    """

    rpc = "DecodeStream"

    def __init__(self, most: tuple[int, int], *, dtype: ArrayFormat, model: pb.ModelSelector):
        self._most_rows, _ = most
        self._format = requests.array_format(dtype)
        self._model = model

    def messages(self, batch: ArrayLike) -> Iterator[Message]:
        """Cuts a batch into messages."""
        z = codec.latent_array(batch)
        for start in range(0, len(z), self._most_rows):
            stop = min(start + self._most_rows, len(z))
            request = requests.decode_request(z[start:stop], self._model, self._format)
            yield Message(pb.DecodeStreamRequest(request=request), stop == len(z))

    def result(self, replies: list[Any]) -> NDArray[Any]:
        """Puts a batch's images together."""
        return codec.joined([reply.images.tensor for reply in replies])


class Sequence:
    """A stream of samples, and how far it is.

    Args:
        request: Asks for all of it, with its seed.
        chunk_rows: Most images in one reply; 0 for as many as the server likes.
    """

    def __init__(self, request: pb.SampleRequest, chunk_rows: int):
        self._request = request
        self._chunk_rows = chunk_rows

    @property
    def left(self) -> int:
        """Images that have not come yet."""
        return self._request.count

    def rest(self) -> pb.SampleStreamRequest:
        """Asks for what has not come yet."""
        return pb.SampleStreamRequest(request=self._request, chunk_rows=self._chunk_rows)

    def take(self, reply: pb.SampleStreamResponse) -> Any:
        """Takes a chunk and returns its samples."""
        samples = requests.samples_of(reply.response)
        self._request.count -= len(samples.images)
        # Past the last row there is none to number.
        self._request.offset = (self._request.offset + len(samples.images)) % 2**64
        return samples


def wait_before_retry(error: ServerError, attempt: int, retry: Retry, *, stream: bool) -> float:
    """Seconds to wait before something is tried again.

    Args:
        error: Why it failed.
        attempt: How many attempts there have been without any progress.
        retry: What the caller wants.
        stream: Whether it is a stream, which gRPC does not try again by itself, and which
            a server that stops may cut off.

    Raises:
        ServerError: `error`, where another attempt would not help.
    """
    if attempt >= retry.attempts:
        raise error
    jitter = random.uniform(0.8, 1.2)
    if isinstance(error, ResourceExhausted) and error.retry_seconds is not None:
        return error.retry_seconds * (1.0 + 0.2 * random.random())
    cut_off = isinstance(error, Unavailable) or error.code == grpc.StatusCode.CANCELLED
    if stream and cut_off:
        return retry.wait(attempt) * jitter
    raise error
