"""Dataset jobs: encode, decode or sample any number of rows into a folder of shards.

    from latentserve import jobs
    from latentserve.client import Client

    with Client("localhost:50051") as client:
        jobs.sample(client, 1_000_000, "digits", seed=7)
        jobs.encode(client, "photos", "latents", resize=True)

A job that was interrupted, even by SIGKILL or a power cut, resumes when it is called again with
the same arguments. Its files are byte-identical to those of an uninterrupted job. A job of any
size holds only a few messages of rows in memory, about a kilobyte for each shard, and the paths of
image files. It uses the same model and version from start to end.

The folder has `job.json` (the manifest), `cursor.jsonl` (complete shards with their
checksums), `rows.jsonl` (for image files: their names) and the shards: `mean-00000.npy`, ...
or `rows-00000.parquet`, ... Jobs run on Linux and macOS. Sources and the folder may be in object
storage, by URLs such as s3://bucket/latents.

The shards of a job can be computed anywhere, by Ray or by what a caller brings along:

    jobs.sample(client, 1_000_000, "digits", seed=7, runner=jobs.RayRunner(connection))

    with jobs.plan(jobs.sample, client, 1_000_000, "digits", seed=7) as plan:
        for shard in plan.shards():
            jobs.commit(plan, jobs.run_shard(shard, connection))  # run_shard: in any process
        plan.finish()
"""

import os
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar, cast

from latentserve._client import codec, scalars
from latentserve._client.parameters import Resize
from latentserve._jobs import run
from latentserve._jobs.arrays import Arrays
from latentserve._jobs.connection import Connection
from latentserve._jobs.errors import SourceError
from latentserve._jobs.folder import JobError
from latentserve._jobs.labels import GivenLabels, RowLabels
from latentserve._jobs.places import Place, folder_of, place_of
from latentserve._jobs.ray_runner import RayRunner
from latentserve._jobs.results import latents_of
from latentserve._jobs.run import Finished, Plan, Progress
from latentserve._jobs.shard import Shard, ShardResult, run_shard
from latentserve._jobs.sources import Pictures
from latentserve._jobs.tasks import PIXELS, DecodeTask, EncodeTask, SampleTask, Task
from latentserve._jobs.work import LatentDtype, Pixels
from latentserve._jobs.writers import FORMATS, Format, MissingPackage
from latentserve.client import Client

__all__ = [
    "SHARD_ROWS",
    "Connection",
    "Finished",
    "Format",
    "JobError",
    "MissingPackage",
    "Plan",
    "Progress",
    "RayRunner",
    "Runner",
    "Shard",
    "ShardResult",
    "SourceError",
    "commit",
    "decode",
    "encode",
    "plan",
    "run_shard",
    "sample",
]

#: Default number of rows in a shard.
SHARD_ROWS = 10_000

T = TypeVar("T")
P = ParamSpec("P")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

#: Has all shards of a plan computed, wherever that is, and commits them.
Runner = Callable[[Plan], None]


