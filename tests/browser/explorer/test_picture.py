"""The explorer's view of a picture of the visitor's: drawn, dropped, chosen or pasted."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import expect

from latentserve.client import Client
from tests.support.explorer import PHONE, Explorer, Tab, png, shows

SEEN, AGAIN, DIFFERENCE = (
    "The picture, as the model sees it",
    "Its reconstruction",
    "Where they differ",
)
RESTYLED = "This style in all classes"
# Drops a file on an element, or pastes it.
HAND_OVER = """(target, [event, content]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "digit.png", { type: "image/png" }));
    const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
    if (event === "drop") target.dispatchEvent(new DragEvent("dragover", options));
    const kind = event === "drop" ? DragEvent : ClipboardEvent;
    target.dispatchEvent(new kind(event, options));
}"""
# A seven, in parts of the pad's side.
SEVEN = ((0.28, 0.25), (0.72, 0.25), (0.5, 0.55), (0.42, 0.85))


def opened(explorer: Explorer, model: str, state: str = "", **options: object) -> Tab:
    tab = explorer.open(f"model={model}&view=picture&{state}", **options)  # type: ignore[arg-type]
    expect(tab.page.locator(".pad")).to_be_visible()
    return tab.settled()


def places(tab: Tab) -> list[tuple[float, float]]:
    pad = tab.page.locator(".pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    assert box is not None
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in SEVEN]


def examined(tab: Tab, channels: int = 1) -> NDArray[np.uint8]:
    """The picture, as the model sees it, once all results are shown: uint8 [1, C, H, W]."""
    # The five nearest come last.
    expect(tab.page.locator(".nearest li")).to_have_count(5)
    tab.settled()
    return tab.pixels(SEEN)[None, ..., :channels].transpose(0, 3, 1, 2)


def check(tab: Tab, client: Client, model: str, label: int | None = None) -> None:
    """Compares what the page shows of the newest picture with the Python client's replies."""
    images = examined(tab)
    assert images.shape == (1, 1, 28, 28)
    labels = None if label is None else [label]
    again = client.reconstruct(images, model=model, labels=labels, dtype="uint8")[0]
    tab.until_shown(AGAIN, again)

    change = again[0].astype(int) - images[0, 0]
    shown = tab.pixels(DIFFERENCE).astype(int)
    assert (shown[change > 20, 0] > shown[change > 20, 2]).all()
    assert (shown[change < -20, 2] > shown[change < -20, 0]).all()
    assert (shown[abs(change) < 2, :3] < 8).all()

    told = tab.page.locator(".panel", has_text="What the model makes of it").inner_text()
    score = client.score(images, model=model, labels=labels)
    assert score.percentile is not None
    decibels = 10 * np.log10(255**2 / np.mean((images[0] - again.astype(float)) ** 2))
    numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*(?= (?:dB|nats|%))", told)]
    np.testing.assert_allclose(numbers, [decibels, score.elbo[0], score.percentile[0]], atol=0.55)

    found = client.encode(images, model=model, labels=labels)
    for row in tab.page.locator(".posterior tr").all()[:3]:
        axis = int(row.locator("th").inner_text()[1:])
        mean, spread = map(float, row.locator("td").last.inner_text().split(" ± "))
        assert mean == pytest.approx(float(found.mean[0, axis]), abs=0.011)
        assert spread == pytest.approx(float(np.exp(found.log_var[0, axis] / 2)), abs=0.011)

    samples = client.sample(256, seed=0, model=model, dtype="uint8")
    errors = ((samples.astype(float) - images) ** 2).mean((1, 2, 3))
    numbers = [int(one.split()[-1]) for one in tab.page.locator(".nearest li").all_inner_texts()]
    assert numbers == np.argsort(errors, kind="stable")[:5].tolist()

    if label is not None:
        restyled = client.restyle(images, [label], range(10), model=model, dtype="uint8")
        tab.until_shown(RESTYLED, restyled[0])


