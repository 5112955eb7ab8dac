"""The three dataset jobs, encode, decode and sample: what they read, and how they are laid out."""

import json
from typing import Any, Protocol

from latentserve._client.parameters import Resize
from latentserve._client.values import ModelInfo
from latentserve._jobs.arrays import ArrayRows, Arrays
from latentserve._jobs.errors import SourceError
from latentserve._jobs.fit import (
    latent_shape,
    planned_images,
    planned_latents,
    planned_pictures,
    sampled_size,
)
from latentserve._jobs.folder import ROWS
from latentserve._jobs.labels import Classes, RowLabels, classes_of
from latentserve._jobs.layout import Group, PlannedShard, in_order
from latentserve._jobs.sizes import Size
from latentserve._jobs.sources import OnHashed, Pictures
from latentserve._jobs.work import (
    DecodeWork,
    EncodeWork,
    LatentDtype,
    Pixels,
    SampleWork,
    Work,
)
from latentserve._jobs.writers import Column

PIXELS: tuple[Pixels, ...] = ("float32", "float16", "uint8")

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

    def work(self, planned: PlannedShard) -> Work:
        """Returns the work of a shard, after `plan`."""


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
        self._free_size = False

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
        self._free_size = model.sizes is not None
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

    def work(self, planned: PlannedShard) -> Work:
        size, rows, source = planned.group.size, planned.rows, self.source
        # The server is told the planned size, whatever it holds to be the nearest one.
        resize: Resize = bool(self._resize or self._bucket)
        if resize and self._free_size and isinstance(source, Pictures):
            resize = size
        return EncodeWork(
            source=source.cut(rows)
            if isinstance(source, Pictures)
            else ArrayRows.of(source.parts[planned.group.part], planned.start, planned.stop),
            draw=self.draws,
            offset=self._offset,
            size=size,
            resize=resize,
            scaled=self._scaled,
            latent_dtype=self._latent_dtype,
            classes=None if self._classes is None else self._classes.cut(rows),
        )


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

    def work(self, planned: PlannedShard) -> Work:
        part = self.source.parts[planned.group.part]
        return DecodeWork(
            source=ArrayRows.of(part, planned.start, planned.stop),
            image_shape=planned.group.columns[0].shape,
            dtype=self._dtype,
            scaled=self._scaled,
            classes=None if self._classes is None else self._classes.cut(planned.rows),
        )


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

    def work(self, planned: PlannedShard) -> Work:
        return SampleWork(
            offset=self._offset,
            image_shape=planned.group.columns[0].shape,
            size=self._size,
            latents=self._latents,
            options=self._options,
        )


def _newer(**settings: Any) -> dict[str, Any]:
    """Returns settings that older manifests do not have, unless they are None."""
    return {name: value for name, value in settings.items() if value is not None}


def _origin(labels: RowLabels | None) -> dict[str, Any]:
    """Returns the setting `labels`, which jobs without labels do not have."""
    return {} if labels is None else {"labels": labels.origin}


def _identity(labels: RowLabels | None) -> dict[str, Any]:
    """Returns what identifies labels, for the identity of a source."""
    return {} if labels is None else {"labels_sha256": labels.digest()}
