"""Runs a dataset job: finds out what is left of it, and does that, shard by shard."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentserve._client.codec import fresh_seed
from latentserve._client.values import ModelInfo
from latentserve._jobs.folder import JobError, JobFolder, WholeShard
from latentserve._jobs.shards import Column, Format, open_shard, writer
from latentserve._jobs.tasks import Rows, Task
from latentserve.client import Client, NotFound, ProtocolError

# Of the manifest; a job of another one is not gone on with.
_SCHEMA = 1
_SHARD = re.compile(r"(mean|log_var|z|images|latents)-\d{5,}\.npy|rows-\d{5,}\.parquet")


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: `reading` while the source is read for its checksum, then `working`.
        rows: Rows that this stage is done with.
        total: Rows of the job.
        whole: Rows of the shards that are on the disk.
    """

    stage: Literal["reading", "working"]
    rows: int
    total: int
    whole: int


@dataclass(frozen=True)
class Finished:
    """A job that is done.

    Attributes:
        folder: Where the shards are.
        rows: How many there are.
        shards: How many shards they are in.
        rows_before: How many were whole when the call began; `rows` where there was
            nothing left to do.
        lost: Files that were whole once and had to be made anew.
        model: Name of the model.
        version: Its version.
        seed: The seed; None where nothing was drawn.
    """

    folder: Path
    rows: int
    shards: int
    rows_before: int
    lost: tuple[str, ...]
    model: str
    version: int
    seed: int | None


@dataclass(frozen=True)
class Options:
    """What all jobs can be asked for.

    Attributes:
        folder: Where the shards go.
        model: Name of the model; empty for the server's default, or the one the job
            began with.
        version: Its version; 0 likewise.
        seed: Of what is drawn; None for a fresh one, or the one the job began with.
        shard_rows: Rows in a shard; the last may have fewer.
        shard_format: Of the files.
        verify: Hash the shards that are there.
        progress: Told how far the job is.
    """

    folder: Path
    model: str
    version: int
    seed: int | None
    shard_rows: int
    shard_format: Format
    verify: bool
    progress: Callable[[Progress], None]


def run(client: Client, task: Task, options: Options) -> Finished:
    """Does what is left of a job.

    Raises:
        JobError: The folder holds another job, or the server has another model.
        SourceError: The source is not what it has to be.
        LatentserveError: The server refused or could not be reached.
        MissingPackage: The format needs one.
        OSError: A file cannot be read or written.
    """
    wanted = _wanted(task, options)
    with JobFolder(options.folder) as folder:
        folder.recover(lambda name: bool(_SHARD.fullmatch(name)), verify=options.verify)
        wanted["source"] = task.identity(
            lambda rows: options.progress(Progress("reading", rows, task.rows, folder.rows))
        )
        differences = list(_differences(wanted, folder.manifest or {}))
        if folder.whole and differences:
            raise JobError(f"{options.folder}: holds another job: {'; '.join(differences)}")
        before = folder.rows
        if not (folder.whole and before == task.rows):
            if folder.manifest and not differences:
                model = _same_model(client, folder)
            else:
                # Nothing is whole yet, so nothing is lost.
                model = _begin(client, task, options, folder, wanted)
            _do_the_rest(client, task, options, folder, model)
            folder.finish()
        manifest = _manifest(folder)
        return Finished(
            folder=options.folder,
            rows=task.rows,
            shards=len(folder.whole),
            rows_before=before,
            lost=tuple(folder.lost),
            model=manifest["model"]["name"],
            version=manifest["model"]["version"],
            seed=manifest["seed"],
        )


def _wanted(task: Task, options: Options) -> dict[str, Any]:
    """What is known of the job before a server is asked; the source comes later."""
    wanted: dict[str, Any] = {
        "schema": _SCHEMA,
        "kind": task.kind,
        "rows": task.rows,
        "shard_rows": options.shard_rows,
        "format": options.shard_format,
        "writer": writer(options.shard_format),
        "settings": task.settings,
    }
    model = {"name": options.model or None, "version": options.version or None}
    wanted["model"] = {name: value for name, value in model.items() if value is not None}
    if options.seed is not None:
        wanted["seed"] = options.seed
    return wanted


