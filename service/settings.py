"""The server's settings: one record, read from four places in one stated order."""

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from service.errors import StartError
from service.models.versions import Versions


def _versions(value: object) -> object:
    return Versions.parse(str(value)) if isinstance(value, str | int) else value


class Settings(BaseModel):
    """What an operator can set.

    Each is taken from the command line (`--drain-seconds`), else the environment
    (`LATENTSERVE_DRAIN_SECONDS`), else the file that `--config` or
    `LATENTSERVE_CONFIG` names (TOML, `drain_seconds = 30`), else its default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    models: Path = Path(__file__).resolve().parent.parent / "models"
    """Folder of the models, <name>/<version>/."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all (the images set that)."""
    grpc_port: int = Field(50051, ge=0, le=65535)
    """Port for gRPC; 0 picks a free one and says which on stdout."""
    http_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 8080
    """Port for /metrics, /healthz and /readyz by HTTP; 0 picks a free one, off is none."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that serve on the same port, each with limits of its own; for a server whose
    Python, and not its graphs, is what takes its time."""
    transport: Literal["http2", "grpcio"] = "http2"
    """What carries the calls: http2, our own HTTP/2 on asyncio, or grpcio, gRPC's library."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N. Only auto may fall back to the CPU."""
    threads: int = Field(0, ge=0, le=1024)
    """Threads that compute, each a batch of its own; 0 for as many as this process has CPUs."""
    batch_window_seconds: float = Field(0.0, ge=0, le=1)
    """How long a batch that is not full waits for more rows; 0 for not at all."""
    default_model: str = ""
    """Model that an empty name means; empty for the first in alphabetical order."""
    versions: Annotated[Versions, BeforeValidator(_versions), PlainSerializer(str)] = Versions()
    """Which versions to serve: latest, all, a number, or NAME=one of these, with commas."""
    max_rows: int = Field(4096, ge=1, le=1_000_000)
    """Most rows in one request."""
    max_message_bytes: int = Field(64 * 2**20, ge=4096, le=2**31 - 1)
    """Most bytes in one message, in either direction."""
    max_queue_rows: int = Field(65_536, ge=1, le=2**40)
    """Most rows in flight, all calls together; more are refused at once."""
    max_queue_bytes: int = Field(2**29, ge=4096, le=2**50)
    """Most bytes of images and latents in flight, all calls together."""
    max_score_draws: int = Field(5000, ge=0, le=1_000_000)
    """Most draws a row in Score."""
    max_connection_age_seconds: float = Field(600.0, ge=1, le=10**6)
    """Age at which a connection is to be made anew, so that clients find new servers; calls
    in flight finish."""
    tls_cert: Path | None = None
    """Certificate chain in PEM, for an encrypted port; reread when it changes."""
    tls_key: Path | None = None
    """Its private key in PEM."""
    tls_client_ca: Path | None = None
    """Certificates in PEM that clients' certificates must be signed by (mTLS)."""
    token_file: Path | None = None
    """File with the tokens that callers may carry, one a line; reread when it changes."""
    admin: bool = False
    """Serve AdminService, whose Reload does what SIGHUP does."""
    drain_seconds: float = Field(30.0, ge=0, le=3600)
    """How long work in flight may take to finish after SIGTERM."""
    reflection: bool = False
    """Serve gRPC reflection, for grpcurl and the like."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much to log, on stderr."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """auto is text at a terminal and JSON elsewhere."""
    otlp_endpoint: str = ""
    """Where to send OpenTelemetry traces by OTLP over gRPC, for example http://localhost:4317."""


_FLAGS = {"grpc_port": "--port"}


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def variable(name: str) -> str:
    """The environment variable of a setting.

    Never `LATENTSERVE_PORT`: Kubernetes sets that, to something else, for a
    service called latentserve.
    """
    return f"LATENTSERVE_{name.upper()}"


def parser() -> argparse.ArgumentParser:
    """The arguments of `latentserve serve`, made from `Settings`."""
    result = argparse.ArgumentParser(
        prog="latentserve serve",
        description="Serve the models of a folder over gRPC.",
        epilog="Each option may also be an environment variable (--drain-seconds is "
        "LATENTSERVE_DRAIN_SECONDS, --port is LATENTSERVE_GRPC_PORT) or a line of the file "
        "(drain_seconds = 30). Order: command line, environment, file, default.\n\n"
        "example:\n  latentserve serve --models models --port 50051",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    for name, field in Settings.model_fields.items():
        text = f"{field.description} Default: {_shown(name, field.default)}."
        if field.annotation is bool:
            action: Any = argparse.BooleanOptionalAction
            result.add_argument(flag(name), dest=name, action=action, default=None, help=text)
        else:
            shown = flag(name)[2:].upper().replace("-", "_")
            result.add_argument(flag(name), dest=name, metavar=shown, help=text)
    return result


def _shown(name: str, default: object) -> str:
    if name == "models":
        return "those of the project"
    if isinstance(default, Versions):
        return default.general
    return "none" if default in ("", None) else str(default)


def read_settings(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Settings:
    """Reads the settings from all four places.

    Args:
        arguments: The command line, without the command's name.
        environment: The environment variables.

    Raises:
        StartError: A value is wrong, or the file cannot be read; the message names
            the setting, where it came from, the value got and the value wanted.
        SystemExit: The command line does not parse, or asks for help.
    """
    options = vars(parser().parse_args(arguments))
    config = options.pop("config") or environment.get("LATENTSERVE_CONFIG")
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in _read_file(Path(config)).items() if config else ():
        values[name], origin[name] = value, f"{name} in {config}"
    for name in Settings.model_fields:
        if environment.get(variable(name), "") != "":
            values[name], origin[name] = environment[variable(name)], variable(name)
        if options[name] is not None:
            values[name], origin[name] = options[name], flag(name)
    try:
        return Settings.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "value_error":
            raise StartError(f"{origin[name]}: {first['ctx']['error']}") from error
        raise StartError(f"{origin[name]}: got {first['input']!r}, {first['msg']}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartError(f"config {path}: {error}") from error
