"""Plans a dataset job or resumes it, starting at its first incomplete shard, and commits shards."""

import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from latentserve._client.codec import fresh_seed
from latentserve._client.values import ModelInfo
from latentserve._jobs.folder import CompleteShard, JobError, JobFolder
from latentserve._jobs.layout import Group, PlannedShard, description, shards
from latentserve._jobs.manifest import (
    differences,
    identity_of,
    job_differences,
    manifest_of,
    wanted_of,
)
from latentserve._jobs.objects import JobObjects
from latentserve._jobs.shard import Shard, ShardResult, run_shard
from latentserve._jobs.tasks import Task
from latentserve._jobs.writers import Format, file_names, writer
from latentserve._store import Store
from latentserve.client import Client, NotFound

_SHARD = re.compile(
    r"((mean|log_var|z|images|latents|labels)-\d{5,}(-\d+x\d+)?\.npy)|(rows-\d{5,}(-\d+x\d+)?\.parquet)"
)


#: Where a job writes.
Folder = JobFolder | JobObjects


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
        folder: Path or URL of the folder with the shards.
        rows: Number of rows.
        shards: Number of shards.
        rows_before: Number of rows in complete shards when the call began; equal to `rows`
            if nothing was left to do.
        lost: Files of complete shards that were missing or damaged, and were written again.
        model: Name of the model.
        version: Version of the model.
        seed: Seed of the draws; None if nothing was drawn.
    """

    folder: Path | str
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
        folder: Folder for the shards: a path, or the URL of a store.
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
        single_writer: Nobody else writes to the store: for those that cannot tell.
    """

    folder: Path | str
    model: str
    version: int
    seed: int | None
    shard_rows: int
    shard_format: Format
    verify: bool
    progress: Callable[[Progress], None]
    single_writer: bool = False


