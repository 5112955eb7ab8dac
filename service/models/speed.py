"""Speed of a graph by size of the images, and the batch limits that follow from it."""

import math
from typing import Literal, NamedTuple, TypeAlias

#: Height and width of images in pixels; empty for the size of the golden rows, which is that of
#: all images unless the model has sizes.
ImageSize: TypeAlias = tuple[int, ...]

#: Seconds per row above which rows are slow: each is a batch of its own, and slow batches never
#: occupy the last compute thread.
SLOW_SECONDS = 0.05
# Share of the memory of running batches above which rows count as slow, since only slow rows wait
# for memory: others, one in each thread, would exceed the limit.
_LARGE_SHARE = 1 / 16

# A running batch delays the calls behind it. So the rows of one call in a batch, and those of the
# whole batch, are limited to what is computed in about this time, but never to fewer than
# `_MIN_ROWS`, which a core or GPU needs to work at full speed, as long as these take no more than
# `_MIN_ROWS_SECONDS`: rows that take longer occupy it alone.
_CALL_SECONDS = 0.002
_BATCH_SECONDS = 0.008
_MIN_ROWS_SECONDS = 0.016
_MIN_ROWS = {"cpu": 16, "cuda": 64}
# Maximum rows of one run: until the speed is measured, and after that. On a CPU, larger runs
# exceed the caches: as one run, 4096 rows of the flagship's decoder take 0.5 GiB and 25% longer,
# and 4096 rows of a mixture prior of 256 dimensions take 3 GiB. Outputs do not depend on these
# limits.
_DEFAULT_ROWS = {"cpu": 64, "cuda": 1024}
_MAX_ROWS = {"cpu": 512, "cuda": 4096}


class Limits(NamedTuple):
    """Batch limits of a graph for images of one size.

    Attributes:
        batch_rows: Maximum rows in one batch.
        call_rows: Maximum rows of one call in a batch.
        slow: Whether a row takes longer than SLOW_SECONDS, or much memory; `batch_rows` is 1 then.
        least_rows: Rows that a run is padded to on CUDA.
        row_bytes: Peak memory of computing one row, in bytes; 0 if it was not measured.
        run_seconds: Estimated time of a run without that of its rows; infinite if it was not
            measured.
        row_seconds: Estimated time per row.
        long: Whether a row that is not slow takes longer than any batch of shorter ones.
    """

    batch_rows: int
    call_rows: int
    slow: bool = False
    least_rows: int = 1
    row_bytes: int = 0
    run_seconds: float = math.inf
    row_seconds: float = 0.0
    long: bool = False

    def seconds(self, rows: int) -> float:
        """Estimated time to compute a number of rows, in seconds."""
        return self.run_seconds + rows * self.row_seconds


class Speed:
    """Estimated times of a graph, from measurements of a few sizes.

    Args:
        kind: Kind of the device.
        rows_at_once: Maximum rows in one run; 0 for no limit.
        pixels: Pixels of an image of the golden rows.
        bytes_per_pixel: Peak memory of computing a row, per pixel of its image; 0 if unknown.
        default_rows: Maximum rows of one run until the speed is measured; 0 for the device's
            default.
        max_bytes: Maximum memory of running batches; 0 for no limit.

    Attributes:
        pixels: Pixels of an image of the golden rows.
        most_rows: Maximum rows in one run, after the measurement.
    """

    def __init__(
        self,
        kind: Literal["cpu", "cuda"],
        rows_at_once: int = 0,
        pixels: int = 1,
        bytes_per_pixel: float = 0.0,
        default_rows: int = 0,
        max_bytes: int = 0,
    ):
        self._kind = kind
        self.most_rows = rows_at_once or _MAX_ROWS[kind]
        self._default_rows = min(default_rows or _DEFAULT_ROWS[kind], rows_at_once or math.inf)
        self.pixels = pixels
        self._bytes_per_pixel = bytes_per_pixel
        self._large_bytes = max_bytes * _LARGE_SHARE if max_bytes else math.inf
        self._run_seconds = math.inf
        # Measured (pixels, seconds per row), in ascending order.
        self._rows: list[tuple[int, float]] = []

    def measured(self, one: float, many: float, rows: int) -> None:
        """Records the times of two runs of rows of the golden size.

        Args:
            one: Seconds of a run of one row.
            many: Seconds of a run of `rows` rows.
            rows: Rows of the second run; 1 if there was none.
        """
        row = one if rows == 1 else max((many - one) / (rows - 1), 1e-9)
        self._run_seconds = max(one - row, 0.0)
        self._rows = [(self.pixels, row)]

    def measured_larger(self, pixels: int, seconds: float) -> None:
        """Records the time of a run of one row of a size larger than all before."""
        self._rows.append((pixels, max(seconds - self._run_seconds, 1e-9)))

    def row_seconds(self, pixels: int) -> float:
        """Estimated time per row of a size, proportional to pixels beyond what was measured."""
        before = (0, 0.0)
        for after in self._rows:
            if pixels <= after[0]:
                share = (pixels - before[0]) / (after[0] - before[0])
                return before[1] + share * (after[1] - before[1])
            before = after
        return before[1] * pixels / before[0]

    def limits(self, pixels: int = 0) -> Limits:
        """The batch limits for a size.

        Args:
            pixels: Pixels of an image; 0 for the golden size.
        """
        pixels = pixels or self.pixels
        row_bytes = math.ceil(pixels * self._bytes_per_pixel)
        if not self._rows:
            rows = int(self._default_rows)
            least = _MIN_ROWS[self._kind] if self._kind == "cuda" else 1
            return Limits(rows, rows, least_rows=min(least, rows), row_bytes=row_bytes)
        row = self.row_seconds(pixels)
        if row > SLOW_SECONDS or row_bytes > self._large_bytes:
            return Limits(1, 1, True, 1, row_bytes, self._run_seconds, row)
        batch_rows, call_rows = (
            self._rows_within(seconds, row) for seconds in (_BATCH_SECONDS, _CALL_SECONDS)
        )
        # CUDA's libraries choose algorithms for every new shape, so there are few sizes of batches.
        least = min(self._least_rows(row), batch_rows) if self._kind == "cuda" else 1
        long = row > _MIN_ROWS_SECONDS
        return Limits(batch_rows, call_rows, False, least, row_bytes, self._run_seconds, row, long)

    def _rows_within(self, seconds: float, row: float) -> int:
        """Largest power of two of rows that take at most `seconds`, within the bounds."""
        rows = max(self._least_rows(row), _power_of_two(seconds / row))
        return min(self.most_rows, _MAX_ROWS[self._kind], rows)

    def _least_rows(self, row: float) -> int:
        return min(_MIN_ROWS[self._kind], _power_of_two(_MIN_ROWS_SECONDS / row))


def _power_of_two(number: float) -> int:
    """Largest power of two that is at most `number`, and at least 1."""
    return 1 << int(math.log2(max(1.0, number)))
