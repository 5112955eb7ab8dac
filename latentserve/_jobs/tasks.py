"""The three dataset jobs: encode, decode and sample.

Each shard has a separate stream, so that a resumed job makes the same requests as one that was
not interrupted.
"""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentserve._client.codec import image_source
from latentserve._client.parameters import Labelled, Resize
from latentserve._client.values import ModelInfo
from latentserve._jobs.arrays import Arrays
from latentserve._jobs.fit import (
    latent_shape,
    planned_images,
    planned_latents,
    planned_pictures,
    sampled_size,
)
from latentserve._jobs.folder import ROWS
from latentserve._jobs.labels import Classes, RowLabels, classes_of
from latentserve._jobs.npy import SourceError
from latentserve._jobs.plan import Group, Numbers, PlannedShard, in_order, runs
from latentserve._jobs.shards import Column
from latentserve._jobs.sizes import Size
from latentserve._jobs.sources import OnHashed, Pictures, rows_that_fit
from latentserve.client import Client, InvalidArgument

# Messages in flight on a stream, the client's default; and the most of them if they are small.
_WINDOW, _LARGEST_WINDOW = 4, 64

#: Dtype of the images, and of the latents, that a job writes.
Pixels = Literal["float32", "float16", "uint8"]
LatentDtype = Literal["float32", "float16"]
PIXELS: tuple[Pixels, ...] = ("float32", "float16", "uint8")

Rows = Mapping[str, NDArray[Any]]

# What a job writes beside other arrays if the model is conditional.
_LABELS = Column("labels", "int32", ())


class Task(Protocol):
    """A job to run: its kind, its source and its parameters.

    Attributes:
        kind: `encode`, `decode` or `sample`.
        rows: Number of rows of the job.
        draws: Whether the job needs a seed.
        settings: Parameters that the result depends on, in JSON types.
    """

    kind: str
    rows: int
    draws: bool
    settings: dict[str, Any]

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        """Hashes the source and returns its identity; None for a job without a source."""

    def notes(self) -> dict[str, bytes]:
        """Returns files to write with the manifest: their contents by file name."""

    def plan(self, model: ModelInfo) -> tuple[Group, ...]:
        """Returns the rows of each size, and the arrays that the job writes for them.

        Raises:
            SourceError: The rows of the source do not fit the model.
            ValueError: An option does not fit the model.
        """

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, shard: PlannedShard
    ) -> Generator[Rows, None, None]:
        """Yields the results for the rows of a shard, in order."""