def encode(
    client: Client,
    source: Paths,
    folder: str | os.PathLike[str],
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: Resize = False,
    bucket: int | None = None,
    scaled: bool = False,
    latent_dtype: LatentDtype = "float32",
    labels: GivenLabels | None = None,
    model: str = "",
    version: int = 0,
    shard_rows: int = SHARD_ROWS,
    format: Format = "npy",  # noqa: A002 - the word of the command and of `job.json`
    verify: bool = False,
    progress: Callable[[Progress], None] | None = None,
    runner: Runner | None = None,
    single_writer: bool = False,
) -> Finished:
    """Maps images to their posteriors.

    Writes `mean` and, unless the model is a plain autoencoder, `log_var`, float32 [N, D] or
    [N, c, h, w] each, and `z` if it is drawn. Images of several sizes get a shard for each, and
    the number of a row is its place in the source, whatever its shard.

    Args:
        client: Client of the server.
        source: One or several npy files of images as for `Client.encode`, or PNG, JPEG and WebP
            files and folders of them, by path or URL. Files in a folder are found at any depth,
            sorted by path.
        folder: Folder to write to, by path or URL: new, empty, or that of the same job.
        draw: Also draw z from each posterior; implied by a seed.
        seed: Seed of the draw; a fresh one by default, kept in `job.json`.
        offset: Index of the first row in the seed's sequence.
        resize: Convert image files of another size or colour mode. For a model with
            `ModelInfo.sizes`, each to the nearest size that it takes, or all to
            `resize=(height, width)`.
        bucket: As `resize`, but to one of a few sizes of about bucket x bucket pixels, the one of
            the nearest aspect ratio. Only for image files and a model with `ModelInfo.sizes`.
        scaled: Scale the latents by `ModelInfo.latent_scaling`, as diffusion models expect them.
        latent_dtype: `float32`, or `float16` for half the bytes.
        labels: For a conditional model, the class of all rows; an npy file of the class of each, or
            an array; or `folders`, if the source is a folder with a folder for each class, named
            like it in `ModelInfo.labels`. They are written as `labels`, int32 [N].
        model: Name of the model; empty for the server's default model.
        version: Version of the model; 0 for the highest one that is served.
        shard_rows: Rows per shard; the last shard may have fewer.
        format: `npy`, a file for each array, or `parquet`, which needs pyarrow.
        verify: Check the hashes of complete shards, and write damaged ones again.
        progress: Called with the progress after each message.
        runner: Has the shards computed, such as `RayRunner`; by default this process does, one
            after the other.
        single_writer: Nobody else writes to the folder. To be said of a URL only, for a store that
            cannot refuse to overwrite an object.

    Returns:
        Folder, number of rows and shards, model and seed of the finished job.

    Raises:
        JobError: The folder holds another job or is used by another process, or the model has
            changed since the job began.
        SourceError: A file is unusable.
        ValueError: A parameter has a wrong value.
        LatentserveError: The server refused a request or cannot be reached.
        MissingPackage: The format needs a package that is not installed.
        OSError: A file cannot be read or written, or a store cannot be reached.
    """
    resize = codec.resize_of(resize)
    if bucket is not None and isinstance(resize, tuple):
        raise ValueError(f"bucket: got {bucket} and a size, {resize}, wanted one of them")
    paths = _places(source)
    arrays = [path.suffix == ".npy" for path in paths]
    if any(arrays) and not all(arrays):
        raise SourceError(f"{paths[0]}: got npy files and others, wanted one or the other")
    opened = Arrays.open(paths) if all(arrays) else Pictures(paths)
    seed, offset = codec.check_draw(seed, offset, opened.rows)
    task = EncodeTask(
        opened,
        draw=draw or seed is not None,
        offset=offset,
        resize=resize,
        bucket=None if bucket is None else scalars.count(bucket, "bucket"),
        scaled=bool(scaled),
        latent_dtype=_one_of(latent_dtype, "latent_dtype", ("float32", "float16")),
        labels=None
        if labels is None
        else RowLabels.read(labels, opened.rows, opened if isinstance(opened, Pictures) else None),
    )
    return _run(
        client, task, folder, model, version, seed, shard_rows, format, verify, progress, runner,
        single_writer,
    )  # fmt: skip


