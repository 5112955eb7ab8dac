"""The explorer's plane: a model of two dimensions, with mouse, keyboard and finger."""

import json
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Route, expect

from latentserve.client import Client
from tests.support.conditional import Conditional, write_conditional
from tests.support.explorer import PHONE, Explorer, Tab, exploring, posted, shows
from tests.support.processes import Server
from tests.support.tiny import write_tiny

MODEL = "mnist2d"
#: The decoded plane has 25 x 25 images; the middle of each is its point, from -3 to 3.
GRID = 25
REACH = 3 * (1 + 1 / (GRID - 1))
NOW = "The image at the point"
FILM = "From one pin to the other"
STRIP = f"{FILM}: all frames, from left to right"
PLANE = "The plane, decoded: a grid of images"


def stage(tab: Tab) -> Locator:
    return tab.page.locator(".plane")


def place(tab: Tab, x: float, y: float) -> tuple[float, float]:
    """A place of the window, given parts of the plane's width and height."""
    stage(tab).scroll_into_view_if_needed()
    box = stage(tab).bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def latent(x: float, y: float) -> list[float]:
    return [REACH * (2 * x - 1), REACH * (1 - 2 * y)]


def opened(explorer: Explorer, **options: object) -> Tab:
    tab = explorer.open(f"model={MODEL}&view=plane", **options)  # type: ignore[arg-type]
    expect(stage(tab)).to_be_visible()
    return tab.settled()


def test_the_pointer_decodes_where_it_is(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer)
    before = tab.pixels(NOW)
    for column, line in ((3, 5), (20, 18)):
        x, y = (column + 0.5) / GRID, (line + 0.5) / GRID
        tab.page.mouse.move(*place(tab, x, y))
        tab.settled()
        sent = posted(tab.calls("decode")[-1])
        # The browser rounds the pointer's place to parts of a pixel.
        np.testing.assert_allclose(sent, [latent(x, y)], atol=0.02)
        tab.until_shown(NOW, client.decode(sent, model=MODEL, dtype="uint8")[0])
        now = tab.pixels(NOW).astype(int)
        assert abs(now - before).max() > 50
        cell = tab.pixels(PLANE)[28 * line :, 28 * column :][:28, :28]
        assert abs(now - cell).mean() < 3
        assert abs(tab.pixels(NOW).astype(int) - before).max() > 50


def test_two_clicks_pin_and_a_film_leads_from_one_to_the_other(
    explorer: Explorer, client: Client
) -> None:
    tab = opened(explorer)
    film = tab.canvas(STRIP)
    tab.page.mouse.click(*place(tab, 0.2, 0.2))
    expect(tab.page.get_by_text("One pin, at")).to_be_visible()
    expect(film).to_be_hidden()
    tab.page.mouse.click(*place(tab, 0.8, 0.7))
    expect(film).to_be_visible()
    tab.settled()
    pins = [[float(z) for z in pin.split(",")] for pin in tab.state()["pins"].split(";")]
    np.testing.assert_allclose(pins, [latent(0.2, 0.2), latent(0.8, 0.7)], atol=0.02)
    path = client.interpolate(*pins, 24, model=MODEL, dtype="uint8").images
    tab.until_shown(STRIP, path)

    # It plays, and stops.
    tab.until(lambda: shows(tab.pixels(tab.canvas(FILM).first), path[5]), "the film plays")
    tab.page.get_by_role("button", name="Pause").click()
    tab.page.get_by_role("slider", name="Frame").fill("23")
    tab.until_shown(tab.canvas(FILM).first, path[23])

    # The address holds all of it.
    other = explorer.again(tab)
    expect(other.canvas(STRIP)).to_be_visible()
    other.settled()
    for label in (NOW, STRIP, PLANE):
        assert (other.pixels(label) == tab.pixels(label)).all()

    # A third pin begins anew, and none hides the film.
    tab.page.mouse.click(*place(tab, 0.5, 0.5))
    expect(tab.page.get_by_text("One pin, at")).to_be_visible()
    tab.page.get_by_role("button", name="Remove the pins").click()
    expect(film).to_be_hidden()
    assert "pins" not in tab.settled().state()


