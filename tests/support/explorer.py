"""The explorer in a browser: tabs that note what they ask for and what goes wrong in them."""

import base64
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request

# Milliseconds without a call, after which the page is done; it writes its address after 150.
_STILL = 200
_STEP = 20
_SECONDS = 30.0
PHONE, DESK = 375, 1200


class Tab:
    """A page of the explorer.

    Attributes:
        page: Playwright's page.
        requests: What it has asked for, in order.
        problems: Console errors and page errors that no test has said it expects.
    """

    def __init__(self, page: Page, origin: str, expected: str):
        self.page = page
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self._pending: set[Request] = set()
        self._origin = origin
        self._expected = expected
        page.on("request", self._asked)
        page.on("requestfinished", self._answered)
        page.on("requestfailed", self._answered)
        page.on("pageerror", lambda error: self._problem(f"page error: {error}"))
        page.on("dialog", lambda dialog: self._problem(f"dialog: {dialog.message}"))
        page.on(
            "console",
            lambda message: self._problem(message.text) if message.type != "log" else None,
        )

    def _asked(self, request: Request) -> None:
        self.requests.append(request)
        self._pending.add(request)
        if not request.url.startswith((f"{self._origin}/", "blob:", "about:", "data:")):
            self._problem(f"a request to {request.url}")

    def _answered(self, request: Request) -> None:
        self._pending.discard(request)

    def _problem(self, text: str) -> None:
        if not (self._expected and re.search(self._expected, text)):
            self.problems.append(text)

    def calls(self, operation: str) -> list[Request]:
        """The requests of an operation, such as `decode`, in order."""
        return [one for one in self.requests if urlsplit(one.url).path.endswith(f":{operation}")]

    def until(
        self, condition: Callable[[], object], what: str = "", seconds: float = _SECONDS
    ) -> None:
        """Waits until a condition holds, while the browser goes on."""
        for _ in range(int(1000 * seconds / _STEP)):
            if condition():
                return
            self.page.wait_for_timeout(_STEP)
        raise AssertionError(f"{what or condition} not within {seconds} s")

    def settled(self) -> "Tab":
        """Waits until no call is in flight, and has not been for a while; returns the tab."""
        still = 0
        for _ in range(int(1000 * _SECONDS / _STEP)):
            self.page.wait_for_timeout(_STEP)
            still = 0 if self._pending else still + _STEP
            if still >= _STILL:
                return self
        raise AssertionError(f"still in flight: {[one.url for one in self._pending]}")

    def state(self) -> dict[str, str]:
        """What the address holds."""
        return {
            name: values[0] for name, values in parse_qs(urlsplit(self.page.url).fragment).items()
        }

    def latent(self) -> NDArray[np.float32]:
        """The latent in the address."""
        return np.frombuffer(base64.urlsafe_b64decode(f"{self.state()['z']}=="), np.float32)

    def canvas(self, label: str) -> Locator:
        """The canvas with a label."""
        return self.page.get_by_role("img", name=label)

    def pixels(self, label: str | Locator) -> NDArray[np.uint8]:
        """What a canvas shows, uint8 [H, W, 4]."""
        canvas = self.canvas(label) if isinstance(label, str) else label
        width, height, text = canvas.evaluate(
            """canvas => {
                const { width, height } = canvas;
                const copy = new OffscreenCanvas(width, height);
                const context = copy.getContext("2d", { willReadFrequently: true });
                context.drawImage(canvas, 0, 0);
                const { data } = context.getImageData(0, 0, width, height);
                let text = "";
                for (let at = 0; at < data.length; at += 8192)
                    text += String.fromCharCode(...data.subarray(at, at + 8192));
                return [width, height, btoa(text)];
            }"""
        )
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)

    def until_shown(self, label: str | Locator, wanted: NDArray[Any]) -> None:
        """Waits until a canvas shows an image, uint8 [C, H, W] or rows of them, up to rounding."""
        seen: list[NDArray[np.uint8]] = []

        def same() -> bool:
            seen[:] = [self.pixels(label)]
            return shows(seen[0], wanted)

        self.until(same, f"{label} shows what was wanted")

    def tab_to(self, element: Locator, most: int = 60) -> None:
        """Presses the Tab key until an element has the focus."""
        for _ in range(most):
            if element.evaluate("element => element === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{element} cannot be reached with the Tab key")


class Explorer:
    """The explorer of a server, in new contexts of a browser.

    Args:
        browser: The browser.
        origin: http://host:port of the gateway.
    """

    def __init__(self, browser: Browser, origin: str):
        self.browser = browser
        self.origin = origin
        self._tabs: list[Tab] = []
        self._contexts: list[BrowserContext] = []

    def open(
        self,
        state: str = "",
        *,
        width: int = DESK,
        dark: bool = False,
        expected: str = "",
        prepared: Callable[[Page], object] | None = None,
        **options: Any,
    ) -> Tab:
        """Opens the page in a context of its own.

        Args:
            state: What the address holds: `model=mnist&view=plane`.
            width: Width of the window in pixels; a phone with a touch screen below 600.
            dark: Whether the visitor prefers dark pages.
            expected: Regular expression of console errors that the test provokes.
            prepared: Called with the page before it is opened.
            **options: Of Playwright's `new_context`.
        """
        context = self.browser.new_context(
            viewport={"width": width, "height": 800},
            is_mobile=width < 600,
            has_touch=width < 600,
            color_scheme="dark" if dark else "light",
            **options,
        )
        self._contexts.append(context)
        page = context.new_page()
        tab = Tab(page, self.origin, expected)
        self._tabs.append(tab)
        if prepared is not None:
            prepared(page)
        page.goto(f"{self.origin}/#{state}")
        return tab

    def again(self, tab: Tab) -> Tab:
        """Opens the address of a tab in a new context."""
        tab.settled()
        return self.open(urlsplit(tab.page.url).fragment)

    def close(self) -> None:
        """Closes all contexts.

        Raises:
            AssertionError: Something has gone wrong in a tab.
        """
        for context in self._contexts:
            context.close()
        problems = [problem for tab in self._tabs for problem in tab.problems]
        assert not problems, "\n".join(problems)


@contextmanager
def exploring(browser: Browser, origin: str) -> Iterator[Explorer]:
    """An `Explorer`, closed in the end."""
    explorer = Explorer(browser, origin)
    yield explorer
    explorer.close()


def shows(seen: NDArray[np.uint8], wanted: NDArray[Any]) -> bool:
    """Whether pixels [H, W, 4] are those of an image [C, H, W] or of images side by side."""
    if wanted.ndim == 4:
        wanted = np.concatenate(list(wanted), axis=-1)
    picture = np.broadcast_to(wanted, (3, *wanted.shape[1:])).transpose(1, 2, 0).astype(int)
    # Batches of other sizes may round a pixel to its neighbour.
    return seen.shape[:2] == picture.shape[:2] and int(abs(seen[..., :3] - picture).max()) <= 1


def posted(request: Request) -> NDArray[np.float32]:
    """The array that a request holds as npy."""
    return np.asarray(np.load(io.BytesIO(request.post_data_buffer or b"")))


def png(path: Path, image: NDArray[np.uint8]) -> Path:
    """Writes an image [C, H, W] as a PNG file."""
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(path)
    return path
