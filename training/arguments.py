"""Arguments of `latentserve train`, parsed without waiting for torch."""

import argparse
import re
from typing import get_args

from common.pictures import Fit
from latentserve._cli.arguments import local_folder, positive, store_url, uint64
from latentserve._cli.common import HelpFormatter
from training.data.sources import SOURCES
from training.presets import PRESETS

_EXAMPLES = """\
  latentserve train --data mnist --budget 3m --out runs/digits
  latentserve train --data folder:pictures --image-size 64 --out runs/pictures
  latentserve train --data folder:s3://bucket/photos --out runs/photos --copy-to s3://bucket/runs/1
  latentserve train --preset dense --data mnist --dry-run
  torchrun --nproc-per-node 2 -m latentserve train --preset conv --out runs/conv"""


def parser() -> argparse.ArgumentParser:
    """Argument parser of `latentserve train`."""
    width = max(map(len, PRESETS))
    presets = "\n".join(f"  {name:{width}} {preset.summary}" for name, preset in PRESETS.items())
    result = argparse.ArgumentParser(
        prog="latentserve train",
        # The formatter's `prog` ends in [options]. A run needs --out, a dry run alone does not.
        usage="%(prog)s --out FOLDER",
        description="Train a variational autoencoder into a run folder, for `latentserve export`.",
        epilog=f"presets:\n{presets}\n\nexamples:\n{_EXAMPLES}",
        formatter_class=HelpFormatter,
    )
    result.add_argument(
        "--preset",
        help="architecture and objective, see below (default: picked by the size of the images)",
    )
    result.add_argument(
        "--data",
        default="mnist",
        metavar="DATA",
        help=f"data set: {', '.join(sorted(SOURCES))} (downloaded once, to LATENTSERVE_DATA_DIR or "
        "the user's cache folder), folder:PATH (images of your own, each subfolder a class), "
        "parquet:PATH (a column of encoded images, a file or a folder of them), "
        "npy:IMAGES[,LABELS[,GROUPS]] or idx:IMAGES[,LABELS]; paths may be URLs such as "
        "s3://bucket/photos (default: mnist)",
    )
    result.add_argument(
        "--image-size",
        type=image_size,
        metavar="PIXELS",
        help="size that images are resized to: the side of a square, or height and width such as "
        "96x64 (default: their own size)",
    )
    result.add_argument(
        "--fit",
        choices=get_args(Fit),
        default="crop",
        help="crop images to the centre, or pad them with the background, where --image-size "
        "changes their aspect ratio (default: crop)",
    )
    result.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="colour behind transparent pixels and around padded images, #rrggbb or a name "
        "(default: white)",
    )
    result.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="1 for grey, 3 for RGB (default: as the images are)",
    )
    result.add_argument(
        "--bad-files",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about damaged pictures (default: refuse)",
    )
    result.add_argument(
        "--augment",
        metavar="NAMES",
        help="random changes of the training images: flip (left to right), shift (by up to a 16th "
        "of the sides), warp (turned, slanted and stretched a little), elastic (distorted "
        "smoothly), or several, as in flip,shift (default: those of the preset)",
    )
    length = result.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        default="3m",
        metavar="DURATION",
        help="CPU time per thread, such as 90s, 3m or 1.5h; converted to a number of steps by "
        "timing a few at the start (default: 3m)",
    )
    length.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="number of training steps of the autoencoder; a learned prior is fitted in further "
        "steps, not counted here (default: what the budget allows)",
    )
    result.add_argument(
        "--out",
        type=local_folder,
        metavar="FOLDER",
        help="run folder to write; required but by --dry-run",
    )
    result.add_argument(
        "--copy-to",
        type=store_url,
        metavar="URL",
        help="folder in object storage, such as s3://bucket/runs/x, that the run folder is copied "
        "to after each checkpoint; --resume fetches it where there is no --out",
    )
    result.add_argument(
        "--init",
        type=local_folder,
        metavar="RUN",
        help="run folder whose averaged weights the new run begins with, or a bundle; blocks and "
        "couplings that it lacks are added without effect at first (default: random weights)",
    )
    result.add_argument(
        "--seed",
        type=uint64,
        metavar="N",
        help="seed of the initial weights, the order of the images and all noise (default: 0)",
    )
    result.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a setting of the preset, such as beta=4 or layers=512:relu,256:relu; may be "
        "repeated",
    )
    result.add_argument(
        "--device",
        default="auto",
        help="device to train on: auto, cpu, cuda or cuda:N (default: auto)",
    )
    result.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype that the networks compute in (default: float32)",
    )
    result.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out, or start it if there is none",
    )
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be trained and what it would take (layers, parameters, memory, time "
        "of an epoch), after timing a few steps; write nothing",
    )
    return result


def image_size(text: str) -> tuple[int, int]:
    """Parses the size of images: the side of a square, or height and width as in `96x64`.

    Raises:
        argparse.ArgumentTypeError: `text` has another form.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"got {text}, wanted a whole number from 1, or a height and a width such as 96x64"
        )
    return int(match[1]), int(match[2] or match[1])
