"""The report of a run, drawn from small synthetic data of every shape."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from training.report import Frame, ReportData, movie, write_live, write_report
from training.report.canvas import Canvas, outline
from training.report.captions import Captions
from training.report.curves import draw_curves, phases, read_line
from training.report.latent import draw_map, scatter
from training.report.legend import MOST, Entry, in_columns, in_rows
from training.report.movie import FRAMES_PER_SECOND, HOLD_SECONDS
from training.report.page import flatten
from training.report.palette import class_marks, point_colours
from training.report.projection import Window, fit_projection, fit_window
from training.report.samples import (
    BY_CLASS,
    SAMPLES,
    draw_reconstructions,
    draw_samples,
    draw_samples_by_class,
)
from training.report.sheet import (
    best_columns,
    clip_to_bytes,
    fit,
    is_ink,
    lay_out,
    side_within,
)
from training.report.stage import Stage
from training.report.write import LIVE, PAGE, PICTURES

ALWAYS = {"latent_map.png", "latent_plane.png", "active_units.png"}
MOVIE = {"movie.gif", "movie.mp4", "reconstructions.png"}
SAMPLED = {"samples.png", "samples_by_class.png"}


def report_data(
    dimensions: int = 2,
    channels: int = 1,
    size: int = 8,
    classes: int = 3,
    frames: int = 3,
    entries: int = 40,
    sampled: bool = False,
    **changes: Any,
) -> ReportData:
    """Synthetic data of a report, of any shape."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(max(classes, 1), dimensions))

    def means(labels: np.ndarray, spread: float) -> np.ndarray:
        noise = random.normal(size=(len(labels), dimensions))
        return (spread * (centres[labels] + 0.3 * noise)).astype(np.float32)

    def images(count: int) -> np.ndarray:
        strokes = random.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        margin = size // 4
        strokes[:, :, :margin] = strokes[:, :, -margin:] = 0
        strokes[:, :, :, :margin] = strokes[:, :, :, -margin:] = 0
        return strokes

    def sample(count: int, _seed: int, label: int | None) -> np.ndarray:
        return np.full((count, channels, size, size), 0.1 * (label or 5), np.float32)

    names = tuple(f"class {index}" for index in range(classes))
    labels, map_labels = (random.integers(0, max(classes, 1), count) for count in (150, 300))
    final = means(map_labels, 1.0)
    log = [
        {"step": 10 * index, "elbo": 90.0 + 300 / (index + 1), "kl": 9.0, "learning_rate": 1e-4}
        | {"reconstruction": 81.0 + 300 / (index + 1), "beta": 1.0}
        | ({"validation_elbo": 95.0, "validation_kl": None} if index % 10 == 9 else {})
        for index in range(entries)
    ]
    data: dict[str, Any] = {
        "title": "tiny on <noise> & nothing",
        "facts": [("Data", "noise"), ("Seed", "0")],
        "images": images(10),
        "labels": labels,
        "class_names": names,
        "frames": [
            Frame(
                step=100 * index,
                phase="autoencoder" if index % 2 else "",
                elbo=float("nan") if index == 1 else 100.0 / (index + 1),
                reconstructions=images(10),
                means=means(labels, (index + 1) / frames),
            )
            for index in range(frames)
        ],
        "log": log,
        "means": final,
        "log_vars": np.full_like(final, -2.0),
        "map_labels": map_labels,
        "decode": lambda z: np.full(
            (len(z), channels, size, size), 1 / (1 + np.exp(-z[:, :1, None, None])), np.float32
        ),
        "sample": sample if sampled else None,
        "sample_labels": names if sampled else (),
        "metrics": {"elbo": 95.25, "fid": {"value": 12.5}, "images": 10_000},
    }
    return ReportData(**data | changes)


def write(folder: Path, data: ReportData) -> list[str]:
    """Writes a report; returns the lines that it printed."""
    lines: list[str] = []
    write_report(folder, data, lines.append)
    return lines


