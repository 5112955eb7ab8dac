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
from typing import Any, TypeVar

import grpc
import numpy as np
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
    # The server states and keeps the limits; the client cuts its arrays to them.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)

Request = TypeVar("Request")
Reply = TypeVar("Reply")


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
            Mean and log_var, float32 [N, D] each, and z where it was drawn.

        Raises:
            TypeError: Of a dtype that cannot be sent.
            ValueError: Without rows.
            ServerError: The server refused or could not be reached.
        """
        array = _messages.image_array(images)
        if draw and seed is None:
            seed = _messages.fresh_seed()
        chosen = _messages.selector(model, version)
        replies = []
        for rows in _messages.chunks(len(array), self._rows(model, version)):
            request = _messages.encode_request(array[rows], chosen, seed, offset + rows.start)
            replies.append(self._call(self._stub.Encode, request, timeout))
        return Posterior(
            mean=_joined([reply.mean for reply in replies]),
            log_var=_joined([reply.log_var for reply in replies]),
            z=None if seed is None else _joined([reply.z for reply in replies]),
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
        replies = []
        for rows in _messages.chunks(len(array), self._rows(model, version)):
            request = _messages.decode_request(array[rows], chosen, dtype)
            replies.append(self._call(self._stub.Decode, request, timeout))
        return _joined([reply.images.tensor for reply in replies])

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
        """Draws new images; `sample_with_latents` without the rest.

        Returns:
            [N, C, H, W].
        """
        return self.sample_with_latents(
            n,
            seed=seed,
            offset=offset,
            label=label,
            temperature=temperature,
            truncation=truncation,
            dtype=dtype,
            model=model,
            version=version,
            timeout=timeout,
        ).images

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
            label: Index of the class wanted; None or -1 for any.
            temperature: Factor on the noise's standard deviation, 1 by default.
            truncation: Bound on the noise in standard deviations; none by default.
            dtype: `float32` for values in [0, 1], `uint8` for 0 to 255.
            model: Name of the model; empty for the server's default.
            version: Its version; 0 for the one being served.
            timeout: Seconds for each message; the client's by default.

        Raises:
            ValueError: n is below 1, or a seed or offset is no uint64.
            ServerError: The server refused or could not be reached.
        """
        if n < 1:
            raise ValueError(f"n: got {n}, wanted at least 1")
        seed = _messages.fresh_seed() if seed is None else seed
        chosen = _messages.selector(model, version)
        replies = []
        for rows in _messages.chunks(n, self._rows(model, version)):
            request = _messages.sample_request(
                rows.stop - rows.start,
                chosen,
                seed=seed,
                offset=offset + rows.start,
                label=label,
                temperature=temperature,
                truncation=truncation,
                image_format=dtype,
            )
            replies.append(self._call(self._stub.Sample, request, timeout))
        return Samples(
            images=_joined([reply.images.tensor for reply in replies]),
            latents=_joined([reply.latents for reply in replies]),
            seed=seed,
            offset=offset,
        )

    def _rows(self, model: str, version: int) -> int:
        """Most rows in one message to a model; asked once."""
        known = self._max_rows.get((model, version))
        return known if known is not None else self.model(model, version=version).max_rows

    def _call(self, method: Callable[..., Reply], request: Request, timeout: float | None) -> Reply:
        try:
            return method(request, timeout=self._timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.target) from None


def _joined(tensors: list[Any]) -> NDArray[Any]:
    arrays = [_messages.to_array(tensor) for tensor in tensors]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