class EncodeTask:
    """Job that maps images to posteriors."""

    kind = "encode"

    def __init__(
        self,
        source: Arrays | Pictures,
        *,
        draw: bool,
        offset: int,
        resize: Resize,
        bucket: int | None,
        scaled: bool,
        latent_dtype: LatentDtype,
        labels: RowLabels | None = None,
    ):
        self.source = source
        self.rows = source.rows
        self.draws = draw
        self.settings: dict[str, Any] = {
            "draw": draw,
            "offset": offset,
            "resize": list(resize) if isinstance(resize, tuple) else resize,
            **_newer(bucket=bucket, scaled=scaled or None),
            **_newer(latent_dtype=None if latent_dtype == "float32" else latent_dtype),
            **_origin(labels),
        }
        self._offset, self._resize, self._bucket = offset, resize, bucket
        self._scaled, self._latent_dtype = scaled, latent_dtype
        self._labels = labels
        self._classes: Classes | None = None

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        return self.source.identity(on_hashed) | _identity(self._labels)

    def notes(self) -> dict[str, bytes]:
        if isinstance(self.source, Arrays):
            return {}
        # JSON escapes line breaks in names.
        lines = "".join(json.dumps(name) + "\n" for name in self.source.names())
        return {ROWS: lines.encode("ascii")}

    def plan(self, model: ModelInfo) -> tuple[Group, ...]:
        if isinstance(self.source, Arrays):
            planned = planned_images(self.source, model, self._resize, self._bucket)
        else:
            planned = planned_pictures(self.source, model, self._resize, self._bucket)
        self._classes = classes_of(self._labels, model)
        names = ["mean"]
        names += [] if model.posterior == "delta" else ["log_var"]
        names += ["z"] if self.draws else []
        groups = []
        for size, rows, part in planned:
            shape = latent_shape(model, size)
            columns = [Column(name, self._latent_dtype, shape) for name in names]
            columns += [] if self._classes is None else [_LABELS]
            groups.append(Group(size, rows, tuple(columns), part))
        return in_order(groups)

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, shard: PlannedShard
    ) -> Generator[Rows, None, None]:
        size = shard.group.size
        max_rows = rows_that_fit((model.image_shape[0], *size), model.max_rows)
        # Draws depend on the numbers of rows, so a message of draws has consecutive ones.
        pieces = runs(shard.rows) if self.draws else [(0, len(shard.rows))]
        # The server is told the planned size, whatever it holds to be the nearest one.
        resize: Resize = bool(self._resize or self._bucket)
        if resize and model.sizes is not None and isinstance(self.source, Pictures):
            resize = size
        posteriors = client.encode_stream(
            _labelled(self._batches(shard, pieces, max_rows, resize), self._classes, shard.rows),
            draw=self.draws,
            seed=seed,
            offset=self._offset + int(shard.rows[0]),
            resize=resize,
            scaled=self._scaled,
            latent_dtype=self._latent_dtype,
            window=_window(len(shard.rows), len(pieces), max_rows),
            model=model.name,
            version=model.version,
        )
        done = 0
        try:
            for posterior in posteriors:
                rows = shard.rows[done : done + len(posterior.mean)]
                done += len(posterior.mean)
                arrays = {
                    "mean": posterior.mean, "log_var": posterior.log_var, "z": posterior.z,
                    **_written(self._classes, rows),
                }  # fmt: skip
                yield {name: array for name, array in arrays.items() if array is not None}
        except InvalidArgument as error:
            self._raise_for_file(error, shard.rows[done:])
            raise

    def _batches(
        self,
        shard: PlannedShard,
        pieces: Sequence[tuple[int, int]],
        max_rows: int,
        resize: Resize,
    ) -> Iterator[Any]:
        """Yields the images of a shard in batches, each within one of the pieces.

        Args:
            shard: The shard.
            pieces: Start and stop index in the shard; the numbers of a batch's rows are given to
                the client if there are several.
            max_rows: Maximum number of rows per batch.
            resize: As for `Client.encode_stream`.
        """
        for start, stop in pieces:
            offset = self._offset + int(shard.rows[start])
            for batch in self._read(shard, start, stop, max_rows):
                if len(pieces) == 1:
                    yield batch
                else:
                    yield replace(image_source(batch, resize=resize), offset=offset)
                    offset += len(batch)

    def _read(self, shard: PlannedShard, start: int, stop: int, max_rows: int) -> Iterator[Any]:
        if isinstance(self.source, Pictures):
            return self.source.batches(shard.rows[start:stop], max_rows)
        part = self.source.parts[shard.group.part]
        return part.batches(shard.start + start, shard.start + stop, max_rows)

    def _raise_for_file(self, error: InvalidArgument, rows: Numbers) -> None:
        """Raises an error that names the refused file, if the server refused one.

        Args:
            error: The server's error, whose index counts the files of one batch.
            rows: Numbers of the rows of that batch and of those after it.

        Raises:
            SourceError: The server refused a file.
        """
        if isinstance(self.source, Arrays) or error.index is None:
            return
        for violation in error.violations:
            if error.index < len(rows):
                file = self.source.files[rows[error.index]]
                raise SourceError(f"{file}: {violation.description}") from error


class DecodeTask:
    """Job that maps latents to images."""

    kind = "decode"
    draws = False

    def __init__(
        self, source: Arrays, *, dtype: Pixels, scaled: bool, labels: RowLabels | None = None
    ):
        self.source = source
        self.rows = source.rows
        self.settings: dict[str, Any] = {
            "dtype": dtype,
            **_newer(scaled=scaled or None),
            **_origin(labels),
        }
        self._dtype: Pixels = dtype
        self._scaled = scaled
        self._labels = labels
        self._classes: Classes | None = None

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        return self.source.identity(on_hashed) | _identity(self._labels)

    def notes(self) -> dict[str, bytes]:
        return {}

    def plan(self, model: ModelInfo) -> tuple[Group, ...]:
        if self.source.dtype.kind != "f":
            name = self.source.parts[0].name
            raise SourceError(f"{name}: got {self.source.dtype}, wanted floats")
        self._classes = classes_of(self._labels, model)
        more = () if self._classes is None else (_LABELS,)
        return in_order(
            [
                Group(
                    size,
                    rows,
                    (Column("images", self._dtype, (model.image_shape[0], *size)), *more),
                    part,
                )
                for size, rows, part in planned_latents(self.source, model)
            ]
        )

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, shard: PlannedShard
    ) -> Generator[Rows, None, None]:
        del seed  # nothing is drawn
        part = self.source.parts[shard.group.part]
        max_rows = rows_that_fit(shard.group.columns[0].shape, model.max_rows)
        latents = part.batches(shard.start, shard.stop, max_rows)
        batches = client.decode_stream(
            _labelled(latents, self._classes, shard.rows),
            dtype=self._dtype,
            scaled=self._scaled,
            model=model.name,
            version=model.version,
        )
        done = 0
        for images in batches:
            rows = shard.rows[done : done + len(images)]
            done += len(images)
            yield {"images": images, **_written(self._classes, rows)}


