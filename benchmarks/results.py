"""Results of a benchmark: medians, spread and ratios of its rounds, as JSON and as tables."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.servers.server import Measurement
from benchmarks.shapes import Shape

BASELINES = ("triton", "mosec", "bare", "bare-2")
#: What comes before its CPUs in the name of a contender that runs on some CPUs only.
PINNED = "@"
# Figures that have a table. Those per call are left out: with one image per call, they equal those
# per image.
_TABLES = (
    "cpu_us_per_image", "images_per_second", "p50_ms", "p99_ms", "rss_mib", "load_cpu_us_per_call"
)  # fmt: skip
_RATIOS = ("cpu_us_per_image", "images_per_second")


@dataclass(frozen=True)
class Figure:
    """A figure that is reported per contender and shape.

    Attributes:
        title: Title of its table.
        digits: Decimal places.
        of: Computes the figure from a measurement and the rows per call.
    """

    title: str
    digits: int
    of: Callable[[Measurement, int], float]


FIGURES: Mapping[str, Figure] = {
    "cpu_us_per_call": Figure(
        "server CPU, µs a call", 0, lambda load, _rows: 1e6 * load.cpu_seconds / load.calls
    ),
    "cpu_us_per_image": Figure(
        "server CPU, µs an image",
        1,
        lambda load, rows: 1e6 * load.cpu_seconds / (load.calls * rows),
    ),
    "calls_per_second": Figure("calls/s", 0, lambda load, _rows: load.calls / load.seconds),
    "images_per_second": Figure("images/s", 0, lambda load, rows: load.calls * rows / load.seconds),
    "p50_ms": Figure("p50, ms", 2, lambda load, _rows: load.p50_ms),
    "p99_ms": Figure("p99, ms", 2, lambda load, _rows: load.p99_ms),
    "rss_mib": Figure("resident, MiB", 0, lambda load, _rows: load.rss_mib),
    "load_cpu_us_per_call": Figure(
        "load generator's CPU, µs a call",
        1,
        lambda load, _rows: 1e6 * load.load_cpu_seconds / load.calls,
    ),
}


@dataclass
class Results:
    """All rounds of one run.

    Attributes:
        machine: Description of the machine.
        command: The command line.
        shapes: Request shapes, in order.
        servers: Names of the servers, in order.
        rounds: Measurements of all rounds, by server name and then shape name.
        idle_cpu: CPU use of each server without calls, as a share of one CPU, by server name.
        notes: Remarks, such as servers that did not start.
    """

    machine: str
    command: str
    shapes: list[Shape]
    servers: list[str]
    rounds: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, server: str, shape: Shape, measured: Measurement) -> None:
        """Adds a measurement."""
        self.rounds.setdefault(server, {}).setdefault(shape.name, []).append(measured)

    def values(self, server: str, shape: Shape, figure: str) -> list[float]:
        """A figure's value in each round; empty if it was not measured."""
        of = FIGURES[figure].of
        measured = self.rounds.get(server, {}).get(shape.name, [])
        return [of(measurement, shape.rows) for measurement in measured]

    def median(self, server: str, shape: Shape, figure: str) -> float | None:
        """Median of a figure over the rounds; None if it was not measured."""
        values = self.values(server, shape, figure)
        return statistics.median(values) if values else None

    def ratio(self, server: str, baseline: str, shape: Shape, figure: str) -> float | None:
        """Ratio of a server's figure to the baseline's in the same round, median over the rounds.

        None if one of them was not measured.
        """
        own, other = (self.values(name, shape, figure) for name in (server, baseline))
        ratios = [one / two for one, two in zip(own, other, strict=False) if two]
        return statistics.median(ratios) if ratios else None

    def write(self, path: Path) -> None:
        """Writes medians, minima, maxima and the measurements of each round as JSON."""
        document = {
            "machine": self.machine,
            "command": self.command,
            "shapes": [{"name": shape.name, **asdict(shape)} for shape in self.shapes],
            "servers": self.servers,
            "idle_cpu": self.idle_cpu,
            "notes": self.notes,
            "figures": {
                server: {
                    shape.name: {
                        name: {"median": statistics.median(got), "min": min(got), "max": max(got)}
                        for name in FIGURES
                        if (got := self.values(server, shape, name))
                    }
                    for shape in self.shapes
                    if shape.name in self.rounds.get(server, {})
                }
                for server in self.servers
            },
            "rounds": {
                server: {shape: [asdict(load) for load in loads] for shape, loads in shapes.items()}
                for server, shapes in self.rounds.items()
            },
        }
        fresh = path.with_name(path.name + ".part")
        fresh.write_text(json.dumps(document, indent=1))
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Reads a file written by `write`."""
        document = json.loads(path.read_text())
        shapes = [
            Shape(**{name: value for name, value in shape.items() if name != "name"})
            for shape in document["shapes"]
        ]
        rounds = {
            server: {
                shape: [Measurement(**load) for load in loads] for shape, loads in found.items()
            }
            for server, found in document["rounds"].items()
        }
        return cls(
            document["machine"], document["command"], shapes, document["servers"], rounds,
            document["idle_cpu"], document["notes"],
        )  # fmt: skip


def table(results: Results, baselines: Sequence[str] = BASELINES) -> str:
    """Formats medians ± half of the range, and ratios to each baseline, as Markdown tables."""
    parts = [
        _table(results, FIGURES[name].title, partial(_cell, results, name)) for name in _TABLES
    ]
    for baseline in baselines:
        if any(server.partition(PINNED)[0] == baseline for server in results.servers):
            parts += [
                _table(
                    results,
                    f"{FIGURES[name].title}: multiple of {baseline}",
                    partial(_ratio, results, name, baseline),
                )
                for name in _RATIOS
            ]
    return "\n".join(parts)


def _table(results: Results, title: str, cell: Callable[[str, Shape], str]) -> str:
    rows = [[title, *(shape.name for shape in results.shapes)]]
    rows.append(["---", *("---:" for _ in results.shapes)])
    rows += [[name, *(cell(name, shape) for shape in results.shapes)] for name in results.servers]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _cell(results: Results, figure: str, server: str, shape: Shape) -> str:
    values = results.values(server, shape, figure)
    if not values:
        return ""
    half = (max(values) - min(values)) / 2
    digits = FIGURES[figure].digits
    return f"{statistics.median(values):,.{digits}f} ± {half:,.{digits}f}"


def _ratio(results: Results, figure: str, baseline: str, server: str, shape: Shape) -> str:
    _, at, cpus = server.partition(PINNED)  # compared with the baseline on the same CPUs
    ratio = results.ratio(server, baseline + at + cpus, shape, figure)
    return "" if ratio is None else f"{ratio:.2f}"
