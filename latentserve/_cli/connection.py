"""Options that choose the server and the model, and the client made from them."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentserve._cli.arguments import positive_number, version
from latentserve._cli.failures import Failure, Usage
from latentserve._files import is_read_once, reason

if TYPE_CHECKING:
    from latentserve.client import Client, Tls
    from latentserve.jobs import Connection

# Long enough for a server that restarts, short enough for a wrong address at a terminal.
_PATIENCE_SECONDS = 2.0


def add_connection(parser: argparse.ArgumentParser, timeout: float) -> None:
    """Adds the options of the connection: address, deadline, TLS and token.

    Args:
        parser: Parser of a command.
        timeout: Default of `--timeout`, in seconds.
    """
    group = parser.add_argument_group(
        "connection",
        "Each option may also be set in the environment, for example --tls-ca by "
        "LATENTSERVE_TLS_CA.",
    )
    group.add_argument(
        "--server",
        default=_default_server(),
        metavar="HOST:PORT",
        help="address of the server (default: %(default)s)",
    )
    group.add_argument(
        "--timeout",
        type=positive_number,
        default=os.environ.get("LATENTSERVE_TIMEOUT") or f"{timeout:g}",
        metavar="SECONDS",
        help="deadline of each request, in seconds (default: %(default)s)",
    )
    group.add_argument(
        "--tls",
        action="store_true",
        default=os.environ.get("LATENTSERVE_TLS", "") not in ("", "0"),
        help="connect over TLS; implied by the other --tls options",
    )
    for name, text in (
        (
            "ca",
            "CA certificates (PEM) to verify the server with (default: those built into gRPC)",
        ),
        ("cert", "client certificate (PEM), for a server that requires one"),
        ("key", "private key (PEM) of the client certificate"),
    ):
        group.add_argument(
            f"--tls-{name}",
            type=Path,
            metavar="FILE",
            default=_path(f"LATENTSERVE_TLS_{name.upper()}"),
            help=text,
        )
    group.add_argument(
        "--tls-name",
        metavar="NAME",
        default=os.environ.get("LATENTSERVE_TLS_NAME", ""),
        help="name to expect in the server's certificate (default: the host of --server)",
    )
    group.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        default=_path("LATENTSERVE_TOKEN_FILE"),
        help="file that holds the token, for a server that requires one",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `--model` and `--model-version`."""
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="name of the model (default: the server's default model)",
    )
    parser.add_argument(
        "--model-version",
        type=version,
        default=0,
        metavar="N",
        help="version of the model (default: the highest one served)",
    )


def connect(options: argparse.Namespace, patience: float = _PATIENCE_SECONDS) -> "Client":
    """Makes a client from the options of the connection.

    Args:
        options: Parsed options.
        patience: Seconds for which a failed call is repeated.

    Raises:
        Usage: `--tls-cert` is given without `--tls-key`, or the other way round.
        Failure: A certificate, key or token file cannot be read or has the wrong content.
    """
    from latentserve.client import Client, Retry

    return Client(**connection(options), retry=Retry(patience_seconds=patience))


def job_connection(options: argparse.Namespace, patience: float) -> "Connection":
    """Returns what the workers of a job connect by, from the options of the connection.

    Raises:
        Usage: As from `connect`.
        Failure: As from `connect`; or one of the files can be read only once.
    """
    from latentserve.jobs import Connection

    for name in ("tls_ca", "tls_cert", "tls_key", "token_file"):
        path: Path | None = getattr(options, name)
        if path is not None and is_read_once(path):
            raise Failure(
                f"--{name.replace('_', '-')}: {path}: got a pipe or a device, wanted a regular "
                "file, since each worker reads it"
            )
    connection(options)  # reports unusable files
    return Connection(
        options.server,
        options.timeout,
        patience,
        tls=options.tls,
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        tls_name=options.tls_name,
        token_file=options.token_file,
    )


def connection(options: argparse.Namespace) -> dict[str, Any]:
    """Returns keyword arguments of Client and AsyncClient from the options of the connection.

    Raises:
        Usage: `--tls-cert` is given without `--tls-key`, or the other way round.
        Failure: A certificate, key or token file cannot be read or has the wrong content.
    """
    arguments = {"target": options.server, "timeout": options.timeout, "tls": _tls(options)}
    token_file: Path | None = options.token_file
    if token_file is None:
        return arguments

    first = _token(token_file)  # reports an unusable file before the first call
    if is_read_once(token_file):  # such as the shell's <(...)
        return arguments | {"token": first}
    # Read again for each call: tokens may be rotated while a job runs.
    return arguments | {"token": lambda: _token(token_file)}


def _tls(options: argparse.Namespace) -> "Tls | None":
    from latentserve.client import Tls

    if (options.tls_cert is None) != (options.tls_key is None):
        given, missing = ("cert", "key") if options.tls_cert else ("key", "cert")
        raise Usage(f"--tls-{given}: wanted --tls-{missing} as well")
    files = (options.tls_ca, options.tls_cert, options.tls_key)
    if not (options.tls or options.tls_name or any(files)):
        return None
    return Tls(
        ca=_pem("--tls-ca", options.tls_ca),
        certificate=_pem("--tls-cert", options.tls_cert),
        key=_pem("--tls-key", options.tls_key),
        server_name=options.tls_name,
    )


def _pem(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    content = _read(option, path)
    if b"-----BEGIN " not in content:
        # gRPC itself would only report that it cannot connect.
        raise Failure(f"{option}: {path}: not a PEM file")
    return content


def _token(path: Path) -> str:
    from latentserve._client.options import token_in

    try:
        return token_in(_read("--token-file", path))
    except ValueError as error:
        raise Failure(f"--token-file: {path}: {error}") from error


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Failure(f"{option}: {path}: {reason(error)}") from error


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _default_server() -> str:
    port = os.environ.get("LATENTSERVE_GRPC_PORT")
    # For a service called latentserve-grpc, Kubernetes sets it to tcp://10.0.0.1:50051.
    if not port or "://" in port:
        port = "50051"
    return os.environ.get("LATENTSERVE_SERVER") or f"localhost:{port}"
