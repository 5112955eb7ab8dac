"""Takes the pictures of the explorer that README shows, of a server of the shipped models.

    .venv/bin/python -m docs.make_screenshots

It needs a Chromium, such as Debian's.
"""

import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.support.chromium import find_chromium
from tests.support.processes import MNIST, Server

_PICTURES = Path(__file__).parent / "pictures"
_WIDTH, _HEIGHT = 1200, 980
# A three, in parts of the pad's side.
_THREE = (
    (0.30, 0.20), (0.50, 0.12), (0.68, 0.25), (0.60, 0.42), (0.45, 0.48), (0.65, 0.55),
    (0.70, 0.75), (0.50, 0.88), (0.30, 0.80),
)  # fmt: skip


def main() -> None:
    """Writes `explorer_plane.png` and `explorer_picture.png` into docs/pictures."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with (
            Server(None, log, *MNIST, "--gateway-port", "0") as server,
            sync_playwright() as engine,
        ):
            server.wait_until_serving()
            browser = engine.chromium.launch(
                executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
            _plane(page, f"{server.gateway}/#model=mnist2d&z=-1.2,0.9&pins=-1.8,1.6;0.9,-0.5")
            _picture(page, f"{server.gateway}/#model=mnist-style&view=picture&label=3")
            browser.close()


def _plane(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Pause").wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=_PICTURES / "explorer_plane.png")


def _picture(page: Page, address: str) -> None:
    page.goto("about:blank")
    page.goto(address)
    box = page.locator(".pad").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in _THREE]
    page.mouse.move(*places[0])
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    page.locator(".nearest li").nth(4).wait_for()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=_PICTURES / "explorer_picture.png")


if __name__ == "__main__":
    main()
