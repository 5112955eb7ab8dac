"""Plans of the streaming RPCs: what is sent when, and how a broken stream is resumed."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, Unpack

from numpy.typing import ArrayLike, NDArray

from latentserve._client import chunks, codec, formats, requests, scalars
from latentserve._client.codec import ImageSource
from latentserve._client.describe import Limits, check_supported, limits_of
from latentserve._client.labels import labels_of, one_of_stream, part, unpacked
from latentserve._client.parameters import (
    ArrayFormat,
    Format,
    Images,
    Labelled,
    LatentFormat,
    Resize,
    Sampling,
)
from latentserve._client.plans import (
    END,
    BackOff,
    Deliver,
    NextBatch,
    OpenStream,
    Receive,
    Send,
    StreamPlan,
)
from latentserve._client.retries import Retries
from latentserve._client.values import Posterior, Samples
from latentserve.errors import InvalidArgument, NotFound, ServerError
from latentserve.v1 import latent_service_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True)
class _Chunk:
    """Rows of a batch that go into one message.

    Attributes:
        request: The message.
        start: Index of its first row in the batch.
        last: Whether it is the last chunk of its batch.
    """

    request: Any
    start: int
    last: bool


def sample_stream(
    limits: Limits,
    retries: Retries,
    n: int,
    *,
    dtype: ArrayFormat,
    chunk_rows: int,
    latent_dtype: LatentFormat = "float32",
    **options: Unpack[Sampling],
) -> StreamPlan[Samples]:
    """Draws images from the prior, chunk by chunk."""
    image_format = formats.array_format_message(dtype)
    # Updated with each reply: count and offset are those of the images that are still missing.
    request = requests.sample_request(
        n, image_format, latents=True, latent_dtype=latent_dtype, **options
    )
    yield from check_supported(
        limits,
        request.model.name,
        request.model.version,
        size=request.HasField("height"),
        latent_dtype=request.latent_dtype,
    )
    chunk_rows = scalars.int64(chunk_rows, "chunk_rows")
    attempts = retries.attempts()
    stated, answered_by = request.model.version, 0
    while request.count:
        # A resumed stream stays with the version that it began with.
        request.model.version = stated or answered_by
        message = pb.SampleStreamRequest(request=request, chunk_rows=chunk_rows)
        yield OpenStream("SampleStream", message)
        try:
            while request.count:
                reply = yield Receive()
                attempts.succeeded()
                answered_by = reply.response.model.version
                samples = requests.samples_of([reply.response])
                request.count -= len(samples.images)
                # After the last image the offset may be 2^64, which the field cannot hold.
                request.offset = (request.offset + len(samples.images)) % 2**64
                yield Deliver(samples)
            # Waits for the status: the server counts a call that is closed earlier as cancelled.
            with contextlib.suppress(ServerError):
                yield Receive()
        except ServerError as error:
            if _was_replaced(error, request.model.version, stated):
                answered_by = 0
                continue
            for seconds in attempts.waits(error):
                yield BackOff(seconds, error)


def encode_stream(
    limits: Limits,
    retries: Retries,
    *,
    draw: bool,
    seed: int | None,
    offset: int,
    resize: Resize,
    scaled: bool,
    latent_dtype: LatentFormat,
    window: int,
    model: str,
    version: int,
    labels: int | None = None,
) -> StreamPlan[Posterior]:
    """Encodes batches of images; rows are numbered across all batches."""
    label = one_of_stream(labels)
    latent_format = formats.latent_format_message(latent_dtype)
    size = codec.given_size(resize)
    maxima = yield from limits_of(limits, model, version, files=True)
    yield from check_supported(
        limits,
        model,
        version,
        scaled=scaled,
        resize=size,
        latent_dtype=latent_format,
        labels=label is not None,
    )
    seed, offset = requests.draw_of(draw, seed, offset, 0)
    selector = requests.selector(model, version)

    def cut(batch: Images | ImageSource | Labelled) -> Iterator[_Chunk]:
        nonlocal offset
        images, given = unpacked(batch, label)
        if isinstance(images, ImageSource):
            source = images
        else:
            source = codec.image_source(images, resize=resize)
        classes = labels_of(given, len(source))
        if source.offset is not None:
            offset = source.offset
        codec.check_draw(seed, offset, len(source))
        start = 0
        while start < len(source):
            rows = chunks.chunk(source.content, start, maxima, source.size)
            request = requests.encode_request(
                source,
                rows,
                selector,
                seed,
                offset,
                scaled=scaled,
                latent_dtype=latent_format,
                labels=classes,
            )
            message = pb.EncodeStreamRequest(request=request)
            yield _Chunk(message, start, last=rows.stop == len(source))
            start = rows.stop
        offset += len(source)

    def result(replies: list[pb.EncodeResponse]) -> Posterior:
        return requests.posterior_of(replies, seed)

    yield from _exchange("EncodeStream", cut, result, window, retries, version)


def decode_stream(
    limits: Limits,
    retries: Retries,
    *,
    dtype: Format,
    window: int,
    model: str = "",
    version: int = 0,
    scaled: bool = False,
    unclipped: bool = False,
    quality: int | None = None,
    labels: int | None = None,
) -> StreamPlan[NDArray[Any] | list[bytes]]:
    """Decodes batches of latents."""
    label = one_of_stream(labels)
    image_format = formats.format_message(dtype)
    quality = requests.quality_of(quality)
    maxima = yield from limits_of(limits, model, version, files=False)
    yield from check_supported(
        limits, model, version, scaled=scaled, unclipped=unclipped, labels=label is not None
    )
    selector = requests.selector(model, version)

    def cut(batch: ArrayLike | Labelled) -> Iterator[_Chunk]:
        latents, given = unpacked(batch, label)
        z = codec.latent_array(latents)
        classes = labels_of(given, len(z))
        start = 0
        while start < len(z):
            rows = chunks.chunk(z, start, maxima, latents=True)
            request = requests.decode_request(
                z[rows],
                selector,
                image_format,
                scaled=scaled,
                unclipped=unclipped,
                quality=quality,
                labels=part(classes, rows),
            )
            message = pb.DecodeStreamRequest(request=request)
            yield _Chunk(message, start, last=rows.stop == len(z))
            start = rows.stop

    def result(replies: list[pb.DecodeResponse]) -> NDArray[Any] | list[bytes]:
        return codec.joined_images([reply.images for reply in replies], dtype)

    yield from _exchange("DecodeStream", cut, result, window, retries, version)


def _exchange(
    rpc: str,
    cut: Callable[[Any], Iterator[_Chunk]],
    result: Callable[[list[Any]], T],
    window: int,
    retries: Retries,
    version: int,
) -> StreamPlan[T]:
    """Sends batches, at most `window` chunks ahead of the replies, and delivers their results.

    Args:
        rpc: Name of the method.
        cut: Cuts a batch into chunks.
        result: Makes the result of a batch from the replies to its chunks.
        window: Maximum number of chunks without a reply.
        retries: The client's retry policy and budget.
        version: Version of the model in the requests; 0 for one that the server chooses, with which
            a resumed stream stays.
    """
    if window < 1:
        raise ValueError(f"window: got {window}, wanted at least 1")
    batch_chunks: Iterator[_Chunk] = iter(())
    ended = False
    unanswered: deque[_Chunk] = deque()
    replies: list[Any] = []
    attempts = retries.attempts()
    answered_by = 0
    while True:
        held = version or answered_by
        yield OpenStream(rpc)
        sent = 0  # number of unanswered chunks that were sent on this stream
        try:
            while True:
                # After a failure chunks are sent one at a time: grpc.aio loses the status of a
                # stream that ends during a write.
                while sent < (1 if attempts.failed else window):
                    while sent == len(unanswered) and not ended:
                        if (chunk := next(batch_chunks, None)) is not None:
                            unanswered.append(chunk)
                        elif (batch := (yield NextBatch())) is END:
                            ended = True
                        else:
                            batch_chunks = cut(batch)
                    if sent == len(unanswered):
                        break
                    message = unanswered[sent].request
                    message.request.model.version = held
                    yield Send(message)
                    sent += 1
                if not unanswered:
                    return
                reply = yield Receive()
                attempts.succeeded()
                sent -= 1
                answered_by = reply.response.model.version
                replies.append(reply.response)
                if unanswered.popleft().last:
                    yield Deliver(result(replies))
                    replies = []
        except ServerError as error:
            if isinstance(error, InvalidArgument) and unanswered:
                # Replies come in order, so the error is that of the oldest unanswered chunk.
                chunks.count_from(error, unanswered[0].start)
            if _was_replaced(error, held, version):
                answered_by = 0
                continue
            for seconds in attempts.waits(error):
                yield BackOff(seconds, error)


def _was_replaced(error: ServerError, held: int, stated: int) -> bool:
    """Whether a stream failed since the version that it was held to is not served any more.

    Args:
        error: The error.
        held: Version in the requests.
        stated: Version that the caller has stated; 0 for none.
    """
    return isinstance(error, NotFound) and held != stated
