"""The client: encode, decode and sample from Python.

    from latentserve.client import Client

    with Client("localhost:50051") as client:
        posterior = client.encode(images)           # mean and log_var, float32 [N, D]
        images = client.decode(posterior.mean)      # float32 [N, C, H, W] in [0, 1]
        digits = client.sample(100, seed=7)         # the same 100 digits every time

Needs grpcio, protobuf and numpy, and nothing else.
"""

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
from numpy.typing import ArrayLike, NDArray

from latentserve import _messages
from latentserve._messages import Format
from latentserve._values import ModelInfo, Posterior, Samples, ServerInfo
from latentserve.compat.v1 import compat_pb2
from latentserve.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    LatentserveError,
    NotFound,
    ProtocolError,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
    Violation,
    from_rpc_error,
)
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc as pb_grpc

__all__ = [
    "Client",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "LatentserveError",
    "ModelInfo",
    "NotFound",
    "Posterior",
    "ProtocolError",
    "ResourceExhausted",
    "Samples",
    "ServerError",
    "ServerInfo",
    "Unauthenticated",
    "Unavailable",
    "Violation",
]

_SERVICE = "latentserve.v1.LatentService"

# Every RPC may be sent twice: the client resolves the seed before it sends.
_SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": _SERVICE}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)

_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    # gRPC keeps a request to send it again only up to this size, 256 KiB by default.
    ("grpc.per_rpc_retry_buffer_size", 256 * 2**20),
    # The server states and keeps the limits; the client cuts its arrays to them.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


