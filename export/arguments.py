"""Arguments of `latentserve export`, `evaluate` and `import`, parsed without waiting for torch."""

import argparse
from pathlib import Path

from export.precisions import PRECISIONS, WEIGHTS
from export.sources.detect import KINDS
from latentserve._cli.arguments import (
    local_folder,
    number,
    positive_number,
    size,
    uint64,
    whole,
)
from latentserve._cli.common import HelpFormatter

_positive = whole(1, 2**31 - 1)


def export_parser() -> argparse.ArgumentParser:
    """Argument parser of `latentserve export`."""
    parser = argparse.ArgumentParser(
        prog="latentserve export",
        description="Export a finished run as the next version of a model: a bundle of ONNX\n"
        "graphs, verified against torch and measured on the test set. A bundle of an older\n"
        "schema is written again as today's, with the same graphs.",
        epilog="examples:\n  latentserve export runs/dense --to models/mnist\n"
        "  latentserve export runs/dense --to models/mnist-int8 --decoder int8\n"
        "  latentserve export models/mnist/2 --to models/mnist",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="run folder of `latentserve train` or the URL of its copy, or a bundle as "
        "MODELS/NAME/VERSION",
    )
    parser.add_argument(
        "--to",
        type=local_folder,
        required=True,
        metavar="MODELS/NAME",
        help="folder of the model, which gets a new version",
    )
    parser.add_argument(
        "--decoder",
        choices=PRECISIONS,
        default="fp32",
        help="precision of the decoder; int8 quantises weights and activations statically, except "
        "in the first and last layers (default: fp32)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="fp32",
        help="precision in which weights are stored: fp16 halves the files, and graphs compute in "
        "fp32 as before (default: fp32)",
    )
    _add_sign(parser)
    _add_measures(parser)
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    """Argument parser of `latentserve evaluate`."""
    parser = argparse.ArgumentParser(
        prog="latentserve evaluate",
        description="Measure a run or a bundle on its test set, without changing it.",
        epilog="examples:\n  latentserve evaluate runs/dense\n"
        "  latentserve evaluate models/mnist/2 --importance 1000 --seed 1",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "path",
        metavar="RUN_OR_BUNDLE",
        help="run folder or the URL of its copy, or bundle as MODELS/NAME/VERSION",
    )
    _add_measures(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def import_parser() -> argparse.ArgumentParser:
    """Argument parser of `latentserve import`."""
    parser = argparse.ArgumentParser(
        prog="latentserve import",
        description="Import an autoencoder that others have trained, as a bundle: ONNX graphs,\n"
        "verified against torch. What can be imported: docs/import.md.",
        epilog="examples:\n"
        "  latentserve import sdxl/vae --to models/sdxl\n"
        "  latentserve import taef2_decoder.pth --to models/taef2 --licence MIT\n"
        "  latentserve import mine.py:make --to models/mine --size 64 --trust-code",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder or file, or FILE.py:FACTORY")
    add(
        "--to",
        type=local_folder,
        required=True,
        metavar="MODELS/NAME",
        help="folder of the model, which must not be there yet",
    )
    add(
        "--new-version",
        action="store_true",
        help="if the model is there, add a version to it",
    )
    add(
        "--kind",
        choices=("auto", *sorted(KINDS)),
        default="auto",
        help="kind of the source (default: auto, told by its content)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration of a source that is one file of weights",
    )
    add(
        "--size",
        type=_size,
        metavar="N|HxW|any",
        help="height and width of all images, or any (default: any, where the model allows it)",
    )
    add("--scaling-factor", type=positive_number, metavar="X", help="scale of scaled latents")
    add("--shift-factor", type=number, metavar="X", help="shift of scaled latents")
    add("--prior", choices=("standard", "none"), help="whether N(0, I) is the prior to sample from")
    add(
        "--likelihood",
        choices=("bernoulli", "none"),
        help="whether the decoder's pixels are Bernoulli, with which images can be scored",
    )
    add(
        "--range",
        choices=("unit", "signed"),
        help="range of the source's pixels: unit for [0, 1], signed for [-1, 1]; the server's are "
        "always [0, 1] (default: what the kind has, unit for onnx and torch)",
    )
    add("--decoder-only", action="store_true", help="leave out the encoder")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="pictures for the golden rows and the model card (default: drawn from a seed)",
    )
    _add_sign(parser)
    add("--licence", default="", metavar="NAME", help="licence of the weights, for the model card")
    add("--dry-run", action="store_true", help="read the source, and print what would be made")
    add(
        "--trust-code",
        action="store_true",
        help="allow pickles and Python files of the source to run code",
    )
    return parser


def _add_sign(parser: argparse.ArgumentParser) -> None:
    """Adds the option that signs the new bundle."""
    parser.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help="sign the bundle with this private key (PEM), for servers that trust its public key: "
        "see docs/signing.md",
    )


def _add_measures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draws",
        type=_positive,
        default=1,
        metavar="N",
        help="draws of z per image for the ELBO (default: 1)",
    )
    parser.add_argument(
        "--seed",
        type=uint64,
        default=0,
        metavar="N",
        help="seed of all draws and samples (default: 0)",
    )
    parser.add_argument(
        "--importance",
        type=_count,
        default=0,
        metavar="K",
        help="also estimate the NLL by the importance-weighted bound with K draws per image, "
        "usually 1000 (default: 0, no NLL)",
    )
    parser.add_argument(
        "--importance-images",
        type=_positive,
        default=1000,
        metavar="N",
        help="test images for the NLL, evenly spaced (default: 1000)",
    )
    parser.add_argument(
        "--samples",
        type=_samples,
        default=10_000,
        metavar="N",
        help="number of generated images to judge with a digit classifier, MNIST only; 0 for none "
        "(default: 10000)",
    )
    parser.add_argument(
        "--data",
        help="data set, such as folder:PATH (default: the one it was trained on, at its old "
        "location)",
    )


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _samples(text: str) -> int:
    if text == "1":
        raise argparse.ArgumentTypeError("got 1, wanted 0, or 2 and more")
    return _count(text)


def _size(text: str) -> tuple[int, int] | str:
    if text == "any":
        return text
    return size(text) if "x" in text else (whole(1, 10**9 - 1)(text),) * 2
