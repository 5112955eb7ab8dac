"""How a client connects: value classes, and what gRPC wants to be told."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from latentserve import __version__
from latentserve.compat.v1 import compat_pb2
from latentserve.v1 import admin_service_pb2_grpc, latent_service_pb2, latent_service_pb2_grpc

SERVICE = "latentserve.v1.LatentService"

#: A token, or what returns the one to use now.
Token = str | Callable[[], str]


@dataclass(frozen=True)
class Tls:
    """An encrypted connection. Each file is given by its path or its content, in PEM.

    Attributes:
        ca: Certificates that the server's must be signed by; None for the public ones.
        certificate: The client's own, where the server asks for one (mTLS).
        key: Its private key.
        server_name: Name in the server's certificate, where it is not that of the target.
    """

    ca: Path | bytes | None = None
    certificate: Path | bytes | None = None
    key: Path | bytes | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: One cannot be read.
            ValueError: A certificate without a key, or the other way round.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: got only one of certificate and key, wanted both or neither")
        return grpc.ssl_channel_credentials(
            _content(self.ca), _content(self.key), _content(self.certificate)
        )


@dataclass(frozen=True)
class Retry:
    """How often and when a call is tried again.

    It is where the server could not be reached, drains or stops, or is full and said when
    to come again. Every call may be sent twice: seeds are resolved before anything is sent.

    Attributes:
        attempts: In all, 1 to 5; 1 is never again. gRPC itself allows no more than 5.
        initial_seconds: Before the second attempt; gRPC draws up to 20 % more or less.
        most_seconds: The longest wait.
        multiplier: Factor from wait to wait.
    """

    attempts: int = 4
    initial_seconds: float = 0.1
    most_seconds: float = 2.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise ValueError(f"attempts: got {self.attempts}, wanted 1 to 5")
        if not (0 < self.initial_seconds <= self.most_seconds and self.multiplier >= 1):
            raise ValueError(
                f"retry: got {self}, wanted 0 < initial_seconds <= most_seconds and a multiplier "
                "of at least 1"
            )

    def wait(self, attempt: int) -> float:
        """Seconds to wait after a number of attempts, from 1 on."""
        return min(self.most_seconds, self.initial_seconds * self.multiplier ** (attempt - 1))


@dataclass(frozen=True)
class Keepalive:
    """How a connection that has died is noticed while calls are running.

    Attributes:
        interval_seconds: Between two pings; the server permits one every 10 seconds.
        timeout_seconds: Without an answer for so long, the connection is dead.
    """

    interval_seconds: float = 30.0
    timeout_seconds: float = 10.0


def channel_arguments(
    retry: Retry, keepalive: Keepalive, tls: Tls | None
) -> list[tuple[str, object]]:
    """What gRPC is told about every channel."""
    arguments: list[tuple[str, object]] = [
        ("grpc.service_config", _service_config(retry)),
        ("grpc.enable_retries", int(retry.attempts > 1)),
        # gRPC keeps a request to send it again only up to this size, 256 KiB by default.
        ("grpc.per_rpc_retry_buffer_size", 256 * 2**20),
        # The server states and keeps the limits; the client cuts its arrays to them.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", round(1000 * keepalive.interval_seconds)),
        ("grpc.keepalive_timeout_ms", round(1000 * keepalive.timeout_seconds)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.primary_user_agent", f"latentserve/{__version__}"),
    ]
    if tls is not None and tls.server_name:
        arguments.append(("grpc.ssl_target_name_override", tls.server_name))
    return arguments


def rpcs_of(channel: Any) -> dict[str, Any]:
    """What a client calls on a channel, of either kind, by the name of the RPC."""
    latent: Any = latent_service_pb2_grpc.LatentServiceStub(channel)  # type: ignore[no-untyped-call]
    admin: Any = admin_service_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
    health = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=compat_pb2.HealthRequest.SerializeToString,
        response_deserializer=compat_pb2.HealthResponse.FromString,
    )
    return {**vars(latent), **vars(admin), "Check": health}


def metadata_of(token: Token | None) -> tuple[tuple[str, str], ...]:
    """What goes along with every call.

    Raises:
        ValueError: The token cannot be sent.
    """
    if token is None:
        return ()
    value = token if isinstance(token, str) else token()
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("token: got one that is empty or has characters that cannot be sent")
    return (("authorization", f"Bearer {value}"),)


def _service_config(retry: Retry) -> str:
    # Not the streams: gRPC's own retry of one never ends, and cannot be cancelled, where
    # the connection breaks before its first message (1.85.1). `_streams` tries them again.
    service = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"]
    unary = [each.name for each in service.methods if not each.server_streaming]
    method: dict[str, object] = {"name": [{"service": SERVICE, "method": name} for name in unary]}
    if retry.attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": retry.attempts,
            "initialBackoff": f"{retry.initial_seconds}s",
            "maxBackoff": f"{retry.most_seconds}s",
            "backoffMultiplier": retry.multiplier,
            # CANCELLED by the server, as one made with grpcio does with what it has not looked
            # at yet when it stops. Not RESOURCE_EXHAUSTED: that is also a message that is too
            # large for good.
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        }
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method]})


def _content(source: Path | bytes | None) -> bytes | None:
    return source.read_bytes() if isinstance(source, Path) else source
