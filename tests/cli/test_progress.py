"""The progress bar of long commands, on a terminal and elsewhere."""

import io
import os
import pty
import termios

import pytest

from latentserve._cli.progress import ProgressBar, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_rows_rate_and_time_left_and_is_cleared():
    now, stream = [0.0], Terminal()
    with ProgressBar(stream, lambda: now[0]) as bar:
        bar.count("sample", 1000, 5000)  # resumed: the rate is measured from here
        now[0] = 2.0
        bar.count("sample", 3000, 5000)
        assert stream.getvalue() == (
            "\r 60% |###########        | sample: 3,000 of 5,000 rows, 1,000 rows/s, 0:02 left"
        )
        now[0] = 2.05
        bar.count("sample", 3100, 5000)  # too soon to draw again
    lines = stream.getvalue().split("\r")
    assert len(lines) == 4
    assert set(lines[2]) == {" "}


def test_without_a_terminal_a_line_is_printed_every_ten_seconds():
    now, stream = [0.0], io.StringIO()
    with ProgressBar(stream, lambda: now[0]) as bar:
        for second in range(0, 7300, 5):
            now[0] = float(second)
            bar.count("encode", second, 14_400)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 729
    assert lines[0] == "  0% encode: 10 of 14,400 rows, 1 rows/s, 3:59:50 left"


def test_a_stage_that_ends_at_once_is_not_shown_and_each_stage_has_its_own_rate():
    now, stream = [0.0], io.StringIO()
    bar = ProgressBar(stream, lambda: now[0])
    for now[0], stage, done in ((9.0, "a", 0), (11.0, "a", 9), (12.0, "b", 0), (32.0, "b", 5)):
        bar.count(stage, done, 10, unit="images")
    assert stream.getvalue() == " 50% b: 5 of 10 images, 0 images/s, 0:20 left\n"


def test_a_line_is_printed_below_the_bar_in_its_latest_state():
    now, stream = [0.0], Terminal()
    bar = ProgressBar(stream, lambda: now[0])
    now[0] = 1.0
    bar.show(0.5, "half")
    bar.show(0.7, "more")
    bar.line("validated")
    bar.leave()  # nothing is on the screen
    bar.clear()
    assert stream.getvalue().split("\r") == [
        "",
        f" 50% |{'#' * 15:30}| half",
        f" 70% |{'#' * 21:30}| more\nvalidated\n",
    ]


def test_the_end_is_drawn_however_soon_it_comes_after_the_last_drawing():
    now, stream = [0.0], Terminal()
    bar = ProgressBar(stream, lambda: now[0])
    now[0] = 1.0
    bar.show(0.99, "NLL")
    bar.show(1.0, "NLL")
    assert stream.getvalue().split("\r")[-1] == f"100% |{'#' * 30}| NLL"


def test_a_shorter_bar_overwrites_a_longer_one():
    now, stream = [0.0], Terminal()
    bar = ProgressBar(stream, lambda: now[0])
    for now[0], text in ((1.0, "autoencoder"), (2.0, "joint")):
        bar.show(0.5, text)
    first, second = stream.getvalue().split("\r")[1:]
    assert len(second) == len(first)
    assert second.endswith("| joint      ")


@pytest.mark.parametrize(("columns", "length"), [(200, 57), (80, 57), (40, 39), (20, 19), (0, 57)])
def test_a_bar_fits_the_width_of_the_terminal(columns, length):
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    now = [0.0]
    with os.fdopen(terminal, "w") as stream:
        bar = ProgressBar(stream, lambda: now[0])
        now[0] = 1.0
        bar.show(0.5, "autoencoder ELBO 99")
    shown = os.read(screen, 1000).decode()
    os.close(screen)
    assert shown.startswith("\r 50% |")
    assert len(shown) - 1 == length


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")]
)
def test_durations_are_in_minutes_and_hours(seconds, text):
    assert duration(seconds) == text