def _differences(wanted: Any, held: Any, path: str = "") -> Iterator[str]:
    """What is wanted and is not so in a manifest, which may tell more."""
    if isinstance(wanted, dict) and isinstance(held, dict):
        for name, value in wanted.items():
            yield from _differences(value, held.get(name), f"{path}.{name}" if path else name)
    elif wanted != held:
        yield f"{path}: got {wanted}, the job has {held}"


def _begin(
    client: Client, task: Task, options: Options, folder: JobFolder, wanted: dict[str, Any]
) -> ModelInfo:
    model = client.model(options.model, version=options.version)
    columns = task.columns(model)
    seed = options.seed
    if task.draws and seed is None:
        seed = fresh_seed()
    arrays = {each.name: {"dtype": each.dtype, "row_shape": list(each.shape)} for each in columns}
    manifest = {
        **wanted,
        "seed": seed if task.draws else None,
        "model": _identity(model),
        "arrays": arrays,
    }
    folder.begin(manifest, task.notes())
    return model


def _identity(model: ModelInfo) -> dict[str, Any]:
    """What a model is, in the manifest."""
    return {
        "name": model.name,
        "version": model.version,
        "noise": model.noise,
        "graphs": model.checksums,
    }


def _same_model(client: Client, folder: JobFolder) -> ModelInfo:
    """Asks for the model that the job began with."""
    held = _manifest(folder)["model"]
    name = f"{held['name']}/{held['version']}"
    try:
        model = client.model(held["name"], version=held["version"])
    except NotFound as error:
        raise JobError(
            f"{folder.path}: the job began with {name}, which is not served: {error}"
        ) from error
    differences = list(_differences(_identity(model), held, "model"))
    if differences:
        raise JobError(
            f"{folder.path}: the job began with another {name} than is served now: "
            + "; ".join(differences)
        )
    return model


def _do_the_rest(
    client: Client, task: Task, options: Options, folder: JobFolder, model: ModelInfo
) -> None:
    columns = task.columns(model)
    seed = _manifest(folder)["seed"]
    count = -(-task.rows // options.shard_rows)
    width = max(5, len(str(count - 1)))
    for index in range(count):
        if index in folder.whole:
            continue
        start = index * options.shard_rows
        rows = min(options.shard_rows, task.rows - start)
        whole, done = folder.rows, 0
        options.progress(Progress("working", whole, task.rows, whole))
        shard = open_shard(
            options.folder,
            columns,
            options.shard_format,
            f"{index:0{width}}",
            first=task.settings.get("offset", 0) + start,
            rows=rows,
        )
        with shard, contextlib.closing(task.run(client, model, seed, start, start + rows)) as got:
            for arrays in got:
                done += _checked(arrays, columns, rows - done)
                shard.write(arrays)
                options.progress(Progress("working", whole + done, task.rows, whole))
            if done != rows:
                raise ProtocolError(f"got {done} rows, wanted {rows}")
            files = shard.finish()
        folder.add(WholeShard(index, rows, tuple(files)))
        options.progress(Progress("working", folder.rows, task.rows, folder.rows))


def _checked(arrays: Rows, columns: tuple[Column, ...], most: int) -> int:
    """The number of rows that came, where they are what was announced.

    Raises:
        ProtocolError: They are not.
    """
    rows = len(next(iter(arrays.values())))
    if rows > most:
        raise ProtocolError(f"got {rows} rows more, wanted at most {most}")
    for column in columns:
        array, wanted = arrays.get(column.name), (rows, *column.shape)
        if array is None or array.shape != wanted or array.dtype.name != column.dtype:
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ProtocolError(f"{column.name}: got {got}, wanted {column.dtype} {list(wanted)}")
    return rows


def _manifest(folder: JobFolder) -> dict[str, Any]:
    assert folder.manifest is not None
    return folder.manifest
