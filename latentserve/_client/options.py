"""Connection options of a client, and the gRPC configuration made from them."""

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

#: A bearer token, or a function that returns the current one.
Token = str | Callable[[], str]


@dataclass(frozen=True)
class Tls:
    """TLS settings. Each PEM file is given by its path or its content.

    Attributes:
        ca: Trusted CA certificates; None for those built into gRPC.
        certificate: Client certificate, for a server that requires one (mTLS).
        key: Private key of the client certificate.
        server_name: Name to expect in the server's certificate; empty for the target's host.
    """

    ca: Path | bytes | None = None
    certificate: Path | bytes | None = None
    key: Path | bytes | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files and returns the credentials of a channel.

        Raises:
            OSError: A file cannot be read.
            ValueError: Only one of certificate and key was given.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls: got only one of certificate and key, wanted both or neither")
        return grpc.ssl_channel_credentials(
            _content(self.ca), _content(self.key), _content(self.certificate)
        )


@dataclass(frozen=True)
class Retry:
    """When and how often a failed call is repeated.

    A call is repeated if the server cannot be reached, is draining or stopping, or is full and
    says when to retry. A repeated call has the same result, since its seed is chosen before the
    first attempt.

    Attributes:
        attempts: Maximum number of attempts, 1 (no retries) to 5 (the limit of gRPC).
        initial_seconds: Back-off before the second attempt, varied at random by up to 20 %.
        most_seconds: Maximum back-off.
        multiplier: Factor from one back-off to the next.
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
        """Returns the back-off in seconds after the given number of failed attempts, from 1."""
        return min(self.most_seconds, self.initial_seconds * self.multiplier ** (attempt - 1))


@dataclass(frozen=True)
class Keepalive:
    """How a dead connection is detected while calls are in flight: by HTTP/2 pings.

    Attributes:
        interval_seconds: Time between two pings; the server permits one every 10 seconds.
        timeout_seconds: Time without an answer to a ping after which a connection is dead.
    """

    interval_seconds: float = 30.0
    timeout_seconds: float = 10.0


def channel_arguments(
    retry: Retry, keepalive: Keepalive, tls: Tls | None
) -> list[tuple[str, object]]:
    """Returns the arguments of a gRPC channel."""
    arguments: list[tuple[str, object]] = [
        ("grpc.service_config", _service_config(retry)),
        ("grpc.enable_retries", int(retry.attempts > 1)),
        # Larger requests are not retried; gRPC's default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", 256 * 2**20),
        # No limit: the server enforces its limits, and the client splits arrays to fit.
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
    """Returns the RPC methods of a blocking or asynchronous channel, by name."""
    latent: Any = latent_service_pb2_grpc.LatentServiceStub(channel)  # type: ignore[no-untyped-call]
    admin: Any = admin_service_pb2_grpc.AdminServiceStub(channel)  # type: ignore[no-untyped-call]
    health = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=compat_pb2.HealthRequest.SerializeToString,
        response_deserializer=compat_pb2.HealthResponse.FromString,
    )
    return {**vars(latent), **vars(admin), "Check": health}


def metadata_of(token: Token | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of a call, which holds its bearer token.

    Raises:
        ValueError: The token cannot be sent in a header.
    """
    if token is None:
        return ()
    value = token if isinstance(token, str) else token()
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("token: got an empty or unprintable one, wanted printable ASCII")
    return (("authorization", f"Bearer {value}"),)


def _service_config(retry: Retry) -> str:
    # Unary methods only: if the connection breaks before the first message of a stream, gRPC
    # 1.85.1 retries for ever and cannot be cancelled. Plans resume streams instead.
    service = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"]
    unary = [method.name for method in service.methods if not method.server_streaming]
    config: dict[str, object] = {"name": [{"service": SERVICE, "method": name} for name in unary]}
    if retry.attempts > 1:
        config["retryPolicy"] = {
            "maxAttempts": retry.attempts,
            "initialBackoff": f"{retry.initial_seconds}s",
            "maxBackoff": f"{retry.most_seconds}s",
            "backoffMultiplier": retry.multiplier,
            # CANCELLED: a grpcio server that stops sends it for calls that it has not started.
            # Not RESOURCE_EXHAUSTED: a message that is too large has that status too.
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        }
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [config]})


def _content(source: Path | bytes | None) -> bytes | None:
    return source.read_bytes() if isinstance(source, Path) else source
