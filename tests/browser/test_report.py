"""`report.html` in a real browser."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.support.chromium import open_chromium
from tests.training.test_report import report_data, write
from training.report.write import PAGE


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a written report."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, report_data(dimensions=5, frames=8, sampled=True))
    return (folder / PAGE).as_uri()


def opened(browser: Browser, width: int, dark: bool) -> tuple[Page, list[str], list[str]]:
    """A new tab, the addresses that it asks for, and what it logs."""
    page = browser.new_page(
        viewport={"width": width, "height": 900},
        is_mobile=width < 600,
        color_scheme="dark" if dark else "light",
    )
    asked: list[str] = []
    logged: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    return page, asked, logged


@pytest.mark.parametrize("width", [420, 1200])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_visible_in_full_and_makes_no_network_request(
    browser: Browser, address: str, width: int, dark: bool
) -> None:
    page, asked, logged = opened(browser, width, dark)
    page.goto(address)
    pictures = page.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert len(pictures) == 7
    for complete, natural, shown, alt in pictures:
        assert complete
        assert natural > 0
        assert 200 < shown <= width
        assert alt

    video = page.evaluate(
        """() => new Promise(done => {
            const v = document.querySelector("video");
            const tell = () => done({
                ready: v.readyState, seconds: v.duration, width: v.videoWidth,
                height: v.videoHeight, muted: v.muted, loop: v.loop, error: v.error?.message,
            });
            v.readyState >= 3 || v.error ? tell() : v.addEventListener("canplay", tell);
            setTimeout(tell, 20000);
        })"""
    )
    assert video == {
        "ready": video["ready"], "seconds": pytest.approx(2.7, abs=0.15), "width": 1200,
        "height": 720, "muted": True, "loop": True, "error": None,
    }  # fmt: skip
    assert video["ready"] >= 3

    # No horizontal scrolling, and the only requests are for the page and its data: URLs.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    schemes = [url.partition(":")[0] for url in asked]
    assert set(schemes) <= {"file", "data"}
    assert schemes.count("file") == 1
    assert logged == []

    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    assert picture.width == width
    assert picture.height > 3 * width
    pixels = np.asarray(picture)
    assert (pixels[0, 0].mean() < 64) == dark
    page.close()


def test_the_movie_of_the_report_plays_by_itself(browser: Browser, address: str) -> None:
    page, _, _ = opened(browser, 1200, dark=False)
    page.goto(address)
    assert page.evaluate(
        """() => new Promise(done => {
            const v = document.querySelector("video");
            v.addEventListener("timeupdate", () => v.currentTime > 0.3 && done(true));
            setTimeout(() => done(false), 20000);
        })"""
    )
    page.close()
