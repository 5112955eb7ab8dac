"""Where a job of `batch` is computed: by servers or in this process, here or as tasks of Ray."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentserve._cli import app
from latentserve._cli.connection import connect, job_connection
from latentserve._cli.failures import Usage
from latentserve._urls import is_url

if TYPE_CHECKING:
    from latentserve.client import Client
    from latentserve.jobs import RayRunner

# What is no host:port but may be an address of Ray; other words are sources, given in its place.
_RAY_ADDRESSES = ("auto", "local")


def client_of(options: argparse.Namespace) -> "Client":
    """Returns the client that plans the job and, without Ray, computes it.

    Raises:
        Usage, Failure: As from `connect`; or options contradict each other.
        LatentserveError: The models of `--in-process` cannot be loaded.
    """
    if options.ray and ":" not in options.ray and options.ray not in _RAY_ADDRESSES:
        raise Usage(
            f"--ray: got {options.ray!r}, wanted HOST:PORT or auto (sources come before --ray)"
        )
    if options.in_process:
        client: Client = _in_process(options).client()
        return client
    for name in ("models", "device"):
        if getattr(options, name) is not None:
            raise Usage(f"--{name}: wanted --in-process as well")
    return connect(options, options.patience)


def _in_process(options: argparse.Namespace, **more: Any) -> Any:
    return app.in_process(
        models=_absolute(options.models or ""),
        model=options.model,
        version=options.model_version,
        timeout=options.timeout,
        **{"device": options.device or "cpu", **more},
    )


def _absolute(models: str) -> str:
    """A folder of models as a worker in another working folder finds it."""
    return str(Path(models).absolute()) if models and not is_url(models) else models


def runner_of(options: argparse.Namespace, client: Any) -> "RayRunner | None":
    """Returns the runner of `--ray`; None without it."""
    if options.ray is None:
        return None
    from latentserve.jobs import RayRunner

    address = options.ray or None
    if not options.in_process:
        return RayRunner(job_connection(options, options.patience), address)
    # A task has one CPU, and perhaps a GPU: the only one that it sees.
    device = "cpu" if client.engine["device"] == "cpu" else "cuda"
    version = client.engine["onnxruntime"]
    loaded = _in_process(options, threads=1, device=device, onnxruntime=version)
    return RayRunner(loaded, address, gpus_per_task=int(device == "cuda"))
