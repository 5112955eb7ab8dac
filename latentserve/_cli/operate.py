"""`info`, `check` and `reload`: commands for operators."""

import argparse
import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from latentserve._cli.common import command
from latentserve._cli.connection import add_model, connect
from latentserve._client.memory import in_words

if TYPE_CHECKING:
    from latentserve.client import LatentScaling, ModelInfo, ServerInfo


def add(commands: Any) -> None:
    """Adds the commands `info`, `check` and `reload`."""
    info = command(
        commands,
        "info",
        _info,
        "show a server and the models it serves",
        "latentserve info --server localhost:50051",
        "latentserve info --json | jq '.models[].name'",
    )
    add_model(info)
    info.add_argument("--json", action="store_true", help="print everything as JSON")

    check = command(
        commands,
        "check",
        _check,
        "exit with status 0 if a server is ready, else with 1",
        "latentserve check && echo ready",
        timeout=5.0,
    )
    check.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="name of the model to check (default: the whole server)",
    )

    reload = command(
        commands,
        "reload",
        _reload,
        "reload the models folder of a server that runs with --admin",
        "latentserve reload",
        timeout=600.0,
    )
    reload.add_argument("--json", action="store_true", help="print the result as JSON")


def _info(options: argparse.Namespace) -> int:
    server: ServerInfo | None = None
    with connect(options) as client:
        if options.model or options.model_version:
            models = [client.model(options.model, version=options.model_version)]
        else:
            server = client.info()
            models = list(server.models)
    if options.json:
        print(json.dumps(_plain(server or models[0]), indent=2))
        return 0
    if server is not None:
        print(f"latentserve {server.version} at {options.server}, {_runtime(server)}")
        for line in _limits(server):
            print(line)
    for model in models:
        if server is not None:
            print()
        print("\n".join(_described(model, server.default_model if server else "")))
    if not models:
        print("no model is loaded")
    return 0


def _runtime(server: "ServerInfo") -> str:
    device = f", device {server.device}" if server.device else ""
    return f"onnxruntime {server.onnxruntime_version}{device}"


def _limits(server: "ServerInfo") -> Iterator[str]:
    yield f"limits: {server.max_rows} rows, {server.max_message_bytes} bytes a message"
    yield (
        f"in flight: {server.max_queue_rows} rows, {server.max_queue_bytes} bytes; "
        f"score: {server.max_score_draws} draws"
    )
    if server.max_pixels:
        yield f"images of free size: at most {server.max_pixels} pixels"
    for route in server.routes:
        yield f"route: {route.name}/{route.version} answers {route.percent} % of calls"


def _described(model: "ModelInfo", default: str) -> Iterator[str]:
    is_default = " (default)" if model.name == default else ""
    made = f"made {model.created_at:%Y-%m-%d}"
    yield ", ".join((f"{model.name}/{model.version}{is_default}: {_source(model)}", made))
    likelihood = "no likelihood" if model.likelihood == "none" else model.likelihood
    yield f"  images     {_times(model.image_shape)}, {likelihood}"
    if (sizes := model.sizes) is not None:
        yield (
            f"  sizes      multiples of {sizes.multiple} from {sizes.least}, up to "
            f"{sizes.most_pixels} pixels; an axis of the latents is {sizes.factor} times shorter"
        )
    posterior = "no encoder" if model.posterior == "none" else _explained(model.posterior)
    yield (
        f"  latents    {_times(model.latent_shape)}, posterior {posterior}, prior "
        f"{_explained(model.prior)}"
    )
    if model.latent_scaling is not None:
        yield f"  scaled     {_scaling(model.latent_scaling)}"
    yield f"  labels     {_listed(model.labels)}"
    if model.conditional:
        yield "  conditional: images are encoded, decoded and scored given their label"
    yield f"  decoder    {model.precision}"
    yield f"  devices    {', '.join(f'{name} {on}' for name, on in model.devices.items())}"
    yield f"  max rows   {model.max_rows}{_at_once(model)}"
    if model.memory_bytes:
        yield f"  memory     {in_words(model.memory_bytes)}{_row_memory(model)}"
    for line in _figures(model.metrics):
        yield f"  {line}"