def decode(
    client: Client,
    source: Paths,
    folder: str | os.PathLike[str],
    *,
    dtype: Pixels = "uint8",
    scaled: bool | None = None,
    labels: GivenLabels | None = None,
    model: str = "",
    version: int = 0,
    shard_rows: int = SHARD_ROWS,
    format: Format = "npy",  # noqa: A002 - the word of the command and of `job.json`
    verify: bool = False,
    progress: Callable[[Progress], None] | None = None,
    runner: Runner | None = None,
    single_writer: bool = False,
) -> Finished:
    """Maps latents to images.

    Writes `images`, [N, C, H, W].

    Args:
        client: Client of the server.
        source: One or several npy files of latents, for example the `mean` of an encode job; or
            the folder of an encode or sample job: its `z`, else its `mean`, else its `latents`.
            By path or URL.
        folder: Folder to write to, by path or URL: new, empty, or that of the same job.
        dtype: `uint8` for 0 to 255, `float32` or `float16` for values in [0, 1].
        scaled: The latents are scaled by `ModelInfo.latent_scaling`. By default, as the job was
            that wrote them; those of npy files are not.
        labels: For a conditional model, the class that all rows are decoded with; or an npy file of
            the class of each, or an array. By default, those that the job wrote which wrote the
            latents. They are written as `labels`, int32 [N].
        model: Name of the model; empty for the server's default model.
        version: Version of the model; 0 for the highest one that is served.
        shard_rows: Rows per shard; the last shard may have fewer.
        format: `npy`, or `parquet`, which needs pyarrow.
        verify: Check the hashes of complete shards, and write damaged ones again.
        progress: Called with the progress after each message.
        runner: Has the shards computed, such as `RayRunner`; by default this process does, one
            after the other.
        single_writer: Nobody else writes to the folder. To be said of a URL only, for a store that
            cannot refuse to overwrite an object.

    Returns:
        Folder, number of rows and shards, model and seed of the finished job.

    Raises:
        JobError, SourceError, ValueError, LatentserveError, MissingPackage, OSError:
            As from `encode`.
    """
    paths = _places(source)
    if len(paths) == 1 and paths[0].is_dir():
        opened, was_scaled, known = latents_of(paths[0])
    else:
        for path in paths:
            if path.is_dir():
                count = len(paths)
                raise SourceError(f"{path}: got a folder among {count} sources, wanted it alone")
        opened, was_scaled, known = Arrays.open(paths), False, None
    task = DecodeTask(
        opened,
        dtype=_one_of(dtype, "dtype", PIXELS),
        scaled=was_scaled if scaled is None else bool(scaled),
        labels=known if labels is None else RowLabels.read(labels, opened.rows),
    )
    return _run(
        client, task, folder, model, version, None, shard_rows, format, verify, progress, runner,
        single_writer,
    )  # fmt: skip


def sample(
    client: Client,
    n: int,
    folder: str | os.PathLike[str],
    *,
    seed: int | None = None,
    offset: int = 0,
    label: int | None = None,
    temperature: float | None = None,
    truncation: float | None = None,
    dtype: Pixels = "uint8",
    latents: bool = False,
    size: tuple[int, int] | None = None,
    model: str = "",
    version: int = 0,
    shard_rows: int = SHARD_ROWS,
    format: Format = "npy",  # noqa: A002 - the word of the command and of `job.json`
    verify: bool = False,
    progress: Callable[[Progress], None] | None = None,
    runner: Runner | None = None,
    single_writer: bool = False,
) -> Finished:
    """Draws new images from the prior.

    Writes `images`, [N, C, H, W], if requested `latents`, float32 [N, D], and of a conditional
    model `labels`, int32 [N]. For given options image i depends only on the seed and on offset + i,
    so several jobs may share a sequence.

    Args:
        client: Client of the server.
        n: Number of images, at least 1.
        folder: Folder to write to, by path or URL: new, empty, or that of the same job.
        seed: Seed of the sequence, 0 to 2^64 - 1; a fresh one by default, kept in `job.json`.
        offset: Index of the first image in the seed's sequence.
        label: Index of a class; None for any class.
        temperature: Factor on the standard deviation of the noise, 1 by default.
        truncation: Bound on the noise, in standard deviations; none by default.
        dtype: `uint8` for 0 to 255, `float32` or `float16` for values in [0, 1].
        latents: Also write the latents.
        size: Height and width of the images, for a model with `ModelInfo.sizes`; those of
            `ModelInfo.image_shape` by default.
        model: Name of the model; empty for the server's default model.
        version: Version of the model; 0 for the highest one that is served.
        shard_rows: Rows per shard; the last shard may have fewer.
        format: `npy`, a file for each array, or `parquet`, which needs pyarrow.
        verify: Check the hashes of complete shards, and write damaged ones again.
        progress: Called with the progress after each message.
        runner: Has the shards computed, such as `RayRunner`; by default this process does, one
            after the other.
        single_writer: Nobody else writes to the folder. To be said of a URL only, for a store that
            cannot refuse to overwrite an object.

    Returns:
        Folder, number of rows and shards, model and seed of the finished job.

    Raises:
        JobError, ValueError, LatentserveError, MissingPackage, OSError: As from `encode`.
    """
    n = scalars.count(n, "n")
    seed, offset = codec.check_draw(seed, offset, n)
    task = SampleTask(
        n,
        offset=offset,
        label=None if label is None else scalars.int32(label, "label"),
        temperature=None if temperature is None else scalars.real(temperature, "temperature"),
        truncation=None if truncation is None else scalars.real(truncation, "truncation"),
        dtype=_one_of(dtype, "dtype", PIXELS),
        latents=latents,
        size=None if size is None else codec.size_of(size, "size"),
    )
    return _run(
        client, task, folder, model, version, seed, shard_rows, format, verify, progress, runner,
        single_writer,
    )  # fmt: skip


