"""Plots of the training curves and of the active latent dimensions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from training.measure.elbo import ACTIVE_VARIANCE
from training.report.canvas import TEXT, WIDTH, Box, Canvas, points
from training.report.data import ReportData
from training.report.legend import Entry, in_rows
from training.report.palette import ACCENT, INK, QUIET, SECOND, Mark

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
Log = Sequence[Mapping[str, Any]]

#: Share of the steps at the start that curves leave out: their values are so high that the
#: rest of a curve would look flat.
LEFT_OUT = 0.03

_LEFT = 120
_WIDE = WIDTH - _LEFT - 40
_IDLE = "#b9c2cc"


def read_line(log: Log, key: str) -> Line:
    """Reads a curve from the log: steps and finite values of a key, float64 [n] each."""
    found = [
        (entry["step"], entry[key])
        for entry in log
        if isinstance(entry.get(key), int | float) and math.isfinite(entry[key])
    ]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    return steps, values


def phases(log: Log) -> list[tuple[str, float]]:
    """Name of each phase in the log, and the step of its first entry."""
    begun: list[tuple[str, float]] = []
    for entry in log:
        name = str(entry.get("phase") or "")
        if name and (not begun or begun[-1][0] != name):
            begun.append((name, float(entry["step"])))
    return begun


def robust_limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Limits of a y axis that fits the lines without their first steps; None without values."""
    everything = np.concatenate([steps for steps, _ in lines])
    if not len(everything):
        return None
    begin = _begin(everything)
    shown = np.concatenate([values[steps >= begin] for steps, values in lines])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _begin(steps: NDArray[np.float64]) -> float:
    """The step at which the curves begin; earlier values would dwarf the rest."""
    return float(steps.min() + LEFT_OUT * (steps.max() - steps.min()))


def draw_curves(data: ReportData) -> bytes | None:
    """Plots the negative ELBO, its two terms and the learning rate over the steps, as PNG.

    Returns None if the log has neither the ELBO nor one of its terms.
    """
    panels = []
    for key, title in (
        ("elbo", "ELBO, nats per image"),
        ("reconstruction", "reconstruction term"),
        ("kl", "KL term"),
    ):
        lines = (read_line(data.log, key), read_line(data.log, f"validation_{key}"))
        if limits := robust_limits(lines):
            panels.append((title, lines, limits))
    rate = read_line(data.log, "learning_rate")
    if not panels:
        return None
    marks = phases(data.log)
    high, low, gap = 360, 250, 96
    heights = [high if index == 0 else low for index in range(len(panels))]
    heights += [90] if len(rate[0]) else []
    top = 196 if len(marks) > 1 else 136
    canvas = Canvas(WIDTH, top + sum(heights) + gap * (len(heights) - 1) + 110)
    entries = [Entry("training", Mark(ACCENT))]
    if any(len(validation[0]) for _, (_, validation), _ in panels):
        entries.append(Entry("validation", Mark(SECOND)))
    in_rows(canvas, _WIDE, entries).draw(canvas, _LEFT, 40)
    begin = _begin(np.concatenate([steps for _, lines, _ in panels for steps, _ in lines]))
    steps = [float(entry["step"]) for entry in data.log]
    span = (min(0.0, *steps), max(1.0, *steps))
    for index, height in enumerate(heights):
        axes = canvas.axes(Box(_LEFT, top, _WIDE, height))
        axes.set_xlim(span[0], span[1] + 0.01 * (span[1] - span[0]))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.tick_params(labelbottom=index == len(heights) - 1)
        for _, step in marks[1:]:
            axes.axvline(step, color=QUIET, linewidth=points(2), linestyle=(0, (4, 4)))
        if index < len(panels):
            title, lines, limits = panels[index]
            axes.set_ylim(*limits)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _long(value)))
            _draw_lines(axes, *lines, begin, [step for _, step in marks[1:]])
        else:
            title = "learning rate"
            axes.set_ylim(0, float(rate[1].max()) * 1.1 or 1.0)
            axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
            axes.plot(*rate, color=QUIET, linewidth=points(3))
        canvas.text(_LEFT, top - 18, title, colour=INK)
        top += height + gap
    if len(marks) > 1:
        _name_phases(canvas, marks, span)
    canvas.text(
        _LEFT + _WIDE / 2, canvas.height - 24, "training step", colour=QUIET, align="center"
    )
    return canvas.png()


