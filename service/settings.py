"""Settings of the server, read from command line, environment and configuration file."""

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from common.memory import usable_memory
from latentserve._cli.common import HelpFormatter
from latentserve._urls import is_url
from service.errors import StartError
from service.hosts import is_loopback
from service.models.routes import Routes
from service.models.versions import Versions

_LAME_DUCK_SECONDS = 3.0
# By default, a quarter of the memory that a process has to spare may be in flight: calls hold up to
# about twice the bytes that are counted, requests that are being received as much again, and
# parsing takes copies (docs/performance.md).
_MIN_QUEUE_BYTES, _MAX_QUEUE_BYTES = 2**23, 2**29
_PROCESS_BYTES = 192 * 2**20
_MIN_COMPUTE_BYTES = 2**20
# Peak bytes per pixel while a picture with a palette is blended onto white, with some to spare.
_PIXEL_BYTES = 20


def _place(value: object) -> Path | str:
    if not isinstance(value, str | Path):
        raise ValueError(f"got {value!r}, wanted a path or a URL")
    return value if is_url(value) else Path(value)


def _versions(value: object) -> object:
    return Versions.parse(str(value)) if isinstance(value, str | int) else value


def _routes(value: object) -> object:
    return Routes.parse(value) if isinstance(value, str) else value


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(filter(None, map(str.strip, value.split(","))))
    return value


def _paths(value: object) -> object:
    if isinstance(value, str) and not _names(value):
        raise ValueError(f"got {value!r}, wanted names of files, separated by commas")
    return _names(value) if isinstance(value, str) else value


def _joined(names: tuple[str, ...]) -> str:
    return ",".join(names)


