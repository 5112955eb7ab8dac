"""The three dataset jobs: encode, decode and sample.

Each shard has a separate stream, so that a resumed job makes the same requests as one that was
not interrupted.
"""

import json
from collections.abc import Generator, Mapping
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from latentserve._client.values import ModelInfo
from latentserve._jobs.folder import ROWS
from latentserve._jobs.npy import SourceError
from latentserve._jobs.shards import Column
from latentserve._jobs.sources import Arrays, OnHashed, Pictures, rows_that_fit
from latentserve.client import Client, InvalidArgument

Pixels = Literal["float32", "uint8"]
Rows = Mapping[str, NDArray[Any]]


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

    def columns(self, model: ModelInfo) -> tuple[Column, ...]:
        """Returns the arrays that the job writes.

        Raises:
            SourceError: The rows of the source do not fit the model.
        """

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, start: int, stop: int
    ) -> Generator[Rows, None, None]:
        """Yields the results for rows `start` to `stop - 1`, in order."""


class EncodeTask:
    """Job that maps images to posteriors."""

    kind = "encode"

    def __init__(self, source: Arrays | Pictures, *, draw: bool, offset: int, resize: bool):
        self.source = source
        self.rows = source.rows
        self.draws = draw
        self.settings = {"draw": draw, "offset": offset, "resize": resize}
        self._offset, self._resize = offset, resize

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        return self.source.identity(on_hashed)

    def notes(self) -> dict[str, bytes]:
        if isinstance(self.source, Arrays):
            return {}
        # JSON escapes line breaks in names.
        lines = "".join(json.dumps(name) + "\n" for name in self.source.names())
        return {ROWS: lines.encode("ascii")}

    def columns(self, model: ModelInfo) -> tuple[Column, ...]:
        if isinstance(self.source, Arrays):
            channels, height, width = model.image_shape
            shapes = [[channels, height, width], [channels * height * width]]
            shapes += [[height, width]] if channels == 1 else []
            _check_rows(self.source, shapes)
        names = ["mean"]
        names += [] if model.posterior == "delta" else ["log_var"]
        names += ["z"] if self.draws else []
        return tuple(Column(name, "float32", (model.latent_dim,)) for name in names)

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, start: int, stop: int
    ) -> Generator[Rows, None, None]:
        max_rows = rows_that_fit(model.image_shape, model.max_rows)
        posteriors = client.encode_stream(
            self.source.batches(start, stop, max_rows),
            draw=self.draws,
            seed=seed,
            offset=self._offset + start,
            resize=self._resize,
            model=model.name,
            version=model.version,
        )
        row = start
        try:
            for posterior in posteriors:
                row += len(posterior.mean)
                arrays = {
                    "mean": posterior.mean, "log_var": posterior.log_var, "z": posterior.z,
                }  # fmt: skip
                yield {name: array for name, array in arrays.items() if array is not None}
        except InvalidArgument as error:
            self._raise_for_file(error, row)
            raise

    def _raise_for_file(self, error: InvalidArgument, row: int) -> None:
        """Raises an error that names the refused file, if the server refused one.

        Args:
            error: The server's error, whose index counts the files of one batch.
            row: Index of the first row of that batch.

        Raises:
            SourceError: The server refused a file.
        """
        if isinstance(self.source, Arrays) or error.index is None:
            return
        for violation in error.violations:
            if row + error.index < self.rows:
                file = self.source.files[row + error.index]
                raise SourceError(f"{file}: {violation.description}") from error


class DecodeTask:
    """Job that maps latents to images."""

    kind = "decode"
    draws = False

    def __init__(self, source: Arrays, *, dtype: Pixels):
        self.source = source
        self.rows = source.rows
        self.settings: dict[str, Any] = {"dtype": dtype}
        self._dtype: Pixels = dtype

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        return self.source.identity(on_hashed)

    def notes(self) -> dict[str, bytes]:
        return {}

    def columns(self, model: ModelInfo) -> tuple[Column, ...]:
        _check_rows(self.source, [[model.latent_dim]])
        if self.source.dtype.kind != "f":
            raise SourceError(f"{self.source.name}: got {self.source.dtype}, wanted floats")
        return (Column("images", self._dtype, model.image_shape),)

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, start: int, stop: int
    ) -> Generator[Rows, None, None]:
        del seed  # nothing is drawn
        max_rows = rows_that_fit(model.image_shape, model.max_rows)
        batches = client.decode_stream(
            self.source.batches(start, stop, max_rows),
            dtype=self._dtype,
            model=model.name,
            version=model.version,
        )
        for images in batches:
            yield {"images": images}


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
    ):
        self.rows = n
        self._options: dict[str, Any] = {
            "label": label,
            "temperature": temperature,
            "truncation": truncation,
            "dtype": dtype,
        }
        self.settings = {"offset": offset, **self._options, "latents": latents}
        self._offset, self._dtype, self._latents = offset, dtype, latents

    def identity(self, on_hashed: OnHashed) -> dict[str, Any] | None:
        del on_hashed  # there is no source
        return None

    def notes(self) -> dict[str, bytes]:
        return {}

    def columns(self, model: ModelInfo) -> tuple[Column, ...]:
        images = Column("images", self._dtype, model.image_shape)
        latents = Column("latents", "float32", (model.latent_dim,))
        return (images, latents) if self._latents else (images,)

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, start: int, stop: int
    ) -> Generator[Rows, None, None]:
        chunks = client.sample_stream(
            stop - start,
            seed=seed,
            offset=self._offset + start,
            chunk_rows=rows_that_fit(model.image_shape, model.max_rows),
            model=model.name,
            version=model.version,
            **self._options,
        )
        for samples in chunks:
            arrays = {"images": samples.images, "latents": samples.latents}
            yield arrays if self._latents else {"images": samples.images}


def _check_rows(source: Arrays, shapes: list[list[int]]) -> None:
    if list(source.row_shape) not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise SourceError(
            f"{source.name}: got rows of shape {list(source.row_shape)}, wanted {wanted}"
        )
