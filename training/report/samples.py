"""Sheets of reconstructions and of samples."""

import math

from training.report.canvas import TEXT, WIDTH, Canvas
from training.report.data import Frame, ReportData
from training.report.palette import NONE, QUIET, class_marks
from training.report.sheet import clip_to_bytes, fit, is_ink, lay_out, side_within

#: Largest number of classes on the sheet of samples by class.
MAX_ROWS = 30
#: Number of samples on the sheet of unconditional samples.
SAMPLES = 100
#: Number of samples of each class on the sheet of samples by class.
BY_CLASS = 12
#: Seed of the samples.
SEED = 0

_MARGIN = 30
_SIDE = WIDTH - 2 * _MARGIN
_PAIRS = 24
_NAME = 320
_SMALL = 22
_TALLEST = 200


def draw_reconstructions(data: ReportData, frame: Frame) -> bytes:
    """Draws pairs of a test image and, below it, its reconstruction, as PNG."""
    ink = is_ink(data.images)
    count = min(len(data.images), _PAIRS)
    # Prefers a number of columns that gives full rows.
    columns = count if count <= 8 else max(range(4, 9), key=lambda n: (count % n == 0, n))
    gap = 10
    shape = data.images.shape[2:]
    side = side_within(columns, columns, shape, (_TALLEST, _SIDE), gap)
    above = fit(data.images[:count], side, ink=ink)
    below = fit(frame.reconstructions[:count], side, ink=ink)
    height, width = above.shape[1:3]
    rows = math.ceil(count / columns)
    step = 2 * height + 4 + 44
    left = (WIDTH - columns * (width + gap) + gap) // 2
    top = 2 * TEXT + _MARGIN
    canvas = Canvas(WIDTH, top + rows * step - 44 + _MARGIN)
    canvas.text(
        left, _MARGIN + 0.75 * TEXT, "test images, and below each its reconstruction",
        colour=QUIET,
    )  # fmt: skip
    for row in range(rows):
        for pictures, y in ((above, top + row * step), (below, top + row * step + height + 4)):
            chosen = pictures[row * columns : (row + 1) * columns]
            canvas.picture(lay_out(chosen, len(chosen), gap), left, y)
    return canvas.png()


def draw_samples(data: ReportData) -> bytes | None:
    """Draws samples from the prior, as PNG; returns None if the model has no prior."""
    if data.sample is None:
        return None
    ink = is_ink(data.images)
    images = clip_to_bytes(data.sample(SAMPLES, SEED, None))
    gap = 4
    columns = math.isqrt(SAMPLES)
    side = side_within(SAMPLES, columns, images.shape[2:], (_SIDE, _SIDE), gap)
    sheet = lay_out(fit(images, side, ink=ink), columns, gap)
    canvas = Canvas(WIDTH, len(sheet) + 2 * _MARGIN)
    canvas.picture(sheet, (WIDTH - sheet.shape[1]) // 2, _MARGIN)
    return canvas.png()


def draw_samples_by_class(data: ReportData) -> bytes | None:
    """Draws a row of samples of each class, as PNG; None if the prior has no classes."""
    if data.sample is None or not data.sample_labels:
        return None
    ink = is_ink(data.images)
    names = data.sample_labels[:MAX_ROWS]
    rows = [clip_to_bytes(data.sample(BY_CLASS, SEED, label)) for label in range(len(names))]
    probe = Canvas(WIDTH, 1)
    # Long names are made smaller, and still longer ones are written above their samples.
    widest = max(probe.text_width(name, bold=True) for name in names)
    above = widest * _SMALL / TEXT > _NAME
    size = _SMALL if above else min(TEXT, TEXT * 0.98 * _NAME / max(widest, 1.0))
    column = 0.0 if above else max(probe.text_width(name, size, bold=True) for name in names) + 30
    heading = 1.5 * _SMALL if above else 0.0
    gap = 4
    side = side_within(BY_CLASS, BY_CLASS, rows[0].shape[2:], (_TALLEST, _SIDE - column), gap)
    sheets = [lay_out(fit(images, side, ink=ink), BY_CLASS, gap) for images in rows]
    height, width = sheets[0].shape[:2]
    step = math.ceil(height + heading) + 12
    left = (WIDTH - width - column) / 2
    canvas = Canvas(WIDTH, len(names) * step - 12 + 2 * _MARGIN)
    marks = dict(zip(data.class_names, class_marks(len(data.class_names)), strict=True))
    for row, (name, sheet) in enumerate(zip(names, sheets, strict=True)):
        top = _MARGIN + row * step
        canvas.picture(sheet, left + column, top + heading)
        canvas.text(
            left if above else left + column - 30,
            top + (_SMALL / 2 if above else height / 2),
            canvas.shorten(name, width if above else _NAME, size, bold=True),
            size=size,
            colour=marks.get(name, NONE).colour,
            align="left" if above else "right",
            middle=True,
            bold=True,
        )
    return canvas.png()