class Settings(BaseModel):
    """Settings of `latentserve serve`.

    A setting is taken from the command line (`--drain-seconds`), else from the environment
    (`LATENTSERVE_DRAIN_SECONDS`), else from the TOML file that `--config` or
    `LATENTSERVE_CONFIG` names (`drain_seconds = 30`), else it has its default. The docstring
    of a setting is the help text of its option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    models: Annotated[Path | str, PlainValidator(_place)] = (
        Path(__file__).resolve().parent.parent / "models"
    )
    """Folder of models, laid out as <name>/<version>/; or of a single model, or a single bundle. Or
    the URL of a folder of models in a store, such as s3://bucket/models."""
    cache_dir: Path | None = None
    """Folder for copies of models that a URL names; several servers may share it."""
    cache_bytes: int = Field(10 * 2**30, ge=0, le=2**60)
    """Size in bytes that the copies of models are kept below: those that were used last stay, and
    those in use in any case."""
    poll_seconds: float = Field(0.0, ge=0, le=10**6)
    """Seconds, give or take a tenth, after which the server looks for new models, and reloads if
    there are any; 0 for never by itself."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all interfaces, the default in the container images."""
    grpc_port: int = Field(50051, ge=0, le=65535)
    """Port for gRPC; 0 picks a free one and prints it on stdout."""
    http_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 8080
    """Port for /metrics, /healthz and /readyz over HTTP; 0 picks a free one, `off` for none."""
    gateway_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = "off"
    """Port for the same calls by HTTP, for curl, browsers and the like; 0 picks a free one and
    prints it on stdout, `off` for none."""
    gateway_open: bool = False
    """Serve the gateway on a host that is not loopback without a token file."""
    cors_origin: Annotated[tuple[str, ...], BeforeValidator(_names), PlainSerializer(_joined)] = ()
    """Origins of web pages that may call the gateway, besides its own: https://example.org, or
    several separated by commas, or * for all."""
    allowed_host: Annotated[tuple[str, ...], BeforeValidator(_names), PlainSerializer(_joined)] = ()
    """Names by which the gateway may be called on a loopback host, besides localhost: one, or
    several separated by commas."""
    workers: int = Field(1, ge=1, le=256)
    """Number of worker processes sharing the port. Use it when request handling, not inference,
    is the bottleneck."""
    transport: Literal["http2", "grpcio"] = "http2"
    """gRPC implementation: latentserve's own HTTP/2 server on asyncio, or the grpcio library."""
    device: str = "auto"
    """Device that runs the graphs: auto, cpu, cuda or cuda:N; only auto falls back to the CPU."""
    threads: int = Field(0, ge=0, le=1024)
    """Number of compute threads, each running one batch at a time; 0 for one per CPU."""
    batch_window_seconds: float = Field(0.0, ge=0, le=1)
    """Seconds that an incomplete batch waits for more rows."""
    default_model: str = ""
    """Model that answers calls without a model name."""
    versions: Annotated[Versions, BeforeValidator(_versions), PlainSerializer(str)] = Versions()
    """Versions to serve: latest, all or a number, and NAME=VERSIONS for single models, as in
    latest,mnist=2."""
    route: Annotated[Routes, BeforeValidator(_routes), PlainSerializer(str)] = Routes()
    """Percentages of the calls without a version that versions of a model answer, as in
    mnist=1:90,2:10."""
    max_rows: int = Field(4096, ge=1, le=1_000_000)
    """Maximum number of rows in a request."""
    max_message_bytes: int = Field(64 * 2**20, ge=4096, le=2**31 - 1)
    """Maximum size of a message in bytes, in either direction."""
    max_queue_rows: int = Field(65_536, ge=1, le=2**40)
    """Maximum number of rows in flight in all calls together; calls beyond it are rejected."""
    max_queue_bytes: Annotated[int, Field(ge=4096, le=2**50)] | None = None
    """Maximum number of bytes of images and latents in flight in all calls together."""
    max_pixels: int = Field(1_048_576, ge=1, le=2**40)
    """Maximum pixels of an image, height times width, of a model that takes images of any size."""
    max_compute_bytes: Annotated[int, Field(ge=2**20, le=2**50)] | None = None
    """Maximum memory in bytes that batches take while they are computed; those that need more
    wait."""
    max_rows_per_caller: int = Field(0, ge=0, le=2**40)
    """Maximum number of rows in flight of one caller in each worker; 0 for no limit per caller. A
    caller is identified by the name of its token, else by its address."""
    max_calls_per_caller: int = Field(0, ge=0, le=2**31 - 1)
    """Maximum number of calls in flight of one caller in each worker; 0 for no limit per caller."""
    max_score_draws: int = Field(5000, ge=0, le=1_000_000)
    """Maximum number of draws per row in Score."""
    max_connection_age_seconds: float = Field(600.0, ge=1, le=10**6)
    """Seconds after which clients have to reconnect, so that they discover new servers; calls in
    flight finish."""
    max_connection_age_grace_seconds: float = Field(60.0, ge=0, le=10**6)
    """On a connection past its maximum age, a call that waits for its caller, without a deadline,
    ends with UNAVAILABLE after so many seconds without a byte sent or received."""
    max_streams_per_connection: int = Field(1000, ge=1, le=2**31 - 1)
    """Maximum number of calls in flight on one connection; the client holds back further ones."""
    tls_cert: Path | None = None
    """Certificate chain (PEM) for serving over TLS; reread when it changes."""
    tls_key: Path | None = None
    """Private key (PEM) of the certificate."""
    tls_client_ca: Path | None = None
    """Certificates (PEM) of the authorities that sign clients' certificates, for mTLS."""
    token_file: Path | None = None
    """File of bearer tokens that callers may use, one per line; reread when it changes."""
    trust: Annotated[tuple[Path, ...], BeforeValidator(_paths)] = ()
    """Public key (PEM) that must have signed the bundles, or one of several: by repeating the
    option, or separated by commas in the environment. Other bundles are refused."""
    admin: bool = False
    """Serve AdminService, whose Reload reloads the models, as the signal SIGHUP does."""
    lame_duck_seconds: Annotated[float, Field(ge=0, le=600)] | None = None
    """Seconds after SIGTERM during which health is NOT_SERVING and calls are still accepted, so
    that load balancers stop sending calls before the drain. SIGINT skips the lame duck."""
    drain_seconds: float = Field(30.0, ge=0, le=3600)
    """Maximum number of seconds for calls in flight to finish after SIGTERM."""
    reflection: bool = False
    """Serve gRPC reflection, for grpcurl and similar tools."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of the messages that are logged, on stderr."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Format of the log; auto is text on a terminal and JSON elsewhere."""
    drift_share: float = Field(0.001, ge=0, le=0.1)
    """Share of a thread's time for decoding encoded images again, to measure their reconstruction
    error for the metrics; 0 for none."""
    otlp_endpoint: str = ""
    """Endpoint for OpenTelemetry traces, OTLP over gRPC, such as http://localhost:4317."""

    @property
    def lame_duck(self) -> float:
        """Seconds of the lame duck, with the default resolved.

        By default 0 for a single process on a loopback address, which no load balancer watches.
        """
        if self.lame_duck_seconds is not None:
            return self.lame_duck_seconds
        return _LAME_DUCK_SECONDS if self.workers > 1 or not is_loopback(self.host) else 0.0

    @property
    def gateway_hosts(self) -> tuple[str, ...] | None:
        """Names that requests to the gateway may have in Host; None if any may.

        A page on the Internet can make its own name resolve to a loopback address.
        """
        return self.allowed_host if is_loopback(self.host) else None

    @property
    def queue_bytes(self) -> int:
        """Maximum bytes in flight in all calls of a process, with the default resolved."""
        if self.max_queue_bytes is not None:
            return self.max_queue_bytes
        return default_queue_bytes(usable_memory() // self.workers)

    @property
    def compute_bytes(self) -> int:
        """Maximum memory of running batches in a process, with the default resolved."""
        if self.max_compute_bytes is not None:
            return self.max_compute_bytes
        return max(_MIN_COMPUTE_BYTES, usable_memory() // self.workers // 2)

    @property
    def max_picture_pixels(self) -> int:
        """Maximum pixels of a picture file: 64 million, or fewer (from 1 million).

        As many as fit into the memory of a process beyond that of calls in flight.
        """
        spare = usable_memory() // self.workers - _PROCESS_BYTES - 2 * self.queue_bytes
        return max(1_000_000, min(64_000_000, spare // _PIXEL_BYTES))


def default_queue_bytes(memory: int) -> int:
    """Default limit on the bytes in flight in a process.

    Args:
        memory: Bytes of memory that it may use.
    """
    spare = (memory - _PROCESS_BYTES) // 4
    return max(_MIN_QUEUE_BYTES, min(_MAX_QUEUE_BYTES, spare))


_FLAGS = {"grpc_port": "--port"}
# Defaults that the help describes in words.
_DEFAULTS = {
    "models": "models/ in the checkout",
    "cache_dir": "latentserve in the user's folder for caches",
    "cache_bytes": "10 GiB",
    "default_model": "the first by name",
    "max_queue_bytes": "512 MiB; smaller if memory is below 2.2 GiB",
    "max_compute_bytes": "half of the memory",
    "lame_duck_seconds": "3 with several workers or a host that is not loopback, else 0",
}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def variable(name: str) -> str:
    """The environment variable of a setting.

    It is never `LATENTSERVE_PORT`, which Kubernetes injects with another meaning for a service
    named latentserve.
    """
    return f"LATENTSERVE_{name.upper()}"


def parser() -> argparse.ArgumentParser:
    """Argument parser of `latentserve serve`, made from `Settings`."""
    result = argparse.ArgumentParser(
        prog="latentserve serve",
        description="Serve a folder of models over gRPC.",
        epilog="Each option may also be set in the environment (--drain-seconds as\n"
        "LATENTSERVE_DRAIN_SECONDS) or in the --config file (drain_seconds = 30); only --port\n"
        "has another name there, LATENTSERVE_GRPC_PORT and grpc_port. The command line wins\n"
        "over the environment, the environment over the file.\n\n"
        "example:\n  latentserve serve --models models --port 50051",
        formatter_class=HelpFormatter,
    )
    result.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with settings (default: none)"
    )
    for name, field in Settings.model_fields.items():
        description = (field.description or "").removesuffix(".")
        text = (
            f"{description[:1].lower()}{description[1:]} (default: {_shown(name, field.default)})"
        )
        if field.annotation is bool:
            action: Any = argparse.BooleanOptionalAction
            result.add_argument(flag(name), dest=name, action=action, default=None, help=text)
        else:
            metavar = _metavar(name, field.annotation)
            action = "append" if field.annotation == tuple[Path, ...] else "store"
            result.add_argument(flag(name), dest=name, action=action, metavar=metavar, help=text)
    return result


def _metavar(name: str, annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"{{{','.join(get_args(annotation))}}}"
    if annotation == tuple[Path, ...]:
        return "KEY"
    if name in ("models", "cache_dir"):
        return "FOLDER"
    if annotation in (Path, Path | None):
        return "FILE"
    return name.partition("_per_")[0].rpartition("_")[2].upper()


def _shown(name: str, default: object) -> str:
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float):
        return f"{default:g}"
    return "none" if default in (None, ()) else str(default) or "none"


def read_settings(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Reads the settings from command line, environment and file.

    Args:
        arguments: Command line after the command's name.
        environment: Environment variables.

    Raises:
        StartError: A value is invalid, or the file cannot be read. The message has the
            setting and its source, the value got and the values allowed.
        SystemExit: The command line is invalid, or requests help.
    """
    options = vars(parser().parse_args(arguments))
    config = options.pop("config") or environment.get("LATENTSERVE_CONFIG")
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in _read_file(Path(config)).items() if config else ():
        values[name], origin[name] = value, f"{name} in {config}"
    for name in Settings.model_fields:
        if environment.get(variable(name), "") != "" and not _is_injected(name, environment):
            values[name], origin[name] = environment[variable(name)], variable(name)
        if options[name] is not None:
            values[name], origin[name] = options[name], flag(name)
    try:
        settings = Settings.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "value_error":
            raise StartError(f"{origin[name]}: {first['ctx']['error']}") from error
        raise StartError(f"{origin[name]}: got {first['input']!r}, {first['msg']}") from error
    taken: dict[int | str, str] = {settings.grpc_port: "the port for gRPC"}
    for name in ("http_port", "gateway_port"):
        port = getattr(settings, name)
        if port in taken and port not in (0, "off"):
            option = flag(name)
            raise StartError(
                f"{option[2:]}: got {port}, which is {taken[port]} as well. Remedy: "
                f"another {option} (0 picks a free one, off opens none)"
            )
        taken[port] = f"that of {flag(name)}"
    if (
        settings.gateway_port != "off"
        and settings.token_file is None
        and not is_loopback(settings.host)
        and not settings.gateway_open
    ):
        raise StartError(
            f"gateway-port: got {settings.gateway_port} with host {settings.host} and no "
            "token-file: all who reach this machine could call it, from the pages of a browser "
            "too. Remedy: --token-file, or --gateway-open"
        )
    return settings


def injected_by_kubernetes(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Returns log lines about the variables that are ignored because Kubernetes has set them.

    For a service called latentserve-http, Kubernetes sets
    LATENTSERVE_HTTP_PORT=tcp://10.0.0.1:8080.

    Args:
        environment: Environment variables.
    """
    return [
        f"{variable(name)}: got {environment[variable(name)]!r}, which Kubernetes sets for a "
        "service of that name; ignored"
        for name in Settings.model_fields
        if _is_injected(name, environment)
    ]


def _is_injected(name: str, environment: Mapping[str, str]) -> bool:
    value = environment.get(variable(name), "")
    return name.endswith("_port") and value.startswith(("tcp://", "udp://", "sctp://"))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartError(f"config {path}: {error}") from error
