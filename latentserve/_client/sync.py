"""The blocking client: drives plans and streams on grpcio's threads."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, TypeVar, Unpack, overload

import grpc
from numpy.typing import ArrayLike, NDArray

from latentserve._client import describe, streams, unary
from latentserve._client.describe import Limits
from latentserve._client.options import (
    SERVICE,
    Keepalive,
    Retry,
    Tls,
    Token,
    channel_arguments,
    metadata_of,
    rpcs_of,
)
from latentserve._client.parameters import (
    ArrayFormat,
    Drawing,
    Format,
    Images,
    Method,
    Point,
    Sampling,
    Where,
)
from latentserve._client.plans import (
    END,
    BackOff,
    Deliver,
    NextBatch,
    OpenStream,
    Plan,
    Receive,
    Send,
    StreamPlan,
    UnaryCall,
    back_off,
)
from latentserve._client.threads import ThreadedStream
from latentserve._client.values import (
    Interpolation,
    ModelInfo,
    Posterior,
    Reloaded,
    Samples,
    Scores,
    ServerInfo,
    Traversal,
)
from latentserve.compat.v1 import compat_pb2
from latentserve.errors import (
    ServerError,
    from_rpc_error,
)

T = TypeVar("T")


class Client:
    """Calls one server, or the several behind a `dns:///` name.

    Arrays of any length are cut into messages that the server takes and put together
    again. Safe to use from several threads; close it, or use it in a `with` statement.

    Every call takes the keywords `model`, `version` and `timeout` (`Where`), and raises
    TypeError or ValueError for what could never be sent, and ServerError, whose
    subclasses `latentserve.errors` draws, where the server refused or could not be
    reached.

    Args:
        target: Address, for example `localhost:50051` or `dns:///latentserve:50051`.
        timeout: Seconds that each message may take, unless a call says otherwise.
        tls: How to encrypt the connection; None for a plain one.
        token: Sent with each call, where the server asks for one; a callable is asked
            each time.
        retry: How often calls are tried again.
        keepalive: How a dead connection is noticed.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float = 60.0,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: Retry = Retry(),  # noqa: B008 - frozen
        keepalive: Keepalive = Keepalive(),  # noqa: B008 - frozen
    ):
        self.target = target
        self._timeout = timeout
        self._token = token
        self._retry = retry
        self._limits = Limits()
        options = channel_arguments(retry, keepalive, tls)
        if tls is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, tls.credentials(), options=options)
        self._rpcs = rpcs_of(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def is_serving(self, model: str = "", *, timeout: float | None = None) -> bool:
        """Tells whether the server, or one of its models, is ready for calls.

        Args:
            model: Name of a model; empty for the server as a whole.
            timeout: Seconds; the client's by default.

        Raises:
            ServerError: It cannot be reached, or has no such model.
        """
        request = compat_pb2.HealthRequest(service=f"{SERVICE}/{model}" if model else "")
        reply = self._attempt("Check", request, self._seconds(timeout))
        return bool(reply.status == compat_pb2.HealthResponse.SERVING_STATUS_SERVING)

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Tells what the server is, how it is limited and which models it serves."""
        return self._run(describe.info(), timeout)

    def models(self, *, timeout: float | None = None) -> tuple[ModelInfo, ...]:
        """Describes every model and version that is served."""
        return self._run(describe.models(), timeout)

    def model(
        self, model: str = "", *, version: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """Describes one model.

        Args:
            model: Its name; empty for the server's default model.
            version: Its version; 0 for the highest that is served.
            timeout: Seconds; the client's by default.

        Raises:
            NotFound: There is none.
        """
        return self._run(describe.model_info(self._limits, model, version), timeout)

    def encode(
        self, images: Images, *, timeout: float | None = None, **options: Unpack[Drawing]
    ) -> Posterior:
        """Maps images to their posteriors.

        Args:
            images: [N, C, H, W], [N, H, W] or [N, C*H*W], uint8 or floats in [0, 1]; or the
                contents of PNG and JPEG files.
            timeout: Seconds for each message; the client's by default.
            **options: `draw`, `seed`, `offset`, `resize`, `model`, `version` (`Drawing`).

        Returns:
            Mean and log_var, float32 [N, D] each, and z where it was drawn. A plain
            autoencoder answers no log_var.

        Raises:
            FailedPrecondition: A draw from a plain autoencoder.
        """
        return self._run(unary.encode(self._limits, images, **options), timeout)

    @overload
    def decode(
        self,
        z: ArrayLike,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Where],
    ) -> NDArray[Any]: ...
    @overload
    def decode(
        self,
        z: ArrayLike,
        *,
        dtype: Literal["png"],
        timeout: float | None = None,
        **options: Unpack[Where],
    ) -> list[bytes]: ...
    def decode(
        self,
        z: ArrayLike,
        *,
        dtype: Format = "float32",
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """Maps latents to images.

        Args:
            z: [N, D], floats.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255, `png` for files.
            timeout: Seconds for each message; the client's by default.
            **options: `model`, `version` (`Where`).

        Returns:
            [N, C, H, W], or a file for each image.
        """
        return self._run(unary.decode(self._limits, z, dtype=dtype, **options), timeout)

    @overload
    def sample(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> NDArray[Any]: ...
    @overload
    def sample(
        self,
        n: int,
        *,
        dtype: Literal["png"],
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> list[bytes]: ...
    def sample(
        self, n: int, *, dtype: Format = "float32", timeout: float | None = None, **options: Any
    ) -> NDArray[Any] | list[bytes]:
        """Draws new images from the prior.

        Args:
            n: How many, at least 1.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255, `png` for files.
            timeout: Seconds for each message; the client's by default.
            **options: `seed`, `offset`, `label`, `temperature`, `truncation`, `model`,
                `version` (`Sampling`).

        Returns:
            [N, C, H, W], or a file for each image.

        Raises:
            FailedPrecondition: The model has no prior, or a label was given and its prior
                knows no classes.
        """
        return self._run(unary.sample(self._limits, n, dtype=dtype, **options), timeout)

    def sample_with_latents(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> Samples:
        """Draws latents from the prior and decodes them.

        Takes and raises what `sample` does.
        """
        plan = unary.sample_with_latents(self._limits, n, dtype=dtype, **options)
        return self._run(plan, timeout)

    @overload
    def reconstruct(
        self,
        images: Images,
        *,
        dtype: ArrayFormat = "float32",
        timeout: float | None = None,
        **options: Unpack[Drawing],
    ) -> NDArray[Any]: ...
    @overload
    def reconstruct(
        self,
        images: Images,
        *,
        dtype: Literal["png"],
        timeout: float | None = None,
        **options: Unpack[Drawing],
    ) -> list[bytes]: ...
    def reconstruct(
        self,
        images: Images,
        *,
        dtype: Format = "float32",
        timeout: float | None = None,
        **options: Any,
    ) -> NDArray[Any] | list[bytes]:
        """Encodes images and decodes the mean of each posterior, or a draw from it.

        Args:
            images: As `encode` takes them.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255, `png` for files.
            timeout: Seconds for each message; the client's by default.
            **options: `draw`, `seed`, `offset`, `resize`, `model`, `version` (`Drawing`).

        Returns:
            [N, C, H, W], or a file for each image.

        Raises:
            FailedPrecondition: A draw from a plain autoencoder.
        """
        return self._run(unary.reconstruct(self._limits, images, dtype=dtype, **options), timeout)

    def interpolate(
        self,
        start: Point,
        stop: Point,
        steps: int = 10,
        *,
        method: Method = "linear",
        dtype: ArrayFormat = "float32",
        resize: bool = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Interpolation:
        """Decodes a path from one image or latent to another.

        Args:
            start: A latent [D], an image [C, H, W] or [H, W], or the content of a PNG or JPEG
                file. Of an image, the mean of its posterior is meant.
            stop: The other end, of the same kind.
            steps: How many images, both ends included; at least 2.
            method: `linear`, or `spherical` for an arc.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            resize: Make files of another size or colour mode fit.
            timeout: Seconds; the client's by default.
            **where: `model`, `version`.
        """
        plan = unary.interpolate(
            start, stop, steps, method=method, dtype=dtype, resize=resize, **where
        )
        return self._run(plan, timeout)

    def traverse(
        self,
        axes: int | Iterable[int] | None = None,
        *,
        steps: int = 11,
        range: float = 3.0,  # noqa: A002 - the field's own word
        middle: Point | None = None,
        dtype: ArrayFormat = "float32",
        resize: bool = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Traversal:
        """Decodes a line or a grid of points along one or two latent axes.

        Args:
            axes: One axis or two; the first two by default.
            steps: Points along each axis, at least 2.
            range: How far to go to either side, in standard deviations of the prior.
            middle: Where the middle is, as `interpolate` takes its ends; the mean of the
                prior by default.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            resize: Make a file of another size or colour mode fit.
            timeout: Seconds; the client's by default.
            **where: `model`, `version`.
        """
        plan = unary.traverse(
            axes, steps=steps, range=range, middle=middle, dtype=dtype, resize=resize, **where
        )
        return self._run(plan, timeout)

    def score(
        self,
        images: Images,
        *,
        draws: int = 0,
        seed: int | None = None,
        offset: int = 0,
        resize: bool = False,
        timeout: float | None = None,
        **where: Unpack[Where],
    ) -> Scores:
        """Measures how likely images are under the model.

        Args:
            images: As `encode` takes them.
            draws: K of the importance-weighted bound; 0, the default, for none.
            seed: Of these draws; a fresh one by default, told in the result.
            offset: Index of the first row in the seed's sequence.
            resize: Make image files of another size or colour mode fit.
            timeout: Seconds for each message; the client's by default.
            **where: `model`, `version`.

        Raises:
            FailedPrecondition: The model is a plain autoencoder, which has no likelihood.
        """
        plan = unary.score(
            self._limits, images, draws=draws, seed=seed, offset=offset, resize=resize, **where
        )
        return self._run(plan, timeout)

    def sample_stream(
        self,
        n: int,
        *,
        dtype: ArrayFormat = "float32",
        chunk_rows: int = 0,
        timeout: float | None = None,
        **options: Unpack[Sampling],
    ) -> Iterator[Samples]:
        """Draws any number of new images, chunk by chunk, in the memory of a few chunks.

        The server waits while nobody reads. A stream that is cut off is taken up again
        where it was.

        Args:
            n: How many, at least 1.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            chunk_rows: Most images in a chunk; 0, the default, for as many as the server
                likes.
            timeout: Seconds to wait for each chunk; the client's by default.
            **options: As `sample`.

        Yields:
            The chunks, in the order of the sequence.
        """
        plan = streams.sample_stream(self._retry, n, dtype=dtype, chunk_rows=chunk_rows, **options)
        return self._stream(plan, timeout)

    def encode_stream(
        self,
        batches: Iterable[Images],
        *,
        draw: bool = False,
        seed: int | None = None,
        offset: int = 0,
        resize: bool = False,
        window: int = 4,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Iterator[Posterior]:
        """Encodes any number of images, batch by batch, in the memory of a few batches.

        A stream that is cut off is opened again and what was not answered sent again.

        Args:
            batches: Images, each as `encode` takes them; read `window` messages ahead of
                what has been answered.
            draw: Draw from each posterior; a given seed implies it.
            seed: Of the draws; a fresh one by default, told in the results.
            offset: Index of the first row; the rows of the whole stream are numbered on.
            resize: Make image files of another size or colour mode fit.
            window: Most messages on their way.
            model: Name of the model; empty for the server's default.
            version: Its version; 0 for the highest that is served.
            timeout: Seconds to wait for each answer; the client's by default.

        Yields:
            The posteriors of each batch, in the order of the batches.
        """
        plan = streams.encode_stream(
            self._limits,
            self._retry,
            draw=draw,
            seed=seed,
            offset=offset,
            resize=resize,
            window=window,
            model=model,
            version=version,
        )
        return self._stream(plan, timeout, batches)

    def decode_stream(
        self,
        batches: Iterable[ArrayLike],
        *,
        dtype: ArrayFormat = "float32",
        window: int = 4,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Decodes any number of latents, batch by batch, as `encode_stream` encodes images.

        Args:
            batches: Latents, each as `decode` takes them.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            window: Most messages on their way.
            model: Name of the model; empty for the server's default.
            version: Its version; 0 for the highest that is served.
            timeout: Seconds to wait for each answer; the client's by default.

        Yields:
            The images of each batch, in the order of the batches.
        """
        plan = streams.decode_stream(
            self._limits, self._retry, dtype=dtype, window=window, model=model, version=version
        )
        return self._stream(plan, timeout, batches)

    def reload(self, *, timeout: float | None = None) -> Reloaded:
        """Makes the server look through its models folder again; it must run with --admin.

        Raises:
            Unavailable: The folder cannot be read; what is served does not change.
            ServerError: The server has no AdminService, or could not be reached.
        """
        return self._run(describe.reload(), timeout)

    def _run(self, plan: Plan[T], timeout: float | None) -> T:
        """Carries out a plan of unary calls and returns its result."""
        seconds = self._seconds(timeout)
        try:
            step = next(plan)
            while True:
                try:
                    reply = self._call(step, seconds)
                except ServerError as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _stream(
        self, plan: StreamPlan[T], timeout: float | None, batches: Iterable[Any] = ()
    ) -> Iterator[T]:
        """Carries out the plan of a stream and yields its results."""
        seconds = self._seconds(timeout)
        source = iter(batches)
        with contextlib.closing(ThreadedStream(self.target, seconds)) as stream:
            try:
                step = next(plan)
                while True:
                    outcome: Any = None
                    try:
                        match step:
                            case Send():
                                stream.send(step.request)
                            case Receive():
                                outcome = stream.receive()
                            case Deliver():
                                yield step.result
                            case NextBatch():
                                outcome = next(source, END)
                            case OpenStream():
                                metadata = metadata_of(self._token)
                                stream.open(self._rpcs[step.rpc], step.request, metadata)
                            case BackOff():
                                time.sleep(step.seconds)
                            case UnaryCall():
                                outcome = self._call(step, seconds)
                    except ServerError as error:
                        # Not the caller's own, out of its batches.
                        if isinstance(step, (Deliver, NextBatch)):
                            raise
                        step = plan.throw(error)
                    else:
                        step = plan.send(outcome)
            except StopIteration:
                return

    def _call(self, call: UnaryCall, seconds: float) -> Any:
        """Makes a unary call, again where the server said when to come again."""
        deadline = time.monotonic() + seconds
        attempt = 0
        while True:
            left = max(0.0, deadline - time.monotonic())
            metadata = metadata_of(self._token)
            try:
                return self._attempt(call.rpc, call.request, left, metadata)
            except ServerError as error:
                attempt += 1
                wait = back_off(error, attempt, self._retry, stream=False)
                if time.monotonic() + wait >= deadline:
                    raise
                time.sleep(wait)

    def _attempt(self, rpc: str, request: Any, seconds: float, metadata: Any = ()) -> Any:
        try:
            return self._rpcs[rpc](request, timeout=seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout
