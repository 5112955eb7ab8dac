"""Writes the report of a run into its folder."""

from collections.abc import Callable
from pathlib import Path

from matplotlib import style

from latentserve._files import atomic_write
from training.report.canvas import encode_png
from training.report.curves import draw_active_units, draw_curves
from training.report.latent import draw_map, draw_plane
from training.report.movie import encode_gif, encode_mp4
from training.report.page import write_page
from training.report.projection import Projection, fit_projection
from training.report.samples import draw_reconstructions, draw_samples, draw_samples_by_class
from training.report.stage import Stage
from training.report.story import Bytes, Story

PAGE = "report.html"
LIVE = "live.png"

#: Every picture there may be; one that a story has nothing for is not written.
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


def write_report(folder: Path, story: Story, report: Callable[[str], None]) -> None:
    """Draws a story and writes its pictures and `report.html` into a folder.

    Each file is written whole, the page last. Pictures of an earlier report that this
    one does not have are removed, so that what lies there belongs together.

    Args:
        folder: The run folder; it must exist.
        story: What is told.
        report: Called with a line before what takes seconds and at the end.

    Raises:
        OSError: The folder is not there or cannot be written.
    """
    # What a person has set for matplotlib is for their own pictures.
    with style.context("default", after_reset=True):
        projection = fit_projection(story.means)
        report("drawing the pictures ...")
        files = _draw_pictures(story, projection)
        poster = None
        if story.frames:
            report(f"drawing a movie of {len(story.frames)} frames ...")
            frames = draw_frames(story, projection)
            files |= {"movie.gif": encode_gif(frames), "movie.mp4": encode_mp4(frames)}
            poster = encode_png(frames[-1])
    for name in PICTURES:
        if name in files:
            atomic_write(folder / name, files[name])
        else:
            (folder / name).unlink(missing_ok=True)
    atomic_write(folder / PAGE, write_page(story, projection, files, poster).encode())
    (folder / LIVE).unlink(missing_ok=True)
    report(f"{folder / PAGE} shows the run")


def write_live(folder: Path, story: Story) -> None:
    """Writes `live.png`, the last frame of a story that is still going on.

    The projection is fitted to the story's means so far. `write_report` removes it.

    Args:
        folder: The run folder; it must exist.
        story: With at least one frame.

    Raises:
        OSError: The folder is not there or cannot be written.
    """
    with style.context("default", after_reset=True):
        stage = Stage(story, fit_projection(story.means))
        atomic_write(folder / LIVE, encode_png(stage.draw(story.frames[-1], 1.0)))


def draw_frames(story: Story, projection: Projection) -> list[Bytes]:
    """Draws the frames of the movie, uint8 [720, 1200, 3] each."""
    stage = Stage(story, projection)
    count = len(story.frames)
    return [stage.draw(frame, (index + 1) / count) for index, frame in enumerate(story.frames)]


def _draw_pictures(story: Story, projection: Projection) -> dict[str, bytes]:
    last = story.frames[-1] if story.frames else None
    drawn = {
        "latent_map.png": draw_map(story, projection),
        "latent_plane.png": draw_plane(story, projection),
        "reconstructions.png": draw_reconstructions(story, last) if last else None,
        "samples.png": draw_samples(story),
        "samples_by_class.png": draw_samples_by_class(story),
        "curves.png": draw_curves(story),
        "active_units.png": draw_active_units(story),
    }
    return {name: content for name, content in drawn.items() if content is not None}
