"""Pictures of the latent space: a scatter plot of the images, and a decoded plane."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from training.report.canvas import TEXT, WIDTH, Box, Canvas, outline, points
from training.report.data import ReportData
from training.report.legend import Entry, in_columns, in_rows
from training.report.palette import NONE, QUIET, class_marks, point_colours
from training.report.projection import REACH, Projection, Window, fit_window
from training.report.sheet import best_columns, clip_to_bytes, fit, is_ink, lay_out, side_within

#: Number of images along each side of the decoded plane.
PLANE = 20
#: Number of images along the decoded line of a model with one latent dimension.
LINE = 100

_SIDE = 1000
_LEFT = 170
# Place of a legend in columns, its text sizes, and the most names in the larger size.
_MARGIN = 40
_SMALL, _TINY, _MANY = 24, 20, 40


def legend_entries(data: ReportData) -> list[Entry]:
    """Name and mark of each class."""
    marks = class_marks(len(data.class_names))
    return [Entry(name, mark) for name, mark in zip(data.class_names, marks, strict=True)]


def scatter(
    axes: Axes,
    data: ReportData,
    points_at: NDArray[np.float64],
    labels: NDArray[np.int64],
    window: Window,
    size: float,
) -> tuple[PathCollection, NDArray[np.int64]]:
    """Draws points as the marks of their classes.

    Args:
        axes: The axes to draw on.
        data: The data of the report, for the names of the classes.
        points_at: Positions, float64 [M, 2].
        labels: Class of each point, int64 [M]; -1 for none.
        window: The part of the plane to show.
        size: Diameter of a point in pixels.

    Returns:
        The drawn points, and the order that they are drawn in, int64 [M]: random, so that
        no class hides another.
    """
    marks = class_marks(len(data.class_names))
    order = np.random.Generator(np.random.Philox(key=1)).permutation(len(points_at))
    x, y = points_at[order].T
    collection = axes.scatter(
        x,
        y,
        s=points(size) ** 2,
        c=point_colours(labels, marks)[order],
        linewidths=0,
        alpha=0.8,
    )
    if any(mark.shape != NONE.shape for mark in marks):
        shapes = dict(enumerate(outline(mark.shape) for mark in marks))
        collection.set_paths([shapes.get(label, outline(NONE.shape)) for label in labels[order]])
    axes.set(xlim=window.x, ylim=window.y)
    return collection, order


def point_size(count: int) -> float:
    """Diameter in pixels of each of `count` points; it shrinks with their number."""
    return float(np.clip(340 / np.sqrt(max(count, 1)), 5.5, 12.0))


def draw_map(data: ReportData, projection: Projection) -> bytes:
    """Plots the posterior means of the test images, coloured by class, as PNG."""
    flat = projection.dimensions == 1
    height = _SIDE // 2 if flat else _SIDE
    entries, probe = legend_entries(data), Canvas(WIDTH, 100)
    legend = in_rows(probe, _SIDE, entries)
    above = legend.complete
    if not above:
        width = WIDTH - 2 * _MARGIN
        legend = in_columns(probe, width, entries, _SMALL)
        if not legend.complete or len(entries) > _MANY:
            legend = in_columns(probe, width, entries, _TINY)
    top = 40 + round(legend.height if above else 0)
    canvas = Canvas(WIDTH, top + height + 130 + (0 if above else round(legend.height) + 20))
    if above:
        legend.draw(canvas, _LEFT, 46)
    else:
        legend.draw(canvas, _MARGIN, top + height + 140)
    box = Box(_LEFT, top, _SIDE, height)
    axes = canvas.axes(box)
    at = projection.apply(data.means)
    scatter(axes, data, at, data.map_labels, fit_window(projection, at), point_size(len(at)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if flat:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    write_axis_names(canvas, projection, box, below=90, beside=112)
    return canvas.png()


def write_axis_names(
    canvas: Canvas,
    projection: Projection,
    box: Box,
    *,
    below: float,
    beside: float,
    size: float = TEXT,
) -> None:
    """Labels the axes of a box with the names of the projection.

    Args:
        canvas: The canvas to write on.
        projection: The projection of the latents.
        box: The box of the axes.
        below: Distance of the horizontal axis's name below the box, in pixels.
        beside: Distance of the vertical axis's name left of the box, in pixels.
        size: Text size in pixels.
    """
    canvas.text(
        box.left + box.width / 2, box.top + box.height + below, projection.names[0],
        size=size, colour=QUIET, align="center",
    )  # fmt: skip
    if len(projection.names) > 1:
        canvas.text(
            box.left - beside + 0.36 * size, box.top + box.height / 2, projection.names[1],
            size=size, colour=QUIET, align="center", upright=True,
        )  # fmt: skip


def draw_plane(data: ReportData, projection: Projection) -> bytes:
    """Decodes a grid of points in the projection plane; returns the images as one PNG sheet.

    With one latent dimension the points are on a line, and the images in reading order.
    """
    ink = is_ink(data.images)
    ticks = projection.ticks(LINE if projection.dimensions == 1 else PLANE)
    if projection.dimensions == 1:
        grid = ticks.T
    else:
        # The first row of images is at the top, where the vertical axis is largest.
        grid = np.stack(np.meshgrid(ticks[0], ticks[1][::-1]), axis=-1).reshape(-1, 2)
    images = clip_to_bytes(data.decode(projection.lift(grid)))
    shape = images.shape[2:]
    gap = 0 if ink else 2
    columns = best_columns(LINE, shape, (_SIDE, _SIDE)) if projection.dimensions == 1 else PLANE
    side = side_within(len(images), columns, shape, (_SIDE, _SIDE), gap)
    sheet = lay_out(fit(images, side, ink=ink), columns, gap)
    height, width = sheet.shape[:2]
    box = Box(_LEFT + (_SIDE - width) // 2, 30, width, height)
    canvas = Canvas(WIDTH, 30 + height + 130)
    canvas.picture(sheet, box.left, box.top)
    _write_plane_ticks(canvas, projection, box)
    write_axis_names(canvas, projection, box, below=96, beside=138)
    return canvas.png()


def _write_plane_ticks(canvas: Canvas, projection: Projection, box: Box) -> None:
    """Labels the ends and the middle of each axis with their latent coordinates."""
    size = TEXT * 0.82
    right, bottom = box.left + box.width, box.top + box.height
    end = f"{float(projection.ticks(PLANE)[0, -1]):.2f}"
    if projection.dimensions == 1:
        end = f"{float(projection.ticks(LINE)[0, -1]):.2f}"
        canvas.text(
            box.left, bottom + 40, f"from \N{MINUS SIGN}{end}, top left", size=size, colour=QUIET
        )
        canvas.text(
            right, bottom + 40, f"to {end}, bottom right", size=size, colour=QUIET, align="right"
        )
        return
    names = (f"\N{MINUS SIGN}{end}", "0", end)
    if projection.shares:
        names = (
            f"\N{MINUS SIGN}{REACH:g} \N{GREEK SMALL LETTER SIGMA}",
            "mean",
            f"+{REACH:g} \N{GREEK SMALL LETTER SIGMA}",
        )
    # Labels are placed at the centres of the first and the last image, not at the edges.
    across, down = box.width / (2 * PLANE), box.height / (2 * PLANE)
    for share, name in zip((0.0, 0.5, 1.0), names, strict=True):
        x = box.left + across + share * (box.width - 2 * across)
        y = bottom - down - share * (box.height - 2 * down)
        canvas.text(x, bottom + 40, name, size=size, colour=QUIET, align="center")
        canvas.text(box.left - 16, y, name, size=size, colour=QUIET, align="right", middle=True)