class SampleTask:
    """Job that draws images from the prior."""

    kind = "sample"
    draws = True

    def __init__(
        self,
        n: int,
        *,
        offset: int,
        label: int | None,
        temperature: float | None,
        truncation: float | None,
        dtype: Pixels,
        latents: bool,
        size: Size | None,
    ):
        self.rows = n
        self._options: dict[str, Any] = {
            "label": label,
            "temperature": temperature,
            "truncation": truncation,
            "dtype": dtype,
        }
        self.settings = {
            "offset": offset,
            **self._options,
            "latents": latents,
            **_newer(size=None if size is None else list(size)),
        }
        self._offset, self._dtype, self._latents, self._size = offset, dtype, latents, size

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        del on_hashed  # there is no source
        return None

    def notes(self) -> dict[str, bytes]:
        return {}

    def plan(self, model: ModelInfo) -> tuple[Group, ...]:
        size = sampled_size(model, self._size)
        columns = [Column("images", self._dtype, (model.image_shape[0], *size))]
        if self._latents:
            columns.append(Column("latents", "float32", latent_shape(model, size)))
        if model.conditional:
            columns.append(_LABELS)
        return (Group(size, range(self.rows), tuple(columns)),)

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, shard: PlannedShard
    ) -> Generator[Rows, None, None]:
        images = shard.group.columns[0].shape
        chunks = client.sample_stream(
            shard.stop - shard.start,
            seed=seed,
            offset=self._offset + shard.start,
            chunk_rows=rows_that_fit(images, model.max_rows),
            size=self._size,
            model=model.name,
            version=model.version,
            **self._options,
        )
        for samples in chunks:
            arrays: dict[str, NDArray[Any]] = {"images": samples.images}
            if self._latents:
                arrays["latents"] = samples.latents
            if samples.labels is not None:
                arrays["labels"] = samples.labels.astype(np.int32)
            yield arrays


def _newer(**settings: Any) -> dict[str, Any]:
    """Returns settings that older manifests do not have, unless they are None."""
    return {name: value for name, value in settings.items() if value is not None}


def _origin(labels: RowLabels | None) -> dict[str, Any]:
    """Returns the setting `labels`, which jobs without labels do not have."""
    return {} if labels is None else {"labels": labels.origin}


def _identity(labels: RowLabels | None) -> dict[str, Any]:
    """Returns what identifies labels, for the identity of a source."""
    return {} if labels is None else {"labels_sha256": labels.digest()}


def _labelled(batches: Iterable[Any], classes: Classes | None, rows: Numbers) -> Iterator[Any]:
    """Yields batches with the labels of their rows, if there are any.

    Args:
        batches: The batches.
        classes: Classes of the job's rows; None if the model is not conditional.
        rows: Numbers of the rows of all batches, in order.
    """
    done = 0
    for batch in batches:
        count = len(batch)
        yield batch if classes is None else Labelled(batch, classes.of(rows[done : done + count]))
        done += count


def _written(classes: Classes | None, rows: Numbers) -> dict[str, NDArray[Any]]:
    """Returns the labels of rows, to be written."""
    return {} if classes is None else {"labels": classes.of(rows)}


def _window(rows: int, pieces: int, max_rows: int) -> int:
    """Returns the number of messages in flight: more of them if they have few rows."""
    return max(_WINDOW, min(_LARGEST_WINDOW, _WINDOW * max_rows * pieces // rows))
