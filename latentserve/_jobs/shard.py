"""A shard as a unit of work that any process can compute, and what comes out of it."""

import contextlib
import secrets
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from latentserve._client.values import ModelInfo
from latentserve._jobs.files import Written, put
from latentserve._jobs.folder import JobError
from latentserve._jobs.layout import Numbers
from latentserve._jobs.manifest import differences
from latentserve._jobs.sizes import Size
from latentserve._jobs.work import Rows, Work
from latentserve._jobs.writers import Column, Format, open_shard
from latentserve._store import Store
from latentserve._urls import is_url
from latentserve.client import Client, ProtocolError


class Connects(Protocol):
    """Makes clients; `Connection` is one."""

    def client(self) -> AbstractContextManager[Client]:
        """Returns a client, which is closed at the end of a `with` block."""


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard to compute: all that `run_shard` needs in any process on any host.

    Once it is pickled its paths are absolute, since other processes may have another working
    folder. Workers need to see the source's files and the job's folder under the same paths.

    Attributes:
        index: Number of the shard in the job, from 0.
        rows: Numbers of its rows: a range, or int64 [N] in a job of several sizes.
        seed: Seed of the draws; None if nothing is drawn.
        model: The model with the checksums of its graphs, as it was when the job was planned.
        folder: Path or URL of the job's folder.
        files: Names of the shard's files once it is committed.
        format: Format of the files.
        columns: Arrays that they hold.
        offset: Added to the numbers in the `row` column of a Parquet file.
        size: Height and width of the images; None in a job of one size.
        work: What is to be done: the part of the source, and the settings.
    """

    index: int
    rows: Numbers
    seed: int | None
    model: ModelInfo
    folder: str
    files: tuple[str, ...]
    format: Format
    columns: tuple[Column, ...]
    offset: int
    size: Size | None
    work: Work

    def __getstate__(self) -> dict[str, Any]:
        folder = self.folder if is_url(self.folder) else str(Path(self.folder).absolute())
        return {**vars(self), "folder": folder, "work": self.work.absolute()}


@dataclass(frozen=True)
class ShardResult:
    """A computed shard, whose files are durable and hidden until it is committed.

    Attributes:
        index: Number of the shard.
        rows: Number of its rows.
        files: Its files.
        attempt: Identifies the attempt that wrote them; part of their hidden names.
        stamps: Stamps of the files in a store, right after they were put there; empty in a folder.
    """

    index: int
    rows: int
    files: tuple[Written, ...]
    attempt: str
    stamps: tuple[str, ...] = ()


def run_shard(
    shard: Shard, connection: Connects | Client, progress: Callable[[int], None] | None = None
) -> ShardResult:
    """Computes a shard, in any process on any host.

    It writes hidden files into the job's folder; `commit` gives them their names. Objects of a
    store have their names at once. A shard may be computed several times, even at once, with the
    same bytes: the attempts do not disturb each other.

    Args:
        shard: The shard.
        connection: A connection, or a client that is open.
        progress: Called with the number of rows done after each message.

    Returns:
        What `commit` needs.

    Raises:
        JobError: The server has another model than the one that the job was planned with.
        SourceError: A file of the source is unusable, or has changed since the job was planned.
        LatentserveError: The server refused a request or cannot be reached.
        MissingPackage: The format needs a package that is not installed.
        OSError: A file cannot be read or written.
    """
    shard.work.check()
    with contextlib.ExitStack() as stack:
        if isinstance(connection, Client) or not hasattr(connection, "client"):
            client: Any = connection
        else:
            client = stack.enter_context(connection.client())
        _check_model(client, shard)
        return _computed(shard, client, progress or (lambda _rows: None))


def _computed(shard: Shard, client: Client, progress: Callable[[int], None]) -> ShardResult:
    rows, done, attempt = shard.rows, 0, secrets.token_hex(6)
    store = Store(shard.folder) if is_url(shard.folder) else None
    results = shard.work.run(client, shard.model, shard.seed, rows)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(results))
        # An object cannot be appended to: it is put from a file here.
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if store else shard.folder
        writer = open_shard(
            Path(folder),
            shard.columns,
            shard.files,
            shard.format,
            attempt=attempt,
            rows=rows,
            offset=shard.offset,
        )
        stack.enter_context(writer)
        for arrays in results:
            done += _checked(arrays, shard.columns, len(rows) - done)
            writer.write(arrays)
            progress(done)
        if done != len(rows):
            raise ProtocolError(f"got {done} rows, wanted {len(rows)}")
        files = tuple(writer.finish())
        stamps = () if store is None else put(store, Path(folder), files, attempt)
        return ShardResult(shard.index, len(rows), files, attempt, stamps)


def _check_model(client: Client, shard: Shard) -> None:
    """Checks that a server has the model that the job was planned with.

    Raises:
        JobError: Its graphs, its noise or its scaling of latents differ.
    """
    wanted = shard.model
    served = client.model(wanted.name, version=wanted.version)
    found = list(differences(_identity(served), _identity(wanted), "model"))
    if found:
        raise JobError(
            f"{shard.folder}: shard {shard.index}: the server's {wanted.name}/{wanted.version} is "
            f"not the one that the job began with: {'; '.join(found)}"
        )


def _identity(model: ModelInfo) -> dict[str, Any]:
    return {
        "graphs": dict(model.checksums),
        "noise": model.noise,
        "latent_scaling": model.latent_scaling,
    }


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