def _at_once(model: "ModelInfo") -> str:
    """Describes how many rows are computed at once, and why."""
    if not model.rows_at_once:
        return ""
    because = {True: ": they are slow", False: ": their bits would depend on the batch", None: ""}
    return f", {model.rows_at_once} computed at once{because[model.batch_invariant]}"


# Explanations of the posteriors and priors whose names are not clear by themselves.
_EXPLAINED = {
    "delta": "plain autoencoder",
    "none": "cannot be sampled from",
    "gmm": "mixture of Gaussians",
    "flow": "normalizing flow",
    "flow-gmm": "flow over a mixture of Gaussians",
}


def _source(model: "ModelInfo") -> str:
    """Describes where a model comes from."""
    origin = model.origin
    if origin is None:
        return f"trained on {model.dataset or 'unknown data'}"
    licence = f", licence {origin.licence}" if origin.licence else ""
    return f"from {origin.kind} {origin.class_name}".rstrip() + licence


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _scaling(scaling: "LatentScaling") -> str:
    if scaling.scale is None:
        return f"(latent - mean) / std, for each of {len(scaling.std)} channels"
    shift = f" - {scaling.shift:g}" if scaling.shift else ""
    return f"(latent{shift}) * {scaling.scale:g}" if shift else f"latent * {scaling.scale:g}"


def _row_memory(model: "ModelInfo") -> str:
    """Describes the memory of computing one row of the stated size."""
    if not model.bytes_per_pixel:
        return ""
    _, height, width = model.image_shape
    row = in_words(round(model.bytes_per_pixel * height * width))
    return f", and {row} for each image of {height} x {width}"


def _explained(name: str) -> str:
    return f"{name} ({_EXPLAINED[name]})" if name in _EXPLAINED else name


def _listed(labels: Sequence[str]) -> str:
    """Formats labels as a list, each preceded by its index unless the label is the index."""
    if not labels:
        return "none"
    names = (name if name == str(index) else f"{index} {name}" for index, name in enumerate(labels))
    return textwrap.fill(", ".join(names), 87, subsequent_indent=" " * 13)


def _figures(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yields the main metrics of a model, one per line."""
    if "elbo" in metrics:
        bits = metrics.get("bits_per_dimension")
        per_dimension = "" if bits is None else f", {bits:.3f} bits per dimension"
        yield f"test ELBO  {metrics['elbo']:.2f} nats{per_dimension} (lower is better)"
    elif "reconstruction" in metrics:
        yield f"test reconstruction  {metrics['reconstruction']:.2f} nats (lower is better)"
    if {"nll", "nll_stderr", "importance_draws"} <= metrics.keys():
        yield (
            f"test NLL   {metrics['nll']:.2f} +- {metrics['nll_stderr']:.2f} nats "
            f"(importance-weighted, K = {metrics['importance_draws']:.0f})"
        )
    if "psnr" in metrics:
        ssim = f", SSIM {metrics['ssim']:.3f}" if "ssim" in metrics else ""
        yield f"reconstructions  PSNR {metrics['psnr']:.2f} dB{ssim}"
    if "fid" in metrics:
        yield f"samples    classifier-FID {metrics['fid']:.2f} (lower is better)"
    if "label_agreement" in metrics:
        yield f"by label   {metrics['label_agreement']:.1%} match the requested label"


def _plain(value: Any) -> Any:
    """Converts a dataclass of the client to plain JSON types."""

    def other(leaf: Any) -> Any:
        # Everything else is an array, and testing for that would import NumPy.
        return leaf.isoformat() if isinstance(leaf, datetime) else leaf.tolist()

    return json.loads(json.dumps(dataclasses.asdict(value), default=other))


def _check(options: argparse.Namespace) -> int:
    with connect(options) as client:
        serving = client.is_serving(options.model)
    print("SERVING" if serving else "NOT_SERVING")
    return 0 if serving else 1


def _reload(options: argparse.Namespace) -> int:
    with connect(options) as client:
        done = client.reload()
    if options.json:
        print(json.dumps(_plain(done), indent=2))
    else:
        for what in ("serving", "added", "removed"):
            names = [f"{model.name}/{model.version}" for model in getattr(done, what)]
            print(f"{what:8} {', '.join(names) or 'none'}")
    for model in done.refused:
        name = f"{model.name}/{model.version}" if model.version else model.name
        print(f"latentserve reload: {name} is refused: {model.problem}", file=sys.stderr)
    return 1 if done.refused else 0
