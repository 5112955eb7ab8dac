"""Connection options of a client, and the gRPC configuration made from them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from latentserve import __version__
from latentserve.compat.v1 import compat_pb2
from latentserve.v1 import admin_service_pb2_grpc, latent_service_pb2_grpc

SERVICE = "latentserve.v1.LatentService"
_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

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

    ca: Path | str | bytes | None = None
    certificate: Path | str | bytes | None = None
    key: Path | str | bytes | None = None
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

    A call is repeated if the server cannot be reached, is loading, draining or stopping, if the
    connection is lost before the reply, or if the server is full and says when to retry. A
    repeated call has the same result, since its seed is chosen before the first attempt.

    The back-off before an attempt is random, from zero to a bound that grows (full jitter).
    Retries also need a token of the client's budget, and wait until it has one: over ten seconds
    it permits 10 retries, and one more for every five answered calls. A retry that finds no server
    or replaces a lost call gives its token back.

    Attributes:
        attempts: Maximum number of attempts; 1 for no retries, None for no limit.
        initial_seconds: Bound of the back-off before the second attempt.
        most_seconds: Maximum bound of the back-off, of the first one too.
        multiplier: Factor from one bound to the next.
        patience_seconds: Time after its first failure for which a call is repeated, within its
            deadline. For a stream the time begins again with each reply.
    """

    attempts: int | None = None
    initial_seconds: float = 0.1
    most_seconds: float = 1.0
    multiplier: float = 2.0
    patience_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ValueError(f"attempts: got {self.attempts}, wanted at least 1")
        if not self.patience_seconds >= 0:
            raise ValueError(f"patience_seconds: got {self.patience_seconds}, wanted at least 0")
        if not (self.initial_seconds > 0 and self.most_seconds > 0 and self.multiplier >= 1):
            raise ValueError(
                f"retry: got {self}, wanted initial_seconds and most_seconds above 0 and a "
                "multiplier of at least 1"
            )

    @property
    def repeats(self) -> bool:
        """Whether failed calls are repeated at all."""
        return self.attempts != 1 and self.patience_seconds > 0

    def wait(self, attempt: int) -> float:
        """Returns the bound of the back-off, in seconds, after `attempt` (1 or more) failures."""
        try:
            grown = self.initial_seconds * self.multiplier ** (attempt - 1)
        except OverflowError:
            return self.most_seconds
        return min(self.most_seconds, grown)


@dataclass(frozen=True)
class Keepalive:
    """How a dead connection is detected while calls are in flight: by HTTP/2 pings.

    By default a server that hangs is noticed after at most 14 seconds; its calls then fail and
    are repeated on another connection.

    Attributes:
        interval_seconds: Time between two pings; a server may close connections that ping more
            often than every 10 seconds.
        timeout_seconds: Time without an answer to a ping after which a connection is dead.
    """

    interval_seconds: float = 10.0
    timeout_seconds: float = 4.0


def channel_arguments(
    keepalive: Keepalive, tls: Tls | None, connections: int = 1
) -> list[tuple[str, object]]:
    """Returns the arguments of a gRPC channel, one of `connections` to the same target."""
    arguments: list[tuple[str, object]] = [
        ("grpc.service_config", _SERVICE_CONFIG),
        # gRPC itself repeats calls that no server has seen, unless they are larger than this (its
        # default is 256 KiB). All other retries are made by `retries.Attempts`.
        ("grpc.per_rpc_retry_buffer_size", 256 * 2**20),
        # Channels with equal arguments would share their connections.
        ("grpc.use_local_subchannel_pool", int(connections > 1)),
        # A restarted server is noticed within a second, and a new address of it within five. With
        # gRPC's defaults that takes up to two minutes and half a minute.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.dns_min_time_between_resolutions_ms", 5000),
        # No limit: the server enforces its limits, and the client splits arrays to fit.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.keepalive_time_ms", round(1000 * keepalive.interval_seconds)),
        ("grpc.keepalive_timeout_ms", round(1000 * keepalive.timeout_seconds)),
        # By default a minute; keepalive_timeout_ms would then have no effect.
        ("grpc.http2.ping_timeout_ms", round(1000 * keepalive.timeout_seconds)),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC sizes its windows by pings that it sends while data arrives. On a slow link their
        # answers wait behind that data, and would exceed the time-out. A fixed window needs none.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 2**20),
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


def token_in(content: bytes) -> str:
    """Returns the token that a file holds: its first word.

    Raises:
        ValueError: There is none, or it cannot be sent in a header.
    """
    try:
        words = content.decode("ascii").split()
    except UnicodeDecodeError as error:
        raise ValueError("got non-ASCII characters, wanted a token") from error
    if not words:
        raise ValueError("got an empty file, wanted a token")
    if not words[0].isprintable():
        raise ValueError("got unprintable characters, wanted a token")
    return words[0]


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


def _content(source: Path | str | bytes | None) -> bytes | None:
    if isinstance(source, str):
        return source.encode() if "-----BEGIN " in source else Path(source).read_bytes()
    return source.read_bytes() if isinstance(source, Path) else source
