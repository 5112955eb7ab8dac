"""Runs a dataset job, starting at its first incomplete shard."""

import contextlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentserve._client.codec import fresh_seed
from latentserve._client.values import ModelInfo
from latentserve._jobs.folder import CompleteShard, JobError, JobFolder
from latentserve._jobs.labels import FOLDERS
from latentserve._jobs.plan import Group, description, shards
from latentserve._jobs.shards import Column, Format, open_shard, writer
from latentserve._jobs.tasks import Rows, Task
from latentserve.client import Client, NotFound, ProtocolError

# Version of the manifest's schema; a job of another version is not resumed.
_SCHEMA = 1
_SHARD = re.compile(
    r"((mean|log_var|z|images|latents|labels)-\d{5,}(-\d+x\d+)?\.npy)|(rows-\d{5,}(-\d+x\d+)?\.parquet)"
)


@dataclass(frozen=True)
class Progress:
    """Progress of a job.

    Attributes:
        stage: `reading` while the source is read for its checksum, then `working`.
        rows: Number of rows done in this stage.
        total: Number of rows of the job.
        whole: Number of rows in complete shards, which are durable.
    """

    stage: Literal["reading", "working"]
    rows: int
    total: int
    whole: int


@dataclass(frozen=True)
class Finished:
    """A finished job.

    Attributes:
        folder: Folder with the shards.
        rows: Number of rows.
        shards: Number of shards.
        rows_before: Number of rows in complete shards when the call began; equal to `rows`
            if nothing was left to do.
        lost: Files of complete shards that were missing or damaged, and were written again.
        model: Name of the model.
        version: Version of the model.
        seed: Seed of the draws; None if nothing was drawn.
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
    """Options common to all jobs.

    Attributes:
        folder: Folder for the shards.
        model: Name of the model; empty for the model in the manifest, or for the server's
            default model in a new job.
        version: Version of the model; 0 for the version in the manifest, or for the highest one
            that is served in a new job.
        seed: Seed of the draws; None for the seed in the manifest, or for a fresh one in a new
            job.
        shard_rows: Rows per shard; the last shard may have fewer.
        shard_format: Format of the shards' files.
        verify: Whether the hashes of complete shards are checked.
        progress: Called with the progress after each message.
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
    """Runs a job, or resumes it.

    Raises:
        JobError: The folder holds another job, or the server has another model.
        SourceError: The source is unusable.
        LatentserveError: The server refused a request or cannot be reached.
        MissingPackage: The format needs a package that is not installed.
        OSError: A file cannot be read or written.
    """
    wanted = _wanted(task, options)
    with JobFolder(options.folder) as folder:
        folder.recover(lambda name: bool(_SHARD.fullmatch(name)), verify=options.verify)
        wanted["source"] = task.identity(
            lambda rows: options.progress(Progress("reading", rows, task.rows, folder.rows))
        )
        differences = list(_differences(wanted, folder.manifest or {}))
        if folder.complete and differences:
            raise JobError(f"{options.folder}: holds another job: {'; '.join(differences)}")
        before = folder.rows
        if not (folder.complete and before == task.rows):
            if folder.manifest and not differences:
                model = _same_model(client, task, folder)
                groups = _same_plan(task, folder, model)
            else:
                # No shard is complete yet, so starting over loses nothing.
                model = client.model(options.model, version=options.version)
                groups = task.plan(model)
                _begin(task, options, folder, wanted, model, groups)
            _run_shards(client, task, options, folder, model, groups)
            folder.finish()
        manifest = _manifest(folder)
        return Finished(
            folder=options.folder,
            rows=task.rows,
            shards=len(folder.complete),
            rows_before=before,
            lost=tuple(folder.lost),
            model=manifest["model"]["name"],
            version=manifest["model"]["version"],
            seed=manifest["seed"],
        )


def _wanted(task: Task, options: Options) -> dict[str, Any]:
    """Returns the manifest as far as task and options determine it; the source is added later."""
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


