"""`batch encode`, `batch decode` and `batch sample`: resumable jobs over whole data sets."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from latentserve._cli.arguments import duration, positive
from latentserve._cli.batch_run import with_progress
from latentserve._cli.common import (
    add_draw,
    add_resize,
    add_sample_size,
    add_scaled,
    add_size,
    command,
    listing,
    resize_of,
)
from latentserve._cli.connection import add_model
from latentserve._cli.generate import add_sampling
from latentserve._cli.labels import add_label, job_label

if TYPE_CHECKING:
    from latentserve.client import Client
    from latentserve.jobs import Finished

_SHARD_ROWS = 10_000


def add(commands: Any) -> None:
    """Adds the `batch` command with its subcommands `encode`, `decode` and `sample`."""
    batch = commands.add_parser(
        "batch",
        description="Encode, decode or sample a whole data set into a folder of shards.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    jobs = batch.add_subparsers(dest="job", required=True, metavar="JOB", help="see below")

    encode = _job(
        jobs,
        "encode",
        _encode,
        "map images to posteriors: mean, log_var and, if drawn, z",
        "latentserve batch encode images.npy --to latents",
        "latentserve batch encode photos/ --resize --format parquet --to latents",
        "latentserve batch encode photos/ --bucket 512 --to latents",
        "latentserve batch encode digits.npy --labels labels.npy --to latents",
    )
    encode.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="npy files, or PNG, JPEG and WebP files and folders of them; paths or URLs",
    )
    add_resize(encode)
    add_size(encode)
    encode.add_argument(
        "--bucket",
        type=positive,
        metavar="N",
        help="as --resize, but to one of a few sizes of about N x N pixels, that of the nearest "
        "aspect ratio; for models that take images of any size",
    )
    _add_labels(encode, ", or folders: the folders that the images are in are named like classes")
    add_draw(encode, "also draw z from each posterior")
    add_scaled(encode)
    encode.add_argument(
        "--latent-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="dtype of the latents (default: float32)",
    )

    decode = _job(
        jobs,
        "decode",
        _decode,
        "map latents to images",
        "latentserve batch decode latents --to images",
        "latentserve batch decode latents/mean-*.npy --to images",
        "latentserve batch decode latents --label 7 --to sevens",
    )
    decode.add_argument(
        "source",
        nargs="+",
        metavar="LATENTS",
        help="npy files of latents; or the folder of a finished job, whose rows are read in order: "
        "its z, else its mean, else its latents",
    )
    add_scaled(decode)
    decode.set_defaults(scaled=None)  # as the job was that wrote the latents
    _add_labels(decode, "; by default those that the job has which wrote the latents")
    _add_dtype(decode)

    sample = _job(
        jobs,
        "sample",
        _sample,
        "draw new images",
        "latentserve batch sample -n 1000000 --seed 7 --to digits",
        "latentserve batch sample -n 60000 --label 7 --latents --format parquet --to sevens",
        "latentserve batch sample -n 1000000 --seed 7 --to digits --ray auto",
    )
    sample.add_argument(
        "-n", "--count", type=positive, required=True, metavar="N", help="number of images"
    )
    add_sampling(sample, sample)
    sample.add_argument(
        "--latents",
        action="store_true",
        help="also write the latents that the images are decoded from",
    )
    add_sample_size(sample)
    _add_dtype(sample)
    batch.epilog = f"""jobs:
{listing(jobs, 6)}

An interrupted job resumes when the same command is run again. Its files are
byte-identical to those of an uninterrupted job.

example:
  latentserve batch sample -n 1000000 --seed 7 --to digits"""


def _job(
    jobs: Any,
    name: str,
    run: "Callable[[argparse.Namespace, Client, dict[str, Any]], Finished]",
    summary: str,
    *examples: str,
) -> argparse.ArgumentParser:
    """Adds a subcommand with the options that all jobs share."""
    parser = command(jobs, name, with_progress(run), summary, *examples)
    parser.add_argument(
        "--to",
        required=True,
        metavar="FOLDER",
        help="new or empty folder to write to, or that of an interrupted run of this command; a "
        "path, or a URL such as s3://bucket/latents",
    )
    parser.add_argument(
        "--single-writer",
        action="store_true",
        help="nobody else writes to the folder: to be said where --to is in a store that cannot "
        "refuse to overwrite an object",
    )
    parser.add_argument(
        "--shard-rows",
        type=positive,
        default=_SHARD_ROWS,
        metavar="N",
        help=f"rows per shard (default: {_SHARD_ROWS})",
    )
    parser.add_argument(
        "--format",
        choices=("npy", "parquet"),
        default="npy",
        help="format of the shards; parquet needs pyarrow (default: npy)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the hashes of finished shards, and write damaged ones again",
    )
    parser.add_argument(
        "--patience",
        type=duration,
        default="10m",
        metavar="TIME",
        help="longest time without progress, such as 90s or 2h, before giving up on a server that "
        "is full or cannot be reached; at the start, no longer than --timeout (default: 10m)",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="compute the shards as tasks of a Ray cluster, such as 10.0.0.1:6379 or auto; without "
        "an address, of a Ray that is started on this machine for the job",
    )
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="compute without a server: this process, or each worker of Ray, loads the models "
        "itself (only in a checkout or an image)",
    )
    parser.add_argument(
        "--models", metavar="FOLDER", help="folder of models for --in-process, or its URL"
    )
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        help="device for --in-process: cpu, cuda or cuda:N (default: cpu)",
    )
    add_model(parser)
    return parser


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("uint8", "float32", "float16"),
        default="uint8",
        help="dtype of the images: uint8 from 0 to 255, floats in [0, 1] (default: uint8)",
    )


def _add_labels(parser: argparse.ArgumentParser, more: str) -> None:
    which = parser.add_mutually_exclusive_group()
    add_label(which, "all rows")
    which.add_argument(
        "--labels", metavar="FILE", help=f"npy file of the index of each row's class{more}"
    )


def _labels_of(options: argparse.Namespace, client: "Client", common: dict[str, Any]) -> Any:
    """Returns the argument `labels` of jobs; `common` as of `job_label`."""
    label = job_label(options, client, common)
    return options.labels if label is None else label


def _encode(options: argparse.Namespace, client: "Client", common: dict[str, Any]) -> "Finished":
    from latentserve import jobs

    labels = _labels_of(options, client, common)
    return jobs.encode(
        client,
        options.source,
        options.to,
        draw=options.draw,
        seed=options.seed,
        offset=options.offset,
        resize=resize_of(options),
        bucket=options.bucket,
        scaled=options.scaled,
        latent_dtype=options.latent_dtype,
        labels=labels,
        **common,
    )


def _decode(options: argparse.Namespace, client: "Client", common: dict[str, Any]) -> "Finished":
    from latentserve import jobs

    labels = _labels_of(options, client, common)
    return jobs.decode(
        client,
        options.source,
        options.to,
        dtype=options.dtype,
        scaled=options.scaled,
        labels=labels,
        **common,
    )


def _sample(options: argparse.Namespace, client: "Client", common: dict[str, Any]) -> "Finished":
    from latentserve import jobs

    label = job_label(options, client, common)
    return jobs.sample(
        client,
        options.count,
        options.to,
        seed=options.seed,
        offset=options.offset,
        label=label,
        temperature=options.temperature,
        truncation=options.truncation,
        dtype=options.dtype,
        latents=options.latents,
        size=options.size,
        **common,
    )