def _draw_lines(
    axes: Axes, training: Line, validation: Line, begin: float, marks: Sequence[float]
) -> None:
    """Draws a curve of the training, interrupted where a phase begins, and one of validations."""
    steps, values = (array[training[0] >= begin] for array in training)
    ends = np.searchsorted(steps, marks)
    for line in zip(np.split(steps, ends), np.split(values, ends), strict=True):
        axes.plot(
            *line,
            color=ACCENT,
            linewidth=points(3),
            alpha=0.75,
            marker="o" if len(line[0]) == 1 else "",
            markersize=points(12),
        )
    axes.plot(*validation, color=SECOND, linewidth=points(4), marker="o", markersize=points(9))


def _short(value: float) -> str:
    """Formats a small number compactly, such as 0.002 or 5e-5."""
    return f"{value:g}" if value == 0 or value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _long(value: float) -> str:
    """Formats a number of nats, such as 80.5 or 41,500."""
    return f"{round(value, 6):,}".removesuffix(".0").replace("-", "\N{MINUS SIGN}")


def _name_phases(
    canvas: Canvas, marks: Sequence[tuple[str, float]], span: tuple[float, float]
) -> None:
    """Labels each phase above its steps, truncated where the next one begins."""
    ends = [step for _, step in marks[1:]] + [span[1]]
    for index, ((name, step), end) in enumerate(zip(marks, ends, strict=True)):
        left, right = (
            _LEFT + _WIDE / 1.01 * (edge - span[0]) / (span[1] - span[0])
            for edge in (step if index else span[0], end)
        )
        text = canvas.shorten(name, right - left - 12, 0.9 * TEXT)
        if text != "…":
            canvas.text(left + 6, 112, text, size=0.9 * TEXT, colour=QUIET)


def draw_active_units(data: ReportData) -> bytes:
    """Plots variance of the mean and KL of each latent dimension, sorted, as PNG."""
    order = np.argsort(-data.variances, kind="stable")
    colours = [ACCENT if active else _IDLE for active in data.active[order]]
    panels: list[tuple[str, NDArray[np.float64]]] = [
        ("variance of the mean, log scale", data.variances[order])
    ]
    if data.kl_per_dimension is not None:
        panels.append(("KL against N(0, 1), nats", data.kl_per_dimension[order]))
    active = int(data.active.sum())
    entries = [Entry(f"active: {active}", Mark(ACCENT))]
    if active < data.latent_dim:
        entries.append(Entry(f"inactive: {data.latent_dim - active}", Mark(_IDLE)))
    entries.append(Entry(f"threshold {ACTIVE_VARIANCE:g}", Mark(SECOND)))
    height, gap, top = 400, 110, 146
    canvas = Canvas(WIDTH, top + len(panels) * (height + gap) - gap + 130)
    in_rows(canvas, _WIDE, entries).draw(canvas, _LEFT, 40)
    ranks = np.arange(1, data.latent_dim + 1)
    for index, (title, values) in enumerate(panels):
        axes = canvas.axes(Box(_LEFT, top, _WIDE, height))
        axes.grid(visible=False, axis="x")
        spare = max(0, 8 - len(ranks)) / 2  # few bars do not fill the width
        axes.set_xlim(0.5 - spare, len(ranks) + 0.5 + spare)
        axes.set_xticks(ranks[:: math.ceil(len(ranks) / 12)])
        axes.tick_params(labelbottom=index == len(panels) - 1)
        if index == 0:
            bottom = min(1e-3, max(float(values.min()) / 2, 1e-6))
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_ylim(bottom, max(3.0, float(values.max()) * 2))
            axes.bar(ranks, values - bottom, bottom=bottom, color=colours, width=0.8)
            axes.axhline(ACTIVE_VARIANCE, color=SECOND, linewidth=points(3))
        else:
            axes.bar(ranks, values, color=colours, width=0.8)
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        canvas.text(_LEFT, top - 18, title, colour=INK)
        top += height + gap
    canvas.text(
        _LEFT + _WIDE / 2, canvas.height - 24, "latent dimensions, sorted by variance",
        colour=QUIET, align="center",
    )  # fmt: skip
    return canvas.png()
