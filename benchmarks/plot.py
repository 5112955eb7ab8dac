"""Plots the results of `benchmarks.serving`.

    python -m benchmarks.plot FILE.json OUT.svg

Draws one panel per RPC and number of images, at the highest concurrency measured. A panel shows
each server's CPU time per image: the median and the range of the rounds.
"""

import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.results import Results
from benchmarks.shapes import Shape

_COLOURS = {"uint8": "#2a6f97", "float32": "#e09f3e"}
_FIGURE = "cpu_us_per_image"


def main() -> int:
    """Entry point; see the module docstring."""
    if len(sys.argv) != 3:
        print("usage: python -m benchmarks.plot FILE.json OUT.svg|OUT.png", file=sys.stderr)
        return 2
    draw(Results.read(Path(sys.argv[1])), Path(sys.argv[2]))
    return 0


def panels(results: Results) -> dict[str, list[Shape]]:
    """Groups the shapes of the results into panels, by the panel's title."""
    found: dict[tuple[str, int], list[Shape]] = {}
    for shape in results.shapes:
        found.setdefault((shape.rpc, shape.rows), []).append(shape)
    titled = {}
    for (rpc, rows), shapes in found.items():
        highest = max(shape.in_flight for shape in shapes)
        titled[f"{rpc}, {rows} a call, {highest} in flight"] = [
            shape for shape in shapes if shape.in_flight == highest
        ]
    return titled


def draw(results: Results, path: Path) -> None:
    """Writes the plot to a file, in the format of its suffix."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = panels(results)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    height = 0.9 + 0.42 * len(results.servers)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(5 * columns, height * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (title, shapes) in zip(axes.flat, shown.items(), strict=False):
        _panel(axis, results, title, shapes)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"Server CPU time, µs an image\n{results.machine}", fontsize=9)
    figure.savefig(path)
    pyplot.close(figure)


def _panel(axis: Any, results: Results, title: str, shapes: list[Shape]) -> None:
    """Draws a panel with points instead of bars, since a logarithmic axis has no zero."""
    from matplotlib.ticker import LogLocator

    servers = _ranked(results, shapes)
    for number, shape in enumerate(shapes):
        colour = _COLOURS[shape.dtype]
        label: str | None = shape.dtype
        for place, server in enumerate(servers):
            values = results.values(server, shape, _FIGURE)
            if not values:
                continue
            middle = statistics.median(values)
            at = place + 0.4 * (number - (len(shapes) - 1) / 2)
            axis.plot((min(values), max(values)), (at, at), color=colour, linewidth=1.5)
            axis.plot(middle, at, "o", color=colour, markersize=5, label=label)
            label = None
            # Right of the most expensive round, so that the number does not cover the line.
            axis.annotate(
                f"{middle:,.0f}" if middle >= 100 else f"{middle:.1f}",
                (max(values), at), (5, 0), textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
    axis.set_yticks(range(len(servers)), servers, fontsize=8)
    axis.set_ylim(len(servers) - 0.4, -0.6)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1, 3)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter("")
    axis.margins(x=0.15)
    axis.grid(axis="x", which="both", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_title(title, fontsize=9)
    axis.tick_params(axis="x", labelsize=7)


def _ranked(results: Results, shapes: list[Shape]) -> list[str]:
    """Servers measured at one of these shapes, cheapest first."""
    least = {
        server: min(statistics.median(values) for values in measured)
        for server in results.servers
        if (measured := [value for s in shapes if (value := results.values(server, s, _FIGURE))])
    }
    return sorted(least, key=least.__getitem__)


if __name__ == "__main__":
    sys.exit(main())
