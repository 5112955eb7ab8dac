"""The work of one shard: the calls that encode, decode or sample its rows.

Each shard has a separate stream, so that a resumed job makes the same requests as one that was
not interrupted. What is here can be pickled, and holds nothing of other shards.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentserve._client.codec import image_source
from latentserve._client.parameters import Labelled, Resize
from latentserve._client.values import ModelInfo
from latentserve._jobs.arrays import ArrayRows
from latentserve._jobs.errors import SourceError
from latentserve._jobs.labels import Classes
from latentserve._jobs.layout import Numbers, runs
from latentserve._jobs.sizes import Size
from latentserve._jobs.sources import PictureRows, rows_that_fit
from latentserve.client import Client, InvalidArgument

# Messages in flight on a stream, the client's default; and the most of them if they are small.
_WINDOW, _LARGEST_WINDOW = 4, 64

#: Dtype of the images, and of the latents, that a job writes.
Pixels = Literal["float32", "float16", "uint8"]
LatentDtype = Literal["float32", "float16"]

Rows = Mapping[str, NDArray[Any]]


class Work(Protocol):
    """What is to be done for a shard, whose rows are counted from 0."""

    def check(self) -> None:
        """Checks that the source is the one that the job was planned with.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file differs.
        """

    def absolute(self) -> "Work":
        """Returns the same work, with absolute paths."""

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, rows: Numbers
    ) -> Generator[Rows, None, None]:
        """Yields the results for the rows of the shard, in order.

        Args:
            client: Client of the server.
            model: The model.
            seed: Seed of the draws; None if nothing is drawn.
            rows: Numbers of the rows in the source, or in the seed's sequence.
        """


@dataclass(frozen=True)
class EncodeWork:
    """Maps images to posteriors.

    Attributes:
        source: The images.
        draw: Whether z is drawn.
        offset: Index of the job's first row in the seed's sequence.
        size: Height and width of the images that are encoded.
        resize: As for `Client.encode_stream`.
        scaled: Whether the latents are scaled.
        latent_dtype: Dtype of the latents.
        classes: Classes of the rows; None if the model is not conditional.
    """

    source: ArrayRows | PictureRows
    draw: bool
    offset: int
    size: Size
    resize: Resize
    scaled: bool
    latent_dtype: LatentDtype
    classes: Classes | None

    def check(self) -> None:
        self.source.check()

    def absolute(self) -> "EncodeWork":
        return replace(self, source=self.source.absolute())

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, rows: Numbers
    ) -> Generator[Rows, None, None]:
        max_rows = rows_that_fit((model.image_shape[0], *self.size), model.max_rows)
        # Draws depend on the numbers of rows, so a message of draws has consecutive ones.
        pieces = runs(rows) if self.draw else [(0, len(rows))]
        posteriors = client.encode_stream(
            _labelled(self._batches(rows, pieces, max_rows), self.classes),
            draw=self.draw,
            seed=seed,
            offset=self.offset + int(rows[0]),
            resize=self.resize,
            scaled=self.scaled,
            latent_dtype=self.latent_dtype,
            window=_window(len(rows), len(pieces), max_rows),
            model=model.name,
            version=model.version,
        )
        done = 0
        try:
            for posterior in posteriors:
                count = len(posterior.mean)
                arrays = {
                    "mean": posterior.mean, "log_var": posterior.log_var, "z": posterior.z,
                    **_written(self.classes, done, count),
                }  # fmt: skip
                done += count
                yield {name: array for name, array in arrays.items() if array is not None}
        except InvalidArgument as error:
            self._raise_for_file(error, done)
            raise

    def _batches(
        self,
        rows: Numbers,
        pieces: Sequence[tuple[int, int]],
        max_rows: int,
    ) -> Iterator[Any]:
        """Yields the images of a shard in batches, each within one of the pieces.

        Args:
            rows: Numbers of the rows.
            pieces: Start and stop index in the shard; the numbers of a batch's rows are given to
                the client if there are several.
            max_rows: Maximum number of rows per batch.
        """
        for start, stop in pieces:
            offset = self.offset + int(rows[start])
            for batch in self.source.batches(start, stop, max_rows):
                if len(pieces) == 1:
                    yield batch
                else:
                    yield replace(image_source(batch, resize=self.resize), offset=offset)
                    offset += len(batch)

    def _raise_for_file(self, error: InvalidArgument, done: int) -> None:
        """Raises an error that names the refused file, if the server refused one.

        Args:
            error: The server's error, whose index counts the files of one batch.
            done: Index of the first row of that batch.

        Raises:
            SourceError: The server refused a file.
        """
        if isinstance(self.source, ArrayRows) or error.index is None:
            return
        for violation in error.violations:
            if done + error.index < len(self.source.files):
                file = self.source.files[done + error.index]
                raise SourceError(f"{file}: {violation.description}") from error


@dataclass(frozen=True)
class DecodeWork:
    """Maps latents to images.

    Attributes:
        source: The latents.
        image_shape: Shape of one image, [C, H, W].
        dtype: Dtype of the images.
        scaled: Whether the latents are scaled.
        classes: Classes of the rows; None if the model is not conditional.
    """

    source: ArrayRows
    image_shape: tuple[int, ...]
    dtype: Pixels
    scaled: bool
    classes: Classes | None

    def check(self) -> None:
        self.source.check()

    def absolute(self) -> "DecodeWork":
        return replace(self, source=self.source.absolute())

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, rows: Numbers
    ) -> Generator[Rows, None, None]:
        del seed  # nothing is drawn
        max_rows = rows_that_fit(self.image_shape, model.max_rows)
        batches = client.decode_stream(
            _labelled(self.source.batches(0, len(rows), max_rows), self.classes),
            dtype=self.dtype,
            scaled=self.scaled,
            model=model.name,
            version=model.version,
        )
        done = 0
        for images in batches:
            yield {"images": images, **_written(self.classes, done, len(images))}
            done += len(images)


@dataclass(frozen=True)
class SampleWork:
    """Draws images from the prior.

    Attributes:
        offset: Index of the job's first row in the seed's sequence.
        image_shape: Shape of one image, [C, H, W].
        size: The requested height and width; None for those of the model.
        latents: Whether the latents are written.
        options: Further options of `Client.sample_stream`.
    """

    offset: int
    image_shape: tuple[int, ...]
    size: Size | None
    latents: bool
    options: Mapping[str, Any]

    def check(self) -> None:
        """Does nothing: there is no source."""

    def absolute(self) -> "SampleWork":
        return self

    def run(
        self, client: Client, model: ModelInfo, seed: int | None, rows: Numbers
    ) -> Generator[Rows, None, None]:
        chunks = client.sample_stream(
            len(rows),
            seed=seed,
            offset=self.offset + int(rows[0]),
            chunk_rows=rows_that_fit(self.image_shape, model.max_rows),
            size=self.size,
            model=model.name,
            version=model.version,
            **self.options,
        )
        for samples in chunks:
            arrays: dict[str, NDArray[Any]] = {"images": samples.images}
            if self.latents:
                arrays["latents"] = samples.latents
            if samples.labels is not None:
                arrays["labels"] = samples.labels.astype(np.int32)
            yield arrays


def _labelled(batches: Iterable[Any], classes: Classes | None) -> Iterator[Any]:
    """Yields batches with the labels of their rows, if there are any.

    Args:
        batches: The batches, in order.
        classes: Classes of the shard's rows; None if the model is not conditional.
    """
    done = 0
    for batch in batches:
        count = len(batch)
        if classes is None:
            yield batch
        else:
            yield Labelled(batch, classes.of(range(done, done + count)))
        done += count


def _written(classes: Classes | None, done: int, count: int) -> dict[str, NDArray[Any]]:
    """Returns the labels of `count` rows after the first `done`, to be written."""
    return {} if classes is None else {"labels": classes.of(range(done, done + count))}


def _window(rows: int, pieces: int, max_rows: int) -> int:
    """Returns the number of messages in flight: more of them if they have few rows."""
    return max(_WINDOW, min(_LARGEST_WINDOW, _WINDOW * max_rows * pieces // rows))
