"""Writes the files of a report into the run folder."""

from collections.abc import Callable
from pathlib import Path

from matplotlib import style

from latentserve._files import atomic_write
from training.report.canvas import encode_png
from training.report.curves import draw_active_units, draw_curves
from training.report.data import Bytes, ReportData
from training.report.latent import draw_map, draw_plane
from training.report.movie import encode_gif, encode_mp4
from training.report.page import write_page
from training.report.projection import Projection, fit_projection
from training.report.samples import draw_reconstructions, draw_samples, draw_samples_by_class
from training.report.stage import Stage

PAGE = "report.html"
LIVE = "live.png"

#: File names of all pictures; a picture is not written if there is no data for it.
PICTURES = (
    "movie.gif",
    "movie.mp4",
    "latent_map.png",
    "latent_plane.png",
    "reconstructions.png",
    "samples.png",
    "samples_by_class.png",
    "curves.png",
    "active_units.png",
)


def write_report(folder: Path, data: ReportData, report: Callable[[str], None]) -> None:
    """Draws the pictures of a report and writes them and `report.html` into a folder.

    Each file is written atomically, the page last. Pictures of an earlier report that
    this one does not have are removed.

    Args:
        folder: The run folder; it must exist.
        data: The data of the report.
        report: Called with a line before each part that takes seconds, and at the end.

    Raises:
        OSError: The folder does not exist or cannot be written.
    """
    # The user's own matplotlib style must not change the report.
    with style.context("default", after_reset=True):
        projection = fit_projection(data.means)
        report("drawing the pictures ...")
        files = _draw_pictures(data, projection)
        poster = None
        if data.frames:
            report(f"drawing a movie of {len(data.frames)} frames ...")
            frames = draw_frames(data, projection)
            files |= {"movie.gif": encode_gif(frames), "movie.mp4": encode_mp4(frames)}
            poster = encode_png(frames[-1])
    for name in PICTURES:
        if name in files:
            atomic_write(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    atomic_write(folder / PAGE, write_page(data, projection, files, poster).encode())
    (folder / LIVE).unlink(missing_ok=True)
    report(f"{folder / PAGE} shows the run")


def write_live(folder: Path, data: ReportData) -> None:
    """Writes `live.png`, the latest frame of a training that is still running.

    The projection is fitted to the means of that frame. `write_report` removes the file.

    Args:
        folder: The run folder; it must exist.
        data: The data of the report, with at least one frame.

    Raises:
        OSError: The folder does not exist or cannot be written.
    """
    with style.context("default", after_reset=True):
        stage = Stage(data, fit_projection(data.means))
        atomic_write(folder / LIVE, encode_png(stage.draw(data.frames[-1], 1.0)))


def draw_frames(data: ReportData, projection: Projection) -> list[Bytes]:
    """Renders the frames of the movie, uint8 [720, 1200, 3] each."""
    stage = Stage(data, projection)
    count = len(data.frames)
    return [stage.draw(frame, (index + 1) / count) for index, frame in enumerate(data.frames)]


def _draw_pictures(data: ReportData, projection: Projection) -> dict[str, bytes]:
    last = data.frames[-1] if data.frames else None
    drawn = {
        "latent_map.png": draw_map(data, projection),
        "latent_plane.png": draw_plane(data, projection),
        "reconstructions.png": draw_reconstructions(data, last) if last else None,
        "samples.png": draw_samples(data),
        "samples_by_class.png": draw_samples_by_class(data),
        "curves.png": draw_curves(data),
        "active_units.png": draw_active_units(data),
    }
    return {name: content for name, content in drawn.items() if content is not None}
