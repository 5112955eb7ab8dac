"""Per-call context: deadline, cancellation, metadata, timing."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timing:
    """How the time of a call was spent.

    Attributes:
        queue: Seconds from enqueueing until the first rows were dispatched, summed over the
            call's inference requests.
        compute: Seconds that the batches with rows of the call took, summed.
        batch_rows: Rows in the largest of these batches.
    """

    queue: float = 0.0
    compute: float = 0.0
    batch_rows: int = 0

    def add(self, other: "Timing") -> None:
        """Adds the timing of a part of the call."""
        self.queue += other.queue
        self.compute += other.compute
        self.batch_rows = max(self.batch_rows, other.batch_rows)


@dataclass(slots=True)
class Call:
    """Per-call context of one RPC, independent of the transport.

    Attributes:
        deadline: When the caller stops waiting, on the clock of `time.monotonic`.
        metadata: Metadata of the request, by lower-case key.
        peer: Address of the caller, for the log.
        token: Name of the caller's token; empty if the token has no name or is not required.
        caller: The token's name, else the caller's address without the port; empty for public
            methods.
        request_id: Identifier of the call in the log.
        patient: Whether the call waits for capacity on a full server, like a running stream,
            instead of being shed.
        arrived: When the call, or the message of the stream being answered, was received, on
            the clock of `time.monotonic`.
        model: Name of the model that answers. Like the attributes below, it is set by the
            servicer, for metrics and traces.
        version: Version of that model.
        routed: Whether a route has chosen the version.
        rows: Rows requested so far.
        timing: How the time was spent so far.
    """

    deadline: float = math.inf
    metadata: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    token: str = ""
    caller: str = ""
    request_id: str = ""
    patient: bool = False
    arrived: float = field(default_factory=time.monotonic)
    model: str = ""
    version: int = 0
    routed: bool = False
    rows: int = 0
    timing: Timing = field(default_factory=Timing)
