"""A part's setting, and the records that it measures."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from service.models.onnx import Device

Figure = float | int | str


@dataclass(frozen=True)
class Setting:
    """What a part is run with.

    Attributes:
        device: Device that is measured.
        quick: Whether to measure little, to see that everything runs.
        work: Folder for models that are made, shared by the parts of one run.
    """

    device: Device
    quick: bool
    work: Path


@dataclass(frozen=True)
class Record:
    """One finding of a part.

    Attributes:
        what: What was measured.
        figures: Its figures by name, which says the unit.
        passed: Whether what is promised was found; None if nothing is.
    """

    what: str
    figures: dict[str, Figure]
    passed: bool | None = None

    def line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self))


class Outcome(NamedTuple):
    """How a part ended, and what it had measured by then.

    Attributes:
        seconds: How long it ran.
        error: Why it did not come to its end; empty if it did.
        records: Its records, in order.
    """

    seconds: float
    error: str
    records: list[Record]

    @property
    def passed(self) -> bool:
        """Whether the part came to its end and found nothing broken."""
        return not self.error and all(record.passed is not False for record in self.records)


def read(file: Path) -> Iterator[Record]:
    """Reads the records of a part from its output.

    A part that was stopped may have left half a line at the end, which is left out.
    """
    for line in file.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield Record(**json.loads(line))