def test_a_drawing_with_the_mouse(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, "mnist-style", "label=7")
    first, *rest = places(tab)
    tab.page.mouse.move(*first)
    tab.page.mouse.down()
    for place in rest:
        tab.page.mouse.move(*place, steps=4)
    tab.page.mouse.up()

    def as_in_mnist() -> bool:
        """Whether the ink fits into 20 x 20 pixels and its centre of mass is in the middle."""
        ink = tab.pixels(SEEN)[..., 0].astype(float)
        if ink.shape != (28, 28) or not ink.any():
            return False
        lines, columns = np.nonzero(ink > 60)
        middle = (ink.sum(1) @ np.arange(28)) / ink.sum()
        return 18 <= max(np.ptp(lines), np.ptp(columns)) + 1 <= 22 and abs(middle - 13.5) < 0.6

    tab.until(as_in_mnist, "centred")
    check(tab, client, "mnist-style", label=7)

    tab.page.get_by_role("button", name="3", exact=True).click()
    check(tab, client, "mnist-style", label=3)

    # The address holds the drawing and its class.
    other = explorer.again(tab)
    for label in (SEEN, AGAIN, RESTYLED):
        other.until(
            lambda label=label: np.array_equal(other.pixels(label), tab.pixels(label)), label
        )

    before = tab.pixels(SEEN)
    tab.page.get_by_role("button", name="Centre as MNIST does").click()
    tab.until(lambda: (tab.pixels(SEEN) != before).any(), "not centred any more")
    tab.settled()
    tab.page.get_by_role("button", name="Invert").click()
    tab.until(lambda: tab.pixels(SEEN)[..., 0].mean() > 128, "inverted")
    tab.page.get_by_role("button", name="Undo").click()
    tab.until(lambda: tab.pixels(SEEN)[..., 0].mean() < 128, "as it was")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Save", exact=True).click()
    assert np.asarray(Image.open(download.value.path())).shape[:2] == (28, 28)
    tab.page.get_by_role("button", name="Clear").click()
    tab.until(lambda: tab.pixels(SEEN)[..., :3].max() == 0, "nothing")


def test_a_drawing_with_a_finger(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, "mnist", width=PHONE, dark=True)
    session = tab.page.context.new_cdp_session(tab.page)
    first, *rest = places(tab)
    scrolled = tab.page.evaluate("scrollY")
    for kind, place in [("touchStart", first), *(("touchMove", place) for place in rest)]:
        points = [{"x": place[0], "y": place[1]}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    tab.until(lambda: (tab.pixels(SEEN)[..., 0] > 128).sum() > 40, "a drawing")
    check(tab, client, "mnist")
    assert tab.page.evaluate("scrollY") == scrolled


def test_a_drawing_with_the_keyboard(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, "mnist2d")
    press = tab.page.keyboard.press
    tab.tab_to(tab.page.locator(".pad"))
    for _ in range(8):
        press("ArrowUp")
    assert tab.calls("reconstruct") == []  # the pen is up
    pen = tab.page.locator(".pen")
    expect(pen).to_be_visible()
    press(" ")
    expect(pen).to_have_class("pen down")
    for _ in range(16):
        press("ArrowDown")
    press(" ")
    press("ArrowLeft")

    def upright() -> bool:
        ink = tab.pixels(SEEN)[..., 0] > 128
        return bool(ink.any() and ink.any(1).sum() > 3 * ink.any(0).sum())

    tab.until(upright, "a line from top to bottom")
    check(tab, client, "mnist2d")
    box, pad = pen.bounding_box(), tab.page.locator(".pad").bounding_box()
    assert box is not None
    assert pad is not None
    middle = box["y"] + box["height"] / 2
    assert (middle - pad["y"]) / pad["height"] == pytest.approx((14 - 8 + 16) / 28, abs=0.01)
    press("Delete")
    tab.until(lambda: tab.pixels(SEEN)[..., :3].max() == 0, "nothing")


def test_a_file_is_chosen_dropped_or_pasted(
    explorer: Explorer, client: Client, digits: list[Path], tmp_path: Path
) -> None:
    tab = opened(explorer, "mnist")

    def wanted(file: Path) -> NDArray[np.uint8]:
        return np.asarray(Image.open(file))[None]

    tab.page.locator("input[type=file]").set_input_files(digits[0])
    tab.until_shown(SEEN, wanted(digits[0]))
    check(tab, client, "mnist")

    # Anywhere on the page.
    for file, event in ((digits[1], "drop"), (digits[2], "paste")):
        content = base64.b64encode(file.read_bytes()).decode()
        tab.page.locator("h1").evaluate(HAND_OVER, [event, content])
        tab.until_shown(SEEN, wanted(file))

    # A photograph of another size and with transparency is fitted, on white.
    photo = tmp_path / "photo.png"
    Image.new("RGBA", (300, 120), (0, 0, 0, 0)).save(photo)
    tab.page.locator("input[type=file]").set_input_files(photo)
    tab.until(lambda: tab.pixels(SEEN)[..., 0].min() == 255, "white")

    (tmp_path / "not.png").write_text("no picture")
    tab.page.locator("input[type=file]").set_input_files(tmp_path / "not.png")
    expect(tab.page.get_by_role("alert")).to_have_text(
        "not.png: not a picture that this browser can read"
    )


def test_a_picture_in_colour(explorer: Explorer, client: Client, tmp_path: Path) -> None:
    tab = opened(explorer, "emoji")
    image = client.sample(1, seed=3, temperature=0.5, model="emoji", dtype="uint8")[0]
    tab.page.locator("input[type=file]").set_input_files(png(tmp_path / "icon.png", image))
    tab.until_shown(SEEN, image)
    again = client.reconstruct(examined(tab, channels=3), model="emoji", dtype="uint8")[0]
    tab.until_shown(AGAIN, again)
    other = explorer.again(tab)
    if "picture" in tab.state():
        other.until(lambda: shows(other.pixels(AGAIN), again), "the same reconstruction")