def test_all_of_it_with_the_keyboard_alone(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer)
    press = tab.page.keyboard.press
    tab.tab_to(stage(tab))
    press("ArrowRight")
    press("ArrowUp")
    tab.settled()
    np.testing.assert_allclose(posted(tab.calls("decode")[-1]), [[REACH / 100] * 2], atol=1e-4)
    press("Enter")
    expect(tab.page.get_by_text("One pin, at 0.03, 0.03.")).to_be_visible()
    press("Shift+ArrowLeft")
    press("ArrowDown")
    press("Enter")
    expect(tab.canvas(STRIP)).to_be_visible()
    tab.settled()
    sent = posted(tab.calls("decode")[-1])
    np.testing.assert_allclose(sent, [[-9 * REACH / 100, 0]], atol=1e-3)
    tab.until_shown(NOW, client.decode(sent, model=MODEL, dtype="uint8")[0])
    press("Escape")
    expect(tab.canvas(STRIP)).to_be_hidden()

    # The numbers can be typed as well.
    field = tab.page.get_by_label("z1")
    tab.tab_to(field)
    field.fill("1.5")
    press("Enter")
    tab.settled()
    np.testing.assert_allclose(posted(tab.calls("decode")[-1])[0, 1], 1.5)


def test_a_finger_drags_to_decode_and_taps_to_pin(explorer: Explorer) -> None:
    tab = opened(explorer, width=PHONE, dark=True)
    # The image is above the plane, where the finger does not hide it.
    image = tab.canvas(NOW).bounding_box()
    plane = stage(tab).bounding_box()
    assert image is not None
    assert plane is not None
    assert image["y"] + image["height"] <= plane["y"]

    session = tab.page.context.new_cdp_session(tab.page)

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": x, "y": y} for x, y in places]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = len(tab.calls("decode"))
    touch("touchStart", place(tab, 0.3, 0.3))
    for step in range(1, 9):
        touch("touchMove", place(tab, 0.3 + 0.05 * step, 0.3))
    touch("touchEnd")
    tab.settled()
    assert len(tab.calls("decode")) > before + 1
    np.testing.assert_allclose(posted(tab.calls("decode")[-1]), [latent(0.7, 0.3)], atol=0.05)
    assert "pins" not in tab.state()
    # The page has not been scrolled.
    assert tab.page.evaluate("scrollY") == 0

    for x in (0.3, 0.6):
        tab.page.touchscreen.tap(*place(tab, x, 0.4))
    expect(tab.canvas(STRIP)).to_be_visible()
    assert tab.settled().state()["pins"].count(";") == 1


def test_at_most_two_requests_are_in_flight_and_only_the_newest_counts(
    explorer: Explorer, client: Client
) -> None:
    tab = opened(explorer)
    held: list[Route] = []
    tab.page.route("**/*:decode?*", lambda route: held.append(route))
    for step in range(40):
        tab.page.mouse.move(*place(tab, 0.1 + 0.02 * step, 0.5))
    tab.until(lambda: len(held) >= 2, "two requests")
    tab.page.wait_for_timeout(200)
    assert len(held) == 2

    first, second = held
    seen = tab.pixels(NOW)
    second.continue_()
    wanted = client.decode(posted(second.request), model=MODEL, dtype="uint8")[0]
    tab.until_shown(NOW, wanted)
    assert (tab.pixels(NOW) != seen).any()
    # The next request is of the last place, and those between are never made.
    tab.until(lambda: len(held) == 3, "the newest request")
    np.testing.assert_allclose(posted(held[2].request), [latent(0.88, 0.5)], atol=0.02)
    # A reply that comes later than a newer one is not shown.
    first.continue_()
    tab.page.wait_for_timeout(200)
    assert shows(tab.pixels(NOW), wanted)
    held[2].continue_()
    tab.settled()
    assert len(held) == 3
    tab.until_shown(NOW, client.decode(posted(held[2].request), model=MODEL, dtype="uint8")[0])


