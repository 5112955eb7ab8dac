"""The `latentserve` command."""

import argparse
import io
import os
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve import __version__, _app
from latentserve._arguments import positive, uint64

_DESCRIPTION = "Train, export and serve variational autoencoders, and call them."


class _Failure(Exception):
    """Told to the person in one line; the exit status is 1."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Without the program's name; `sys.argv` by default.

    Returns:
        The exit status: 0, 1 where the command failed, 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in _app.COMMANDS:
        try:
            return _app.run(arguments[0], arguments[1:])
        except KeyboardInterrupt:
            return 130
    options = _parser().parse_args(arguments)
    # grpc takes a while to import; `--help` need not wait for it.
    from latentserve.errors import LatentserveError

    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (LatentserveError, _Failure, ValueError, TypeError, OSError) as error:
        print(f"latentserve {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, _app.COMMANDS))
    application = "\n".join(
        f"  {name:{width}}  {command.summary}" for name, command in _app.COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="latentserve",
        description=_DESCRIPTION,
        epilog=f"commands of the application (a checkout or an image):\n{application}\n\n"
        "`latentserve COMMAND --help` tells more and gives an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentserve {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands that call a server"
    )

    info = _command(commands, "info", _info, "tell what a server is and which models it serves")
    info.epilog = "example:\n  latentserve info --server localhost:50051"

    check = _command(commands, "check", _check, "exit with 0 if a server is ready, 1 if not")
    check.add_argument("--model", default="", help="ask for one model and not for the server")
    check.epilog = "example:\n  latentserve check && echo ready"
    check.set_defaults(timeout=5.0)

    encode = _command(commands, "encode", _encode, "map images to posteriors")
    encode.add_argument(
        "images",
        type=Path,
        metavar="IMAGES.npy",
        help="[N, C, H, W], [N, H, W] or [N, C*H*W]; uint8, or floats in [0, 1]",
    )
    encode.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("posterior.npz"),
        help="npz file with mean and, where there are any, log_var and z (default: posterior.npz)",
    )
    encode.add_argument("--seed", type=uint64, help="draw z as well, with this seed")
    _model(encode)
    encode.epilog = "example:\n  latentserve encode digits.npy -o posterior.npz"

    decode = _command(commands, "decode", _decode, "map latents to images")
    decode.add_argument(
        "latents",
        type=Path,
        metavar="LATENTS",
        help="npy file [N, D], or the npz file of `encode` (its z, else its mean)",
    )
    _pictures(decode, "decoded.png")
    _model(decode)
    decode.epilog = "example:\n  latentserve decode posterior.npz -o decoded.png"

    sample = _command(commands, "sample", _sample, "draw new images")
    sample.add_argument(
        "-n", "--count", type=positive, help="how many (default: 100; by label: 10 of each)"
    )
    sample.add_argument("--seed", type=uint64, help="the same images every time (default: fresh)")
    sample.add_argument(
        "--offset", type=uint64, default=0, help="first image of the seed's sequence"
    )
    which = sample.add_mutually_exclusive_group()
    which.add_argument(
        "--label", type=int, help="number of the class wanted, where the model knows classes"
    )
    which.add_argument(
        "--by-label", action="store_true", help="so many of each class, a row of the grid for each"
    )
    sample.add_argument("--temperature", type=float, help="below 1: more typical (default: 1)")
    sample.add_argument("--truncation", type=float, help="bound on the noise (default: none)")
    _pictures(sample, "samples.png")
    _model(sample)
    sample.epilog = (
        "examples:\n  latentserve sample -n 100 --seed 7 -o digits.png\n"
        "  latentserve sample -n 20 --label 7 -o sevens.png\n"
        "  latentserve sample --by-label -o classes.png"
    )
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--server",
        default=_default_server(),
        help="address (default: LATENTSERVE_SERVER, else %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds (default: %(default)g)"
    )
    parser.set_defaults(run=run)
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="its name (default: the server's default)")
    parser.add_argument("--model-version", type=int, default=0, help="(default: the one served)")


def _pictures(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "-o",
        "--output",
        type=_picture,
        default=Path(default),
        help=f"a grid as .png, or the float32 array as .npy (default: {default})",
    )
    parser.add_argument("--columns", type=positive, help="images in a row of the grid")
    parser.add_argument("--zoom", type=positive, default=2, help="size of a pixel (default: 2)")


def _picture(text: str) -> Path:
    if Path(text).suffix not in (".png", ".npy"):
        raise argparse.ArgumentTypeError(f"got {text}, wanted a name ending in .png or .npy")
    return Path(text)


def _default_server() -> str:
    port = os.environ.get("LATENTSERVE_GRPC_PORT", "50051")
    return os.environ.get("LATENTSERVE_SERVER", f"localhost:{port}")


def _client(options: argparse.Namespace) -> Any:
    from latentserve.client import Client

    return Client(options.server, timeout=options.timeout)


def _info(options: argparse.Namespace) -> int:
    with _client(options) as client:
        info = client.info()
    print(f"latentserve {info.version} at {options.server}, onnxruntime {info.onnxruntime_version}")
    print(f"limits: {info.max_rows} rows, {info.max_message_bytes} bytes a message")
    for model in info.models:
        default = " (default)" if model.name == info.default_model else ""
        channels, height, width = model.image_shape
        made = f"{model.created_at:%Y-%m-%d}"
        print(f"\n{model.name}/{model.version}{default}: trained on {model.dataset}, made {made}")
        print(f"  images     {channels} x {height} x {width}, {model.likelihood}")
        print(
            f"  latents    {model.latent_dim}, posterior {_explained(model.posterior)}, prior "
            f"{_explained(model.prior)}"
        )
        print(f"  labels     {_listed(model.labels)}")
        print(f"  decoder    {model.precision}")
        print(f"  devices    {', '.join(f'{name} {on}' for name, on in model.devices.items())}")
        print(f"  max rows   {model.max_rows}")
        for line in _figures(model.metrics):
            print(f"  {line}")
    if not info.models:
        print("no model is loaded")
    return 0


_EXPLAINED = {
    "delta": "plain autoencoder",
    "none": "cannot be sampled from",
    "gmm": "mixture of Gaussians",
    "flow": "normalizing flow",
    "flow-gmm": "flow over a mixture of Gaussians",
}


def _explained(kind: str) -> str:
    return f"{kind} ({_EXPLAINED[kind]})" if kind in _EXPLAINED else kind


def _listed(labels: Sequence[str]) -> str:
    """Labels with their numbers, where these are not their names."""
    if not labels:
        return "none"
    names = (name if name == str(index) else f"{index} {name}" for index, name in enumerate(labels))
    return textwrap.fill(", ".join(names), 87, subsequent_indent=" " * 13)


def _figures(metrics: Mapping[str, float]) -> Iterator[str]:
    """What was measured, a line for each figure that a person looks for first."""
    if "elbo" in metrics:
        yield f"test ELBO  {metrics['elbo']:.2f} nats (lower is better)"
    elif "reconstruction" in metrics:
        yield f"test reconstruction  {metrics['reconstruction']:.2f} nats (lower is better)"
    if {"nll", "nll_stderr", "importance_draws"} <= metrics.keys():
        yield (
            f"test NLL   {metrics['nll']:.2f} +- {metrics['nll_stderr']:.2f} nats "
            f"(importance-weighted, K = {metrics['importance_draws']:.0f})"
        )
    if "fid" in metrics:
        yield f"samples    classifier-FID {metrics['fid']:.2f} (lower is better)"
    if "label_agreement" in metrics:
        yield f"by label   {metrics['label_agreement']:.1%} are what was asked for"


def _check(options: argparse.Namespace) -> int:
    with _client(options) as client:
        serving = client.is_serving(options.model)
    print("SERVING" if serving else "NOT_SERVING")
    return 0 if serving else 1


def _encode(options: argparse.Namespace) -> int:
    images = _load(options.images, ())
    with _client(options) as client:
        posterior = client.encode(
            images, seed=options.seed, model=options.model, version=options.model_version
        )
    fields = {"mean": posterior.mean, "log_var": posterior.log_var, "z": posterior.z}
    # A plain autoencoder has no log_var.
    arrays = {name: array for name, array in fields.items() if array is not None}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    _write(options.output, buffer.getvalue(), f"{' and '.join(arrays)} of {len(images)} images")
    return 0


def _decode(options: argparse.Namespace) -> int:
    latents = _load(options.latents, ("z", "mean"))
    with _client(options) as client:
        images = client.decode(latents, model=options.model, version=options.model_version)
    _write_images(options, images)
    return 0


def _sample(options: argparse.Namespace) -> int:
    labels, seed, pieces = [options.label], options.seed, []
    with _client(options) as client:
        if options.by_label:
            model = client.model(options.model, version=options.model_version)
            if not model.labels:
                raise _Failure(f"--by-label: the prior of {model.name} knows no classes")
            labels = list(range(len(model.labels)))
        count = options.count or (10 if options.by_label else 100)
        for label in labels:
            samples = client.sample_with_latents(
                count,
                seed=seed,
                offset=options.offset,
                label=label,
                temperature=options.temperature,
                truncation=options.truncation,
                model=options.model,
                version=options.model_version,
            )
            seed = samples.seed  # the same noise for each class
            pieces.append(samples.images)
    if options.by_label and options.columns is None:
        options.columns = count
    _write_images(options, np.concatenate(pieces), f", seed {seed}")
    return 0


def _load(path: Path, keys: tuple[str, ...]) -> NDArray[Any]:
    """Reads an npy file, or the first of some arrays of an npz file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            for key in keys:
                if key in loaded.files:
                    array: NDArray[Any] = loaded[key]
                    return array
            found = ", ".join(loaded.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _Failure(f"{path}: {error}") from error
    wanted = f"an npy file, or an npz file with {' or '.join(keys)}" if keys else "an npy file"
    raise _Failure(f"{path}: got an npz file with {found}, wanted {wanted}")


def _write_images(options: argparse.Namespace, images: NDArray[Any], remark: str = "") -> None:
    from latentserve._png import encode_png, grid

    what = f"{len(images)} images{remark}"
    if options.output.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, images)
        _write(options.output, buffer.getvalue(), what)
        return
    pixels = np.rint(images * np.float32(255)).astype(np.uint8)
    _write(options.output, encode_png(grid(pixels, options.columns, zoom=options.zoom)), what)


def _write(path: Path, content: bytes, what: str) -> None:
    from latentserve._files import atomic_write

    atomic_write(path, content)
    print(f"{path}: {what}")