def plan(job: Callable[P, Finished], *arguments: P.args, **options: P.kwargs) -> Plan:
    """Plans a job, or what is left of it, for a caller who has its shards computed.

    Args:
        job: `encode`, `decode` or `sample`.
        *arguments: Its arguments. The client is asked for the model, and computes nothing.
        **options: Its options, but for `runner`.

    Returns:
        The plan, which holds the lock of the folder until it is closed.

    Raises:
        JobError, SourceError, ValueError, LatentserveError, MissingPackage, OSError: As from
            `encode`.
    """
    run_it = cast("Callable[..., Plan]", job)
    return run_it(*arguments, **{**options, "runner": _plan_alone})


def commit(plan: Plan, result: ShardResult) -> None:
    """Gives the files of a shard their names and records it, once all earlier shards are.

    A result that comes early waits. One of a shard that another attempt has computed is discarded.

    Args:
        plan: The plan.
        result: What `run_shard` returned.

    Raises:
        JobError: The files are not in the folder.
        OSError: A file cannot be written.
    """
    plan.commit(result)


def _places(source: Paths) -> list[Place]:
    paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    if not paths:
        raise SourceError("source: got no files, wanted at least 1")
    return [place_of(path) for path in paths]


def _one_of(value: T, what: str, choices: tuple[T, ...]) -> T:
    if value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise ValueError(f"{what}: got {value!r}, wanted {wanted}")
    return value


def _run(
    client: Client,
    task: Task,
    folder: str | os.PathLike[str],
    model: str,
    version: int,
    seed: int | None,
    shard_rows: int,
    shard_format: Format,
    verify: bool,
    progress: Callable[[Progress], None] | None,
    runner: Runner | None,
    single_writer: bool,
) -> Finished:
    shard_rows = scalars.count(shard_rows, "shard_rows")
    if shard_format not in FORMATS:
        raise ValueError(f"format: got {shard_format!r}, wanted 'npy' or 'parquet'")
    options = run.Options(
        folder=folder_of(folder),
        model=model,
        version=scalars.int64(version, "version"),
        seed=seed,
        shard_rows=shard_rows,
        shard_format=shard_format,
        verify=verify,
        progress=progress or (lambda _progress: None),
        single_writer=bool(single_writer),
    )
    planned = run.plan(client, task, options)
    if runner is _plan_alone:
        return cast("Finished", planned)  # to `plan`
    with planned:
        (runner or run.one_by_one(client))(planned)
        return planned.finish()


def _plan_alone(_plan: Plan) -> None:
    """Stands for no runner: `plan` gets the plan of a job by it."""
