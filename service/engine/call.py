"""What a call is beside its message, whatever carries it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timing:
    """Where the time of a call went, in seconds.

    Attributes:
        queue: Waiting until its rows began to be computed, over all its graphs.
        compute: In the batches that its rows were in.
        batch_rows: Rows in the largest of them.
    """

    queue: float = 0.0
    compute: float = 0.0
    batch_rows: int = 0

    def add(self, other: "Timing") -> None:
        """Adds that of a part."""
        self.queue += other.queue
        self.compute += other.compute
        self.batch_rows = max(self.batch_rows, other.batch_rows)


def _never() -> bool:
    return False


@dataclass(slots=True)
class Call:
    """A call, as the servicer and the engine see it.

    Attributes:
        deadline: When its caller stops waiting, by `time.monotonic`.
        cancelled: Tells whether its caller has left. A transport that cancels the
            call's task need not set it.
        metadata: What came with it, by lower-case key.
        peer: Who calls, for the log.
        request_id: Its name in the log.
        patient: Whether it waits for room on a full server, as a running stream does,
            and is not refused.
        arrived: When it, or the message of the stream being answered, came, by
            `time.monotonic`.
        model: The model that answers; set by the servicer for metrics and traces, as
            what follows.
        version: Its version.
        rows: Rows asked for so far.
        timing: Where the time went so far.
    """

    deadline: float = math.inf
    cancelled: Callable[[], bool] = _never
    metadata: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    request_id: str = ""
    patient: bool = False
    arrived: float = field(default_factory=time.monotonic)
    model: str = ""
    version: int = 0
    rows: int = 0
    timing: Timing = field(default_factory=Timing)
