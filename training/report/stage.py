"""The figure of the movie, redrawn for each frame.

On the left are the shown test images, their reconstructions and the curve of the negative
ELBO; on the right the scatter plot of the latents. Axes and layout are fixed for the whole
movie.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import PathCollection
from matplotlib.image import FigureImage
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from training.report.canvas import Box, Canvas, points
from training.report.curves import robust_limits
from training.report.data import Bytes, Frame, ReportData
from training.report.latent import legend_entries, point_size, scatter, write_axis_names
from training.report.legend import in_rows
from training.report.palette import ACCENT, FAINT, QUIET
from training.report.projection import Projection, Window, fit_window
from training.report.sheet import best_columns, fit, is_ink, lay_out, side_within

SIZE = (1200, 720)

_SHOWN = 16
_LEFT, _TOP, _WIDE = 44, 40, 500
_PLOT = Box(600, 80, 560, 560)
_SMALL = 23
_TINY = 20
# Text sizes of the legend: a smaller one is taken if not all classes fit.
_LEGEND = (_SMALL, _TINY, 17)
_LARGE = 32
_MIDDLE = 28
_PHASE = 310
_GAP = 6
_WIDEST = 1.25


class Stage:
    """Renders the frames of a movie.

    Args:
        data: The data of the report, with at least one frame.
        projection: The projection of the latents.
    """

    def __init__(self, data: ReportData, projection: Projection):
        self._projection = projection
        self._steps = np.array([frame.step for frame in data.frames], np.float64)
        self._elbos = np.array([frame.elbo for frame in data.frames], np.float64)
        self._data = data
        self._ink = is_ink(data.images)
        self._canvas = Canvas(*SIZE)
        canvas = self._canvas
        # A long title is made smaller before it is truncated.
        wide = canvas.text_width(data.title, _LARGE, bold=True)
        size = min(_LARGE, max(_SMALL, _LARGE * 0.98 * _WIDE / max(wide, 1.0)))
        title = canvas.shorten(data.title, _WIDE, size, bold=True)
        canvas.text(_LEFT, _TOP + 26, title, size=size, bold=True)
        self._values = self._write_numbers(data.frames)
        measured = np.isfinite(self._elbos)
        self._curve = (self._steps[measured], self._elbos[measured])
        limits = robust_limits([self._curve]) if measured.sum() > 1 else None
        self._sheet = self._place_images(data, Box(_LEFT, 190, _WIDE, 360 if limits else 490))
        self._highest = limits[1] if limits else math.inf
        self._line = self._place_curve(limits) if limits else None
        canvas.rectangle(Box(0, SIZE[1] - 8, SIZE[0], 8), FAINT)
        self._bar = canvas.rectangle(Box(0, SIZE[1] - 8, 0, 8), ACCENT)
        self._points, self._order = self._place_scatter(data)
        moving = [*self._values, self._sheet, *(self._line or ()), self._bar, self._points]
        canvas.hold(moving)

    def draw(self, frame: Frame, done: float) -> Bytes:
        """Renders a frame: uint8 [720, 1200, 3].

        Args:
            frame: A frame of the data, or a later one of the same run.
            done: Share of the movie that has passed, 0 to 1, for the bar at the bottom.
        """
        phase = self._canvas.shorten(frame.phase, _WIDE - _PHASE, _MIDDLE)
        texts = (f"{frame.step:,}", self._elbo(frame.elbo), phase)
        for value, text in zip(self._values, texts, strict=False):
            value.set_text(text)
        self._sheet.set_data(self._lay_out(frame.reconstructions))
        self._points.set_offsets(self._projection.apply(frame.means)[self._order])
        if self._line is not None:
            steps, elbos = (values[self._curve[0] <= frame.step] for values in self._curve)
            elbos = np.minimum(elbos, self._highest)
            self._line[0].set_data(steps, elbos)
            self._line[1].set_data(steps[-1:], elbos[-1:])
        self._bar.set_width(SIZE[0] * done)
        return self._canvas.pixels()

    @property
    def texts(self) -> list[str]:
        """All texts of the frame that was drawn last."""
        return [text.get_text() for text in self._canvas.figure.texts]

    def _write_numbers(self, frames: Sequence[Frame]) -> list[Text]:
        """Adds the labels of the numbers shown; returns the text artists for their values."""
        names = ["step", "bits/dim" if self._data.in_bits else "ELBO, nats"]
        if any(frame.phase for frame in frames):
            names.append("phase")
        texts = []
        for name, x in zip(names, (0, 150, _PHASE), strict=False):
            self._canvas.text(_LEFT + x, _TOP + 76, name, size=_SMALL, colour=QUIET)
            texts.append(self._canvas.text(_LEFT + x, _TOP + 112, "", size=_MIDDLE))
        return texts

    def _place_images(self, data: ReportData, box: Box) -> FigureImage:
        """Adds the test images; returns the image artist for the reconstructions below them."""
        label = 40
        half = (box.height - label) / 2
        chosen = data.images[:_SHOWN]
        shape = chosen.shape[2:]
        room = (half - label, box.width)
        self._columns = best_columns(len(chosen), shape, room)
        self._side = side_within(len(chosen), self._columns, shape, room, _GAP)
        sheet = self._lay_out(data.images)
        block = label + len(sheet) + 14
        top = box.top + max(0.0, (box.height - 2 * block + 14) / 2)
        for name, y in (("test images", top), ("their reconstructions", top + block)):
            self._canvas.text(_LEFT, y + 26, name, size=_SMALL, colour=QUIET)
        self._canvas.picture(sheet, _LEFT, top + label)
        return self._canvas.picture(np.full_like(sheet, 255), _LEFT, top + block + label)

    def _lay_out(self, images: Bytes) -> Bytes:
        return lay_out(fit(images[:_SHOWN], self._side, ink=self._ink), self._columns, _GAP)

    def _place_curve(self, limits: tuple[float, float]) -> tuple[Line2D, Line2D]:
        """Adds the axes of the ELBO over the steps; returns the curve and the dot at its end."""
        axes = self._canvas.axes(Box(_LEFT, 580, _WIDE, 90))
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[], ylim=(limits[0] - 0.1 * (limits[1] - limits[0]), limits[1]))
        self._canvas.text(
            _LEFT + _WIDE, 586, "ELBO over the steps", size=_TINY, colour=QUIET, align="right"
        )
        axes.set_xlim(self._steps.min(), max(self._steps.max(), self._steps.min() + 1))
        axes.spines["left"].set_visible(False)
        (line,) = axes.plot([], [], color=ACCENT, linewidth=points(4))
        (head,) = axes.plot([], [], color=ACCENT, marker="o", markersize=points(12), clip_on=False)
        return line, head

    def _place_scatter(self, data: ReportData) -> tuple[PathCollection, NDArray[np.int64]]:
        """Adds the scatter plot of the last frame; returns its points and their drawing order."""
        box = _PLOT
        entries = legend_entries(data)
        legends = [in_rows(self._canvas, box.width, entries, size) for size in _LEGEND]
        legend = next((each for each in legends if each.complete), legends[-1])
        legend.draw(self._canvas, box.left, 46)
        # A legend of several rows makes the plot, which stays a square, smaller.
        less = legend.height * (1 - 1 / legend.rows) if legend.rows else -30.0
        side = box.height - less
        box = Box(box.left + max(0.0, less / 2), box.top + less, side, side)
        axes = self._canvas.axes(box)
        axes.tick_params(labelbottom=False, labelleft=False)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if self._projection.dimensions == 1:
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
        write_axis_names(self._canvas, self._projection, box, below=38, beside=24, size=_TINY)
        last = self._projection.apply(data.frames[-1].means)
        size = point_size(len(last))
        return scatter(axes, data, last, data.labels, self._window(data.frames), size)

    def _window(self, frames: Sequence[Frame]) -> Window:
        """The window of the last frame, widened for earlier ones by at most `_WIDEST`."""
        last = fit_window(self._projection, self._projection.apply(frames[-1].means))
        every = np.concatenate([self._projection.apply(frame.means) for frame in frames])
        whole = fit_window(self._projection, every)
        return last.widened(whole, _WIDEST)

    def _elbo(self, nats: float) -> str:
        """The negative ELBO as text, in the unit that the movie shows."""
        if not math.isfinite(nats):
            return "\N{EN DASH}"
        return (
            f"{self._data.bits_per_dimension(nats):.3f}" if self._data.in_bits else f"{nats:,.1f}"
        )