class Page(HTMLParser):
    """The attributes and the text of a page; fails unless all tags are closed."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def content(self, tag: str, attribute: str = "src") -> list[bytes]:
        """The decoded data: URLs of a tag."""
        urls = [given[attribute] for name, given in self.attributes if name == tag]
        return [base64.b64decode((url or "").partition(";base64,")[2]) for url in urls]


def decode_movie(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        seconds = float(stream.duration * stream.time_base)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], seconds


SHAPES = {
    "one latent": {"dimensions": 1},
    "two latents": {"dimensions": 2, "sampled": True},
    "many latents, colour": {"dimensions": 128, "channels": 3, "size": 32, "sampled": True},
    "large images": {"dimensions": 3, "channels": 3, "size": 128, "frames": 1},
    "no classes": {"dimensions": 5, "classes": 0, "frames": 1},
    "many classes": {"dimensions": 4, "classes": 100, "sampled": True, "frames": 2},
    "nothing logged, one frame": {"entries": 0, "frames": 1},
    "no frames": {"frames": 0},
    "no variances": {"dimensions": 6, "log_vars": None, "frames": 1},
    "one class, one entry": {"classes": 1, "entries": 1, "frames": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_report_of_data_of_any_shape_has_all_its_files(tmp_path, shape):
    data = report_data(**shape)
    write(tmp_path, data)
    expected = set(ALWAYS)
    expected |= MOVIE if data.frames else set()
    expected |= {"curves.png"} if data.log else set()
    expected |= {"samples.png"} if data.sample else set()
    expected |= {"samples_by_class.png"} if data.sample_labels else set()
    # Nothing else, not even a temporary file.
    assert {path.name for path in tmp_path.iterdir()} == expected | {PAGE}

    for path in tmp_path.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width == 1200
            assert 200 < picture.height < 4000
            assert np.asarray(picture.convert("L")).std() > 2

    if data.frames:
        with Image.open(tmp_path / "movie.gif") as gif:
            # Equal frames are merged into one that is shown longer.
            assert 1 <= gif.n_frames <= len(data.frames)
            assert gif.size == (800, 480)
        pictures, seconds = decode_movie(tmp_path / "movie.mp4")
        held = FRAMES_PER_SECOND * HOLD_SECONDS - 1
        assert len(pictures) == len(data.frames) + held
        assert seconds == pytest.approx(len(pictures) / FRAMES_PER_SECOND)
        assert {picture.shape for picture in pictures} == {(720, 1200, 3)}

    page = Page((tmp_path / PAGE).read_text())
    shown = expected - {"movie.gif", "movie.mp4"}
    assert sorted(page.content("img")) == sorted((tmp_path / name).read_bytes() for name in shown)
    assert page.content("video") == ([(tmp_path / "movie.mp4").read_bytes()] if data.frames else [])


def test_the_page_loads_nothing_and_has_no_scripts(tmp_path):
    write(tmp_path, report_data(sampled=True))
    text = (tmp_path / PAGE).read_text()
    assert not re.search(r"https?://", text)
    page = Page(text)
    tags = {tag for tag, _ in page.attributes}
    assert not tags & {"script", "iframe", "object"}
    for _, given in page.attributes:
        for name in ("src", "href", "poster"):
            assert (given.get(name) or "data:").startswith("data:")
    (video,) = [given for tag, given in page.attributes if tag == "video"]
    assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= video.keys()
    assert all(given["alt"] for tag, given in page.attributes if tag == "img")


def test_the_page_shows_the_facts_and_the_figures_of_the_run(tmp_path):
    data = report_data(dimensions=4, means=np.float32([[1, 0, 0, 0], [-1, 0, 0, 0.5]] * 150))
    write(tmp_path, data)
    page = Page((tmp_path / PAGE).read_text())
    for words in ("tiny on <noise> & nothing", "noise", "95.25", "12.5", "10,000", "2 of 4"):
        assert words in page.words


@pytest.mark.parametrize(
    ("dimensions", "words"),
    [
        (1, "has one latent dimension"),
        (2, "has two latent dimensions, so this is the latent space itself"),
        (7, "What is seen is a projection"),
    ],
)
def test_captions_describe_the_projection(dimensions, words):
    data = report_data(dimensions=dimensions)
    projection = fit_projection(data.means)
    captions = Captions(data, projection)
    for name in ("movie.mp4", "latent_map.png"):
        assert words in " ".join(captions.paragraphs(name))
    if dimensions > 2:
        for axis in projection.names:
            assert re.fullmatch(r"principal component [12] \(\d+\s% of the variance\)", axis)
            for name in ("movie.mp4", "latent_map.png", "latent_plane.png"):
                assert axis in " ".join(captions.paragraphs(name))


def test_captions_of_a_conditional_model_say_which_class_is_decoded():
    plain, conditional = (
        report_data(dimensions=3, sampled=True, decoded_class=name) for name in ("", "the letter A")
    )
    for data, says in ((plain, False), (conditional, True)):
        captions = Captions(data, fit_projection(data.means))
        plane = captions.paragraphs("latent_plane.png")
        assert ("All are decoded as one class: the letter A." in plane) == says
        by_class = " ".join(captions.paragraphs("samples_by_class.png"))
        assert ("one style, each class" in by_class) == says


def test_a_second_report_removes_the_pictures_of_the_first(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write(tmp_path, report_data(sampled=True))
    write(tmp_path, report_data(frames=0, entries=0))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ALWAYS | {PAGE, "config.json"}
    assert ALWAYS | MOVIE | SAMPLED | {"curves.png"} == set(PICTURES)


def test_a_report_that_cannot_be_written_leaves_no_files(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, report_data(frames=1))
    assert list(tmp_path.iterdir()) == []


def test_the_live_picture_is_a_frame_and_is_removed_by_the_report(tmp_path):
    data = report_data()
    write_live(tmp_path, data)
    with Image.open(tmp_path / LIVE) as picture:
        assert picture.size == (1200, 720)
    lines = write(tmp_path, data)
    assert not (tmp_path / LIVE).exists()
    assert lines[-1] == f"{tmp_path / PAGE} shows the run"


def test_the_movie_moves_then_holds_its_last_frame_and_keeps_its_colours(tmp_path):
    write(tmp_path, report_data(frames=6))
    pictures, _ = decode_movie(tmp_path / "movie.mp4")
    changes = [np.abs(one.astype(int) - two).mean() for one, two in pairwise(pictures)]
    assert min(changes[:5]) > 0.5
    assert max(changes[5:]) < 0.5
    # The colour of the first class, at its dot in the legend, in both files.
    wanted = np.array([0x1B, 0x55, 0xC2])
    with Image.open(tmp_path / "movie.gif") as gif:
        durations, dots = [], []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            dots.append(np.asarray(gif.convert("RGB"))[31, 404])
        assert durations == [100] * 5 + [2000]
        assert gif.info["loop"] == 0
    assert np.abs(np.array(dots) - wanted).max() <= 2
    assert (np.array(dots) == dots[0]).all()
    assert np.abs(pictures[-1][46, 606].astype(int) - wanted).max() <= 12
    # The bar at the bottom grows.
    blue = [int((picture[-4, :, 0].astype(int) < 100).sum()) for picture in pictures[:6]]
    assert blue == [pytest.approx(1200 * (index + 1) / 6, abs=4) for index in range(6)]


def test_a_movie_that_is_too_large_is_encoded_smaller(monkeypatch):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (120, 200, 3), dtype=np.uint8) for _ in range(4)]
    assert len(movie.encode_mp4(frames)) > 50_000
    monkeypatch.setattr(movie, "_MP4_BYTES", 50_000)
    assert 10_000 < len(movie.encode_mp4(frames)) <= 50_000
    # The narrowest width is kept, even if the file is still too large.
    monkeypatch.setattr(movie, "_GIF_BYTES", 50_000)
    with Image.open(io.BytesIO(movie.encode_gif(frames))) as gif:
        assert gif.size == (400, 240)


def test_the_plane_of_two_latents_is_at_quantiles_of_the_standard_normal():
    projection = fit_projection(np.float32([[3, 4], [5, 9]]))
    across, upwards = projection.ticks(20)
    assert across == pytest.approx(-across[::-1])
    assert (across[0], across[9]) == (pytest.approx(-1.95996, abs=1e-5), pytest.approx(-0.0627068))
    assert (across == upwards).all()
    # The plane goes through the origin and not through the mean of the data.
    assert (projection.lift(np.array([[1.0, -2.0]])) == [[1, -2]]).all()


def test_the_plane_of_many_latents_goes_through_the_mean_along_principal_components():
    random = np.random.default_rng(1)
    spreads = np.array([0.1, 5.0, 0.2, 2.0])
    means = (random.normal(size=(5000, 4)) * spreads + 7).astype(np.float32)
    projection = fit_projection(means)
    assert projection.shares == (pytest.approx(0.86, abs=0.02), pytest.approx(0.14, abs=0.02))
    assert projection.axes[0] == pytest.approx([0, 1, 0, 0], abs=0.05)
    assert projection.axes[1] == pytest.approx([0, 0, 0, 1], abs=0.05)
    ticks = projection.ticks(20)
    assert ticks[:, -1] == pytest.approx([2.5 * 5, 2.5 * 2], rel=0.05)
    assert projection.lift(np.zeros((1, 2)))[0] == pytest.approx(means.mean(axis=0), abs=1e-4)
    back = projection.apply(projection.lift(np.array([[1.5, -0.5]])))
    assert back == pytest.approx(np.array([[1.5, -0.5]]), abs=1e-5)


def test_means_that_are_all_equal_can_be_projected(tmp_path):
    write(tmp_path, report_data(dimensions=3, means=np.zeros((300, 3), np.float32), frames=1))
    assert (tmp_path / PAGE).exists()


def test_points_of_one_latent_dimension_have_the_same_height_in_every_frame():
    projection = fit_projection(np.float32([[1], [2]]))
    first, second = (projection.apply(np.float32([[x], [3]])) for x in (0, 1))
    assert first[:, 1].tolist() == second[:, 1].tolist()
    assert first[:, 0].tolist() == [0, 3]


def test_a_window_is_enlarged_up_to_a_limit():
    small, large = Window((0, 0), (1, 1)), Window((1, 0), (9, 9))
    assert small.widened(large, 1.25).x == (-1.25, 1.25)
    assert small.widened(Window((0.1, 0), (1, 1)), 1.25).x == pytest.approx((-1.1, 1.1))
    assert large.widened(small, 1.25) == large


def test_a_few_outliers_do_not_enlarge_the_window():
    points = np.random.default_rng(0).normal(size=(10_000, 2))
    points[0] = 1000
    window = fit_window(fit_projection(points.astype(np.float32)), points)
    assert -5 < window.x[0] < -2.5
    assert window.x[1] - window.x[0] == pytest.approx(window.y[1] - window.y[0])


def test_latent_dimensions_are_active_by_the_variance_of_their_mean():
    means = np.zeros((4, 3), np.float32)
    means[:, 0] = [-1, 1, -1, 1]
    means[:, 1] = [-0.09, 0.09, -0.09, 0.09]
    data = report_data(
        dimensions=3,
        means=means,
        log_vars=np.zeros((4, 3), np.float32),
        map_labels=np.zeros(4, np.int64),
    )
    assert data.variances == pytest.approx([1, 0.0081, 0], abs=1e-6)
    assert data.active.tolist() == [True, False, False]
    # 1/2 (mean^2 + variance - 1 - log variance), mean over the images.
    assert data.kl_per_dimension == pytest.approx([0.5, 0.00405, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 4, 8, 8), np.uint8)}, r"images: got shape \[2, 4, 8, 8\], wanted"),
        ({"map_labels": np.zeros(3, np.int64)}, r"map_labels: got shape \[3\], wanted \[300\]"),
        ({"log_vars": np.zeros((3, 2), np.float32)}, r"log_vars: got shape \[3, 2\], wanted"),
        ({"labels": np.zeros(3, np.int64)}, r"frames\[0\].means: got shape \[150, 2\], wanted"),
    ],
)
def test_arrays_whose_shapes_disagree_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        report_data(**changes)


def test_samples_are_drawn_unconditionally_and_by_class():
    calls: list[tuple[int, int, int | None]] = []

    def sample(count: int, seed: int, label: int | None) -> np.ndarray:
        calls.append((count, seed, label))
        return np.zeros((count, 1, 8, 8), np.float32)

    data = report_data(sample=sample, sample_labels=("class 0", "class 1"))
    assert draw_samples(data)
    assert draw_samples_by_class(data)
    assert calls == [(SAMPLES, 0, None), (BY_CLASS, 0, 0), (BY_CLASS, 0, 1)]


def test_log_entries_without_a_finite_value_are_left_out_of_a_curve():
    log = [
        {"step": 1, "elbo": 3.0, "phase": "autoencoder"},
        {"step": 2, "elbo": None, "phase": "autoencoder"},
        {"step": 3, "phase": "prior"},
        {"step": 4, "elbo": float("nan"), "phase": "prior"},
        {"step": 5, "elbo": 2.0},
    ]
    steps, values = read_line(log, "elbo")
    assert (steps.tolist(), values.tolist()) == ([1, 5], [3, 2])
    assert phases(log) == [("autoencoder", 1.0), ("prior", 3.0)]
    assert [array.tolist() for array in read_line(log, "kl")] == [[], []]


def test_curves_name_a_phase_without_an_elbo_too():
    data = report_data()
    begun = [{**entry, "phase": "autoencoder"} for entry in data.log]
    later = [{"step": 400 + step, "phase": "prior", "loss": 1.0} for step in range(100)]
    plain, marked = (draw_curves(report_data(log=log)) for log in (data.log, begun + later))
    assert plain is not None
    assert marked is not None
    # The names of the phases take a line.
    heights = [Image.open(io.BytesIO(png)).height for png in (plain, marked)]
    assert heights[1] > heights[0]
    assert draw_curves(report_data(log=later)) is None


@pytest.mark.parametrize("count", [0, 1, 10, 11, 100])
def test_all_classes_have_different_marks(count):
    marks = class_marks(count)
    assert len(set(marks)) == count
    assert marks[:10] == class_marks(10)[:count]
    assert len({mark.colour for mark in marks}) == min(count, 10)
    labels = np.array([-1, 0, count])
    assert point_colours(labels, marks).shape == (3, 3)


LONG = tuple(f"the class of number {index} with a name that is too long" for index in range(12))
NAMES = {
    "three": ("cats", "dogs", "birds"),
    "twelve long": LONG,
    "a hundred": tuple(f"class {index}" for index in range(100)),
    "too many": tuple(f"class {index}" for index in range(250)),
    "one that is endless": ("x" * 300,),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_legend_in_columns_shows_up_to_a_hundred_names_within_its_width(names):
    canvas, width = Canvas(1200, 100), 1000.0
    legend = in_columns(canvas, width, [Entry(name, None) for name in names], 24)
    assert legend.complete == (len(names) <= MOST and len(names[0]) < 40)
    legend.draw(canvas, 100, 20)
    texts = canvas.figure.texts
    assert len(texts) == min(len(names), MOST)
    assert texts[-1].get_text() == names[-1] or len(names) > MOST or len(names[-1]) > 40
    boxes = [text.get_window_extent() for text in texts]
    assert min(box.x0 for box in boxes) >= 99
    assert max(box.x1 for box in boxes) <= 100 + width
    for one, other in combinations(boxes, 2):
        assert not one.shrunk(0.99, 0.8).overlaps(other.shrunk(0.99, 0.8))
    assert legend.height == legend.rows * 36
    if len(names) > MOST:
        assert texts[-1].get_text() == f"and {len(names) - MOST + 1} more"


def test_a_legend_in_rows_counts_what_it_leaves_out():
    canvas = Canvas(1200, 100)
    legend = in_rows(canvas, 500, [Entry(f"class {index}", None) for index in range(100)])
    legend.draw(canvas, 0, 20)
    *shown, last = [text.get_text() for text in canvas.figure.texts]
    assert last == f"and {100 - len(shown)} more"
    assert legend.rows == 3
    assert not legend.complete
    assert in_rows(canvas, 500, []).rows == 0


def test_the_map_of_many_classes_names_all_of_them():
    few, many = (report_data(classes=count, frames=0) for count in (3, 60))
    heights = [
        Image.open(io.BytesIO(draw_map(data, fit_projection(data.means)))).height
        for data in (few, many)
    ]
    # Sixty names in columns: at least four lines of 36 pixels.
    assert heights[1] > heights[0] + 4 * 36


def test_long_names_are_above_the_samples_of_their_class():
    heights = []
    for name in ("cats", LONG[0]):
        names = tuple(f"{name} {index}" for index in range(4))
        data = report_data(sampled=True, classes=4, class_names=names, sample_labels=names)
        heights.append(Image.open(io.BytesIO(draw_samples_by_class(data))).height)
    assert heights[1] > heights[0] + 4 * 22


def test_the_marks_of_many_classes_have_their_shapes():
    data = report_data(classes=12, frames=0, map_labels=np.arange(300) % 13 - 1)
    axes = Figure().add_axes((0, 0, 1, 1))
    at = np.zeros((300, 2))
    collection, order = scatter(axes, data, at, data.map_labels, Window((0, 0), (1, 1)), 9)
    for path, label in zip(collection.get_paths(), data.map_labels[order], strict=True):
        shape = "s" if label >= 10 else "o"
        assert path.vertices.tolist() == outline(shape).vertices.tolist()


def test_pictures_are_in_rgb_order():
    images = np.zeros((4, 3, 40, 72), np.uint8)
    images[0, 0], images[1, 1], images[2, 2], images[3] = 255, 255, 255, 128
    frame = Frame(1, "", 1.0, images, np.zeros((150, 2), np.float32))
    png = draw_reconstructions(report_data(images=images, frames=0), frame)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)):
        places = np.argwhere((pixels == colour).all(axis=2))
        height, width = places.max(axis=0) - places.min(axis=0) + 1
        # The image and its reconstruction, one above the other.
        assert height == pytest.approx(2 * width * 40 / 72 + 4, abs=2)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "logistic"])
def test_the_unit_of_the_movie_is_that_of_the_likelihood(likelihood):
    data = report_data(channels=3, size=32, likelihood=likelihood)
    nats = 3.25 * 3072 * np.log(2)
    stage = Stage(data, fit_projection(data.means))
    stage.draw(dataclasses.replace(data.frames[0], elbo=nats), 0.5)
    texts = stage.texts
    captions = Captions(data, fit_projection(data.means))
    curves = " ".join(captions.paragraphs("curves.png"))
    assert likelihood in curves.lower()
    if likelihood == "bernoulli":
        assert {"ELBO, nats", "6,920.4"} <= set(texts)
        assert "nats needed to encode an image" in captions.paragraphs("movie.mp4")[-1]
    else:
        assert {"bits/dim", "3.250"} <= set(texts)
        assert "3,072 values of an image" in captions.paragraphs("movie.mp4")[-1]
        assert likelihood in captions.paragraphs("movie.mp4")[-1].lower()


def test_the_page_has_the_figures_of_a_colour_run(tmp_path):
    metrics = {"elbo": 41234.56, "bits_per_dimension": 4.8413, "psnr": 18.54, "ssim": 0.712}
    write(tmp_path, report_data(frames=0, metrics=metrics))
    words = Page((tmp_path / PAGE).read_text()).words
    for text in ("41,234.6", "4.841", "bits per dimension", "18.5", "PSNR", "SSIM", "0.712"):
        assert text in words


def test_light_strokes_on_black_are_inverted():
    strokes = np.zeros((2, 1, 8, 8), np.uint8)
    strokes[:, :, 3:5, 3:5] = 255
    assert is_ink(strokes)
    assert fit(strokes, 16, ink=True)[0, 0, 0].tolist() == [255, 255, 255]
    assert not is_ink(255 - strokes)
    assert not is_ink(strokes.repeat(3, axis=1))


def test_floats_are_clipped_to_bytes():
    values = np.float32([-1, 0, 0.5, 1, 2, np.nan, np.inf])
    assert clip_to_bytes(values).tolist() == [0, 0, 128, 255, 255, 0, 255]


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (128, 128), (40, 20)])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_images_fill_a_box_without_exceeding_it(size, count):
    box = (200.0, 500.0)
    columns = best_columns(count, size, box)
    side = side_within(count, columns, size, box, 6)
    pictures = fit(np.zeros((count, 3, *size), np.uint8), side, ink=False)
    height, width = lay_out(pictures, columns, 6).shape[:2]
    assert height <= box[0] + 1
    assert width <= box[1] + 1
    assert height > 0.6 * box[0] or width > 0.6 * box[1]


def test_nested_figures_are_flattened_and_rounded():
    metrics: dict[str, object] = {
        "elbo_stderr": 0.49651,
        "fid": {"value": 12345.6, "ok": True},
        "curve": list(range(101)),
        "nothing": None,
    }
    assert list(flatten(metrics)) == [
        ("ELBO standard error", "0.4965"),
        ("FID: Value", "12,346"),
        ("FID: Ok", "yes"),
        ("Curve", "101 values"),
        ("Nothing", "\N{EN DASH}"),
    ]