class Plan:
    """A job that has been planned: the shards that are missing, and the folder that gets them.

    It holds the lock of the folder until it is closed, so that no other process commits to it.
    Use it in a `with` statement, in one thread.

    Attributes:
        rows: Number of rows of the job.
        folder: Folder of the job, as it was given.
    """

    def __init__(
        self,
        folder: Folder,
        task: Task,
        options: Options,
        model: ModelInfo | None,
        groups: Sequence[Group],
    ):
        self.rows = task.rows
        self.folder = options.folder
        self._job, self._task, self._options = folder, task, options
        self._model, self._groups = model, groups
        self._before = folder.rows
        self._missing = {
            planned.number: planned
            for planned in shards(groups, options.shard_rows)
            if planned.number not in folder.complete
        }
        # Results that came before those of earlier shards.
        self._waiting: dict[int, ShardResult] = {}

    def __enter__(self) -> "Plan":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes what is not committed, and gives up the lock of the folder."""
        self._job.close()

    def shards(self) -> Iterator[Shard]:
        """Yields the shards that are not committed, in their order."""
        for planned in list(self._missing.values()):
            if planned.number in self._missing and planned.number not in self._waiting:
                yield self._shard(planned)

    def report(self, rows: int = 0) -> None:
        """Calls the job's `progress`, which may raise, for example KeyboardInterrupt.

        Args:
            rows: Number of rows that are done beyond the shards given to `commit`.
        """
        done = sum(result.rows for result in self._waiting.values()) + rows
        whole = self._job.rows
        self._options.progress(Progress("working", whole + done, self.rows, whole))

    def commit(self, result: ShardResult) -> None:
        """Commits a shard; see `commit`."""
        if result.index not in self._missing or result.index in self._waiting:
            waiting = self._waiting.get(result.index)
            # One that comes a second time must not remove the files that the first one needs.
            if waiting is None or waiting.attempt != result.attempt:
                self._job.discard(result.files, result.attempt)
            return
        self._waiting[result.index] = result
        while (index := next(iter(self._missing), -1)) in self._waiting:
            ready = self._waiting[index]
            self._job.add(self._complete(ready), ready.attempt, ready.stamps)
            del self._missing[index], self._waiting[index]
        self.report()

    def finish(self) -> Finished:
        """Returns the finished job.

        Raises:
            JobError: Shards are not committed, or another process works in the store's folder.
        """
        if self._missing:
            raise JobError(
                f"{self.folder}: the runner left {len(self._missing)} of "
                f"{len(self._missing) + len(self._job.complete)} shards uncommitted, the first of "
                f"them {next(iter(self._missing))}"
            )
        self._job.finish()
        manifest = _manifest(self._job)
        return Finished(
            folder=self.folder,
            rows=self.rows,
            shards=len(self._job.complete),
            rows_before=self._before,
            lost=tuple(self._job.lost),
            model=manifest["model"]["name"],
            version=manifest["model"]["version"],
            seed=manifest["seed"],
        )

    def _shard(self, planned: PlannedShard) -> Shard:
        assert self._model is not None
        columns, shard_format = planned.group.columns, self._options.shard_format
        return Shard(
            index=planned.number,
            rows=planned.rows,
            seed=_manifest(self._job)["seed"],
            model=self._model,
            folder=str(self.folder),
            files=tuple(file_names(columns, shard_format, planned.label)),
            format=shard_format,
            columns=columns,
            offset=self._task.settings.get("offset", 0),
            size=planned.group.size if len(self._groups) > 1 else None,
            work=self._task.work(planned),
        )

    def _complete(self, result: ShardResult) -> CompleteShard:
        if len(self._groups) == 1:
            return CompleteShard(result.index, result.rows, result.files)
        planned = self._missing[result.index]
        size, numbers = planned.group.size, array("q", planned.rows)
        return CompleteShard(result.index, result.rows, result.files, size, numbers)


def plan(client: Client, task: Task, options: Options) -> Plan:
    """Plans a job, or what is left of it; a finished job asks no server.

    Raises:
        JobError: The folder holds another job, or the server has another model.
        SourceError: The source is unusable.
        LatentserveError: The server refused a request or cannot be reached.
        MissingPackage: The format needs a package that is not installed.
        OSError: A file cannot be read or written.
    """
    wanted = wanted_of(
        task,
        model=options.model,
        version=options.version,
        seed=options.seed,
        shard_rows=options.shard_rows,
        shard_format=options.shard_format,
        writer=writer(options.shard_format),
        engine=getattr(client, "engine", None),
    )
    folder = _opened(task, options, wanted)
    try:
        return _planned(client, task, options, folder, wanted)
    except BaseException:
        folder.close()
        raise


def one_by_one(client: Client) -> Callable[[Plan], None]:
    """Returns the runner that computes the shards in this process, one after the other."""

    def carry(plan: Plan) -> None:
        for shard in plan.shards():
            plan.report()
            plan.commit(run_shard(shard, client, plan.report))

    return carry


def _opened(task: Task, options: Options, wanted: dict[str, Any]) -> Folder:
    """Takes the folder of a job.

    Raises:
        JobError, OSError: As from `JobFolder` and `JobObjects`.
        ValueError: `single_writer` is set for a path.
    """
    if isinstance(options.folder, Path):
        if options.single_writer:
            raise ValueError(
                f"single_writer: got the path {options.folder}, wanted the URL of a store; "
                "a folder is locked"
            )
        return JobFolder(options.folder)

    def differs(manifest: dict[str, Any]) -> list[str]:
        # What the source is takes a while to find out, and is asked last.
        return job_differences(wanted, manifest) or job_differences(
            _identified(task, options, wanted, 0), manifest
        )

    store = Store(options.folder)
    return JobObjects(store, single_writer=options.single_writer, differs=differs)


def _identified(task: Task, options: Options, wanted: dict[str, Any], rows: int) -> dict[str, Any]:
    """Adds what identifies the source to the settings `wanted`, once, and returns these.

    Args:
        task: The job.
        options: Options of the job.
        wanted: Settings of the job, as of `wanted_of`.
        rows: Rows in complete shards, for the progress.
    """
    if "source" not in wanted:
        wanted["source"] = task.identity(
            lambda read: options.progress(Progress("reading", read, task.rows, rows))
        )
    return wanted


def _planned(
    client: Client, task: Task, options: Options, folder: Folder, wanted: dict[str, Any]
) -> Plan:
    folder.recover(lambda name: bool(_SHARD.fullmatch(name)), verify=options.verify)
    wanted = _identified(task, options, wanted, folder.rows)
    found = job_differences(wanted, folder.manifest or {})
    if folder.complete and found:
        raise JobError(f"{options.folder}: holds another job: {'; '.join(found)}")
    if folder.complete and folder.rows == task.rows:
        return Plan(folder, task, options, None, ())
    if folder.manifest and not found:
        model = _same_model(client, task, folder)
        groups = _same_layout(task, folder, model)
    else:
        # No shard is complete yet, so starting over loses nothing.
        model = client.model(options.model, version=options.version)
        groups = task.plan(model)
        seed = options.seed
        if task.draws and seed is None:
            seed = fresh_seed()
        folder.begin(
            manifest_of(task, wanted, seed if task.draws else None, model, groups), task.notes()
        )
    return Plan(folder, task, options, model, groups)


def _same_model(client: Client, task: Task, folder: Folder) -> ModelInfo:
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
    found = list(differences(identity_of(model, task), stored, "model"))
    if found:
        raise JobError(
            f"{folder.path}: {name} has changed since the job began with it: " + "; ".join(found)
        )
    return model


def _same_layout(task: Task, folder: Folder, model: ModelInfo) -> tuple[Group, ...]:
    """Returns the layout that the job began with.

    Raises:
        JobError: The model takes other sizes than when the job began.
    """
    groups = task.plan(model)
    found = list(differences(description(groups), _manifest(folder)))
    if found:
        raise JobError(
            f"{folder.path}: the sizes that the model takes have changed since the job began: "
            + "; ".join(found)
        )
    return groups


def _manifest(folder: Folder) -> dict[str, Any]:
    assert folder.manifest is not None
    return folder.manifest