class Client:
    """Calls one server, or the several behind a `dns:///` name.

    Arrays of any length are cut into messages that the server takes and put
    together again. Safe to use from several threads; close it, or use it in a
    `with` statement.

    Args:
        target: Address, for example `localhost:50051` or `dns:///latentserve:50051`.
        timeout: Seconds that each message may take, unless a call says otherwise.
    """

    def __init__(self, target: str = "localhost:50051", *, timeout: float = 60.0):
        self.target = target
        self._timeout = timeout
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._stub = pb_grpc.LatentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=compat_pb2.HealthRequest.SerializeToString,
            response_deserializer=compat_pb2.HealthResponse.FromString,
        )
        self._max_rows: dict[tuple[str, int], int] = {}

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
        service = f"{_SERVICE}/{model}" if model else ""
        reply = self._call(self._health, compat_pb2.HealthRequest(service=service), timeout)
        return bool(reply.status == compat_pb2.HealthResponse.SERVING_STATUS_SERVING)

    def info(self, *, timeout: float | None = None) -> ServerInfo:
        """Tells what the server is, how it is limited and which models it serves.

        Raises:
            ServerError: It cannot be reached.
        """
        reply = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout)
        return _messages.read_server_info(reply)

    def model(
        self, model: str = "", *, version: int = 0, timeout: float | None = None
    ) -> ModelInfo:
        """Describes one model.

        Args:
            model: Its name; empty for the server's default model.
            version: Its version; 0 for the one being served.
            timeout: Seconds; the client's by default.

        Raises:
            NotFound: There is none.
            ServerError: It cannot be reached.
        """
        request = pb.GetModelRequest(model=_messages.selector(model, version))
        info = _messages.read_model_info(self._call(self._stub.GetModel, request, timeout).model)
        self._max_rows[model, version] = info.max_rows
        return info

    def encode(
        self,
        images: ArrayLike,
        *,
        draw: bool = False,
        seed: int | None = None,
        offset: int = 0,
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Posterior:
        """Maps images to their posteriors.

        Args:
            images: [N, C, H, W], [N, H, W] or [N, C*H*W]; uint8, or floats in [0, 1].
            draw: Draw z from each posterior as well; a given seed implies it.
            seed: Seed of the draw; a fresh one by default, told in the result.
            offset: Index of the first row in the seed's sequence.
            model: Name of the model; empty for the server's default.
            version: Its version; 0 for the one being served.
            timeout: Seconds for each message; the client's by default.

        Returns:
            Mean and log_var, float32 [N, D] each, and z where it was drawn. A plain
            autoencoder answers no log_var.

        Raises:
            TypeError: Of a dtype that cannot be sent.
            ValueError: Without rows.
            FailedPrecondition: A draw from a plain autoencoder.
            ServerError: The server refused or could not be reached.
        """
        array = _messages.image_array(images)
        _messages.check_draw(seed, offset, len(array))
        if draw and seed is None:
            seed = _messages.fresh_seed()
        chosen = _messages.selector(model, version)

        def send(rows: slice) -> Any:
            request = _messages.encode_request(array[rows], chosen, seed, offset + rows.start)
            return self._call(self._stub.Encode, request, timeout)

        replies = self._in_pieces(send, len(array), model, version)
        return Posterior(
            mean=_messages.joined([reply.mean for reply in replies]),
            log_var=_messages.joined_where_sent(replies, "log_var"),
            z=None if seed is None else _messages.joined([reply.z for reply in replies]),
            seed=seed,
        )

    def decode(
        self,
        z: ArrayLike,
        *,
        dtype: Format = "float32",
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> NDArray[Any]:
        """Maps latents to images.

        Args:
            z: [N, D], floats.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            model: Name of the model; empty for the server's default.
            version: Its version; 0 for the one being served.
            timeout: Seconds for each message; the client's by default.

        Returns:
            [N, C, H, W].

        Raises:
            TypeError: Of a dtype that cannot be sent.
            ValueError: Without rows, or not of two axes.
            ServerError: The server refused or could not be reached.
        """
        array = _messages.latent_array(z)
        chosen = _messages.selector(model, version)

        def send(rows: slice) -> Any:
            request = _messages.decode_request(array[rows], chosen, dtype)
            return self._call(self._stub.Decode, request, timeout)

        replies = self._in_pieces(send, len(array), model, version)
        return _messages.joined([reply.images.tensor for reply in replies])

    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        offset: int = 0,
        label: int | None = None,
        temperature: float | None = None,
        truncation: float | None = None,
        dtype: Format = "float32",
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> NDArray[Any]:
        """Draws new images from the prior.

        Takes and raises what `sample_with_latents` does.

        Returns:
            [N, C, H, W].
        """
        replies, _ = self._sample(
            n, seed, offset, label, temperature, truncation, dtype, model, version, timeout,
            return_latents=False,
        )  # fmt: skip
        return _messages.joined([reply.images.tensor for reply in replies])

    def sample_with_latents(
        self,
        n: int,
        *,
        seed: int | None = None,
        offset: int = 0,
        label: int | None = None,
        temperature: float | None = None,
        truncation: float | None = None,
        dtype: Format = "float32",
        model: str = "",
        version: int = 0,
        timeout: float | None = None,
    ) -> Samples:
        """Draws latents from the prior and decodes them.

        Image i depends on (seed, offset + i) alone: a job may be cut, spread over
        servers and put together again.

        Args:
            n: How many, at least 1.
            seed: 0 to 2^64 - 1; a fresh one by default, told in the result.
            offset: Index of the first image in the seed's sequence.
            label: Index of the class wanted, in `ModelInfo.labels`; None or -1 for any.
            temperature: Factor on the noise's standard deviation, 1 by default; below 1
                the images are more typical and less varied.
            truncation: Bound on the noise in standard deviations; none by default.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            model: Name of the model; empty for the server's default.
            version: Its version; 0 for the one being served.
            timeout: Seconds for each message; the client's by default.

        Raises:
            ValueError: n is below 1, or a seed or offset is no uint64.
            FailedPrecondition: The model has no prior, or a label was given and its
                prior knows no classes.
            ServerError: The server refused or could not be reached.
        """
        replies, seed = self._sample(
            n, seed, offset, label, temperature, truncation, dtype, model, version, timeout,
            return_latents=True,
        )  # fmt: skip
        return Samples(
            images=_messages.joined([reply.images.tensor for reply in replies]),
            latents=_messages.joined([reply.latents for reply in replies]),
            seed=seed,
            offset=offset,
        )

    def _sample(
        self,
        n: int,
        seed: int | None,
        offset: int,
        label: int | None,
        temperature: float | None,
        truncation: float | None,
        dtype: Format,
        model: str,
        version: int,
        timeout: float | None,
        *,
        return_latents: bool,
    ) -> tuple[list[Any], int]:
        if n < 1:
            raise ValueError(f"n: got {n}, wanted at least 1")
        _messages.check_draw(seed, offset, n)
        # Resolved before the job is cut, and before anything is sent twice.
        seed = _messages.fresh_seed() if seed is None else seed
        chosen = _messages.selector(model, version)

        def send(rows: slice) -> Any:
            request = _messages.sample_request(
                rows.stop - rows.start,
                chosen,
                seed=seed,
                offset=offset + rows.start,
                label=label,
                temperature=temperature,
                truncation=truncation,
                image_format=dtype,
                return_latents=return_latents,
            )
            return self._call(self._stub.Sample, request, timeout)

        return self._in_pieces(send, n, model, version), seed

    def _in_pieces(
        self, send: Callable[[slice], Any], rows: int, model: str, version: int
    ) -> list[Any]:
        """Sends rows in pieces of the size that the server takes."""
        known = self._max_rows.get((model, version))
        most = known or self.model(model, version=version).max_rows
        replies: list[Any] = []
        start = 0
        while start < rows:
            piece = slice(start, min(start + most, rows))
            try:
                replies.append(send(piece))
            except InvalidArgument:
                # Another server, or a new version, may take fewer than was known.
                most = self.model(model, version=version).max_rows
                if most >= piece.stop - piece.start:
                    raise
                continue
            start = piece.stop
        return replies

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(request, timeout=self._timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from error