def test_a_film_that_comes_late_does_not_replace_a_newer_one(
    explorer: Explorer, client: Client
) -> None:
    tab = opened(explorer)
    held: list[Route] = []
    tab.page.route("**/*:interpolate*", lambda route: held.append(route))
    for number, x in enumerate((0.2, 0.4, 0.6, 0.8)):
        tab.page.mouse.click(*place(tab, x, 0.5))
        tab.until(lambda number=number: len(held) == (number + 1) // 2, "the films")
    first, second = held
    second.continue_()
    expect(tab.canvas(STRIP)).to_be_visible()
    ends = json.loads(second.request.post_data or "")["latents"]
    path = client.interpolate(*ends, 24, model=MODEL, dtype="uint8").images
    tab.until_shown(STRIP, path)
    first.continue_()
    tab.page.wait_for_timeout(300)
    tab.until_shown(STRIP, path)

    # Nor does it come back once its pins are removed.
    tab.page.get_by_role("button", name="Remove the pins").click()
    for x in (0.3, 0.7):
        tab.page.mouse.click(*place(tab, x, 0.5))
    tab.until(lambda: len(held) == 3, "the film")
    tab.page.get_by_role("button", name="Remove the pins").click()
    held[2].continue_()
    tab.page.wait_for_timeout(300)
    expect(tab.canvas(STRIP)).to_be_hidden()


def test_a_plane_that_comes_late_does_not_replace_that_of_the_class(
    browser: Browser, tmp_path: Path
) -> None:
    write_conditional(tmp_path / "models" / "flat", Conditional(dim=2))
    with (
        Server(tmp_path / "models", tmp_path / "log", "--gateway-port", "0") as server,
        exploring(browser, server.wait_until_serving().gateway) as explorer,
    ):
        tab = explorer.open("model=flat&view=plane&label=2")
        expect(stage(tab)).to_be_visible()
        wanted = tab.settled().pixels(PLANE)
        held: list[Route] = []
        tab.page.route("**/*:traverse?*", lambda route: held.append(route))
        for number, name in enumerate("bc", 1):
            tab.page.get_by_role("button", name=name, exact=True).click()
            tab.until(lambda number=number: len(held) == number, "the plane")
        held[1].continue_()
        tab.until(lambda: (tab.pixels(PLANE) == wanted).all(), "the plane of the class")
        held[0].continue_()
        tab.page.wait_for_timeout(300)
        assert (tab.pixels(PLANE) == wanted).all()


def test_a_server_of_few_rows_shows_fewer_images(browser: Browser, tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "one", dim=2)
    options = ("--gateway-port", "0", "--max-rows", "20")
    with (
        Server(tmp_path / "models", tmp_path / "log", *options) as server,
        exploring(browser, server.wait_until_serving().gateway) as explorer,
    ):
        tab = explorer.open("view=plane&pins=-1,0;1,1")
        expect(tab.canvas(STRIP)).to_be_visible()
        tab.settled()
        assert tab.pixels(PLANE).shape == (4 * 4, 4 * 4, 4)
        assert tab.pixels(STRIP).shape == (4, 20 * 4, 4)
        assert ", 20, " in (tab.page.locator(".snippet code").text_content() or "")


def test_a_moving_pointer_gets_fifteen_images_a_second(explorer: Explorer) -> None:
    tab = opened(explorer)
    replies: list[float] = []
    tab.page.on(
        "requestfinished",
        lambda request: ":decode" in request.url and replies.append(time.monotonic()),
    )
    (left, top), (right, bottom) = place(tab, 0.2, 0.2), place(tab, 0.8, 0.8)
    medians = []
    for _ in range(3):
        began = time.monotonic()
        while (now := time.monotonic()) < began + 5:
            across, down = (np.sin([3, 2] * np.array(now - began)) + 1) / 2
            tab.page.mouse.move(left + across * (right - left), top + down * (bottom - top))
        counts = [
            sum(began + second <= reply < began + second + 1 for reply in replies)
            for second in range(5)
        ]
        medians.append(statistics.median(counts))
        if medians[-1] >= 15:
            return
    raise AssertionError(f"decoded replies a second: {medians}")


def test_test_images_can_be_hidden_by_class(explorer: Explorer) -> None:
    tab = opened(explorer)
    points = tab.page.locator(".points")
    everything = (tab.pixels(points)[..., 3] > 0).sum()
    seven = tab.page.get_by_role("button", name="7", exact=True)
    seven.click()
    expect(seven).to_have_attribute("aria-pressed", "false")
    assert 0 < (tab.pixels(points)[..., 3] > 0).sum() < everything
    tab.page.get_by_role("button", name="Test images").click()
    expect(points).to_be_hidden()
    again = explorer.again(tab)
    seven = again.page.get_by_role("button", name="7", exact=True)
    expect(seven).to_have_attribute("aria-pressed", "false")
    expect(again.page.locator(".points")).to_be_hidden()


@pytest.mark.parametrize(
    "state", ["z=foo,bar&pins=x;1", "z=1&pins=;;", "z=1e9,-1e9&pins=1,2;3,4;5,6"]
)
def test_an_address_that_makes_no_sense_is_read_as_far_as_it_does(
    state: str, explorer: Explorer
) -> None:
    tab = explorer.open(f"model={MODEL}&view=plane&{state}")
    expect(stage(tab)).to_be_visible()
    tab.settled()
    assert np.isfinite(posted(tab.calls("decode")[-1])).all()
    expect(tab.page.locator(".note")).to_have_count(0)
    assert "undefined" not in tab.page.inner_text("main")
    assert "NaN" not in tab.page.inner_text("main")