def _differences(wanted: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Yields a message per field of `wanted` whose value differs in a stored manifest.

    All settings are compared, since those of their default value may be absent.
    """
    if isinstance(wanted, dict) and isinstance(stored, dict):
        names = dict.fromkeys([*wanted, *stored]) if path == "settings" else wanted
        for name in names:
            inner = f"{path}.{name}" if path else name
            yield from _differences(wanted.get(name), stored.get(name), inner)
    elif wanted != stored:
        yield f"{path}: got {wanted}, the job has {stored}"


def _begin(
    task: Task,
    options: Options,
    folder: JobFolder,
    wanted: dict[str, Any],
    model: ModelInfo,
    groups: Sequence[Group],
) -> None:
    """Writes the manifest of a new job."""
    seed = options.seed
    if task.draws and seed is None:
        seed = fresh_seed()
    manifest = {
        **wanted,
        "seed": seed if task.draws else None,
        "model": _identity(model, task),
        **description(groups),
    }
    folder.begin(manifest, task.notes())


def _identity(model: ModelInfo, task: Task) -> dict[str, Any]:
    """Returns the identity of a model for the manifest."""
    identity: dict[str, Any] = {
        "name": model.name,
        "version": model.version,
        "noise": model.noise,
        "graphs": model.checksums,
    }
    if task.settings.get("labels") == FOLDERS:
        identity["labels"] = list(model.labels)
    if task.settings.get("scaled") and model.latent_scaling is not None:
        scaling = model.latent_scaling
        identity["latent_scaling"] = {
            "scale": scaling.scale,
            "shift": scaling.shift,
            "mean": list(scaling.mean),
            "std": list(scaling.std),
        }
    return identity


def _same_model(client: Client, task: Task, folder: JobFolder) -> ModelInfo:
    """Returns the model that the job began with.

    Raises:
        JobError: The model is no longer served, or its graphs or how it draws noise have changed.
    """
    stored = _manifest(folder)["model"]
    name = f"{stored['name']}/{stored['version']}"
    try:
        model = client.model(stored["name"], version=stored["version"])
    except NotFound as error:
        raise JobError(
            f"{folder.path}: the job began with {name}, which is not served: {error}"
        ) from error
    differences = list(_differences(_identity(model, task), stored, "model"))
    if differences:
        raise JobError(
            f"{folder.path}: {name} has changed since the job began with it: "
            + "; ".join(differences)
        )
    return model


def _same_plan(task: Task, folder: JobFolder, model: ModelInfo) -> tuple[Group, ...]:
    """Returns the plan that the job began with.

    Raises:
        JobError: The model takes other sizes than when the job began.
    """
    groups = task.plan(model)
    differences = list(_differences(description(groups), _manifest(folder)))
    if differences:
        raise JobError(
            f"{folder.path}: the sizes that the model takes have changed since the job began: "
            + "; ".join(differences)
        )
    return groups


def _run_shards(
    client: Client,
    task: Task,
    options: Options,
    folder: JobFolder,
    model: ModelInfo,
    groups: Sequence[Group],
) -> None:
    """Writes the shards that are not complete."""
    seed = _manifest(folder)["seed"]
    for planned in shards(groups, options.shard_rows):
        if planned.number in folder.complete:
            continue
        rows, columns = planned.rows, planned.group.columns
        before, done = folder.rows, 0
        options.progress(Progress("working", before, task.rows, before))
        shard = open_shard(
            options.folder,
            columns,
            options.shard_format,
            planned.label,
            rows=rows,
            offset=task.settings.get("offset", 0),
        )
        results = task.run(client, model, seed, planned)
        with shard, contextlib.closing(results):
            for arrays in results:
                done += _checked(arrays, columns, len(rows) - done)
                shard.write(arrays)
                options.progress(Progress("working", before + done, task.rows, before))
            if done != len(rows):
                raise ProtocolError(f"got {done} rows, wanted {len(rows)}")
            files = tuple(shard.finish())
        complete = CompleteShard(planned.number, len(rows), files)
        if len(groups) > 1:
            size, numbers = planned.group.size, array("q", rows)
            complete = CompleteShard(planned.number, len(rows), files, size, numbers)
        folder.add(complete)
        options.progress(Progress("working", folder.rows, task.rows, folder.rows))


def _checked(arrays: Rows, columns: tuple[Column, ...], max_rows: int) -> int:
    """Checks arrays that a task yielded, and returns their number of rows.

    Raises:
        ProtocolError: There are more than `max_rows` rows, or an array does not match its column.
    """
    rows = len(next(iter(arrays.values())))
    if rows > max_rows:
        raise ProtocolError(f"got {rows} more rows, wanted at most {max_rows}")
    for column in columns:
        array, wanted = arrays.get(column.name), (rows, *column.shape)
        if array is None or array.shape != wanted or array.dtype.name != column.dtype:
            got = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ProtocolError(f"{column.name}: got {got}, wanted {column.dtype} {list(wanted)}")
    return rows


def _manifest(folder: JobFolder) -> dict[str, Any]:
    assert folder.manifest is not None
    return folder.manifest
