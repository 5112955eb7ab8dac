"""`report.html` in a real browser: Chromium, controlled through a pipe.

The browser's own protocol over `--remote-debugging-pipe` needs no driver, no port and
no package. Where there is no Chromium, it is installed by apt-get.
"""

import base64
import contextlib
import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.chromium import find_chromium
from tests.training.test_report import report_data, write
from training.report.write import PAGE

pytestmark = pytest.mark.browser

ANSWER_SECONDS = 60.0


class Browser:
    """A headless Chromium with one tab.

    Attributes:
        events: Events of the tab since the page was opened: method and parameters.
    """

    def __init__(self, profile: Path):
        heard, self._to_browser = os.pipe()
        self._from_browser, told = os.pipe()
        command = [
            find_chromium(),
            "--headless",
            "--no-sandbox",  # which a container's root cannot have
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        # The protocol is fixed to descriptors 3 and 4, which the shell puts in place.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{heard} 4>&{told}', "bash", *command],
            pass_fds=(heard, told),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(heard)
        os.close(told)
        os.set_blocking(self._from_browser, False)
        self._unread = b""
        self._calls = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        content = memoryview(json.dumps(message).encode() + b"\0")
        while content:
            content = content[os.write(self._to_browser, content) :]
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            answer = self._read(deadline)
            if answer.get("id") == self._calls:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
        raise TimeoutError(method)

    def open(self, url: str, width: int, dark: bool = False) -> None:
        """Opens a page in a window of that width and waits until all of it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._read(deadline)

    def value(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"]["value"]

    def screenshot(self) -> Image.Image:
        """The whole page, also what is below the window's end."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")

    def close(self) -> None:
        """Ends the browser."""
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to_browser)
        os.close(self._from_browser)

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self._unread:
            assert time.monotonic() < deadline, "the browser does not answer"
            try:
                chunk = os.read(self._from_browser, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
                continue
            if not chunk:
                raise BrokenPipeError(f"the browser ended: {self._process.wait(20)}")
            self._unread += chunk
        content, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Not in pytest's own folder: the browser may still be writing when the test is over.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        running = Browser(Path(profile))
        try:
            yield running
        finally:
            running.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a written report."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, report_data(dimensions=5, frames=8, sampled=True))
    return (folder / PAGE).as_uri()


@pytest.mark.parametrize("width", [420, 1200])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_visible_in_full_and_makes_no_network_request(
    browser: Browser, page: str, width: int, dark: bool, tmp_path: Path
) -> None:
    browser.open(page, width, dark)
    pictures = browser.value(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert len(pictures) == 7
    for complete, natural, shown, alt in pictures:
        assert complete
        assert natural > 0
        assert 200 < shown <= width
        assert alt

    video = browser.value(
        """new Promise(done => {
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
        "height": 720, "muted": True, "loop": True,
    }  # fmt: skip
    assert video["ready"] >= 3

    # No horizontal scrolling, and the only requests are for the page and its data: URLs.
    assert browser.value("document.documentElement.scrollWidth") <= width
    asked = [
        parameters["request"]["url"].partition(":")[0]
        for method, parameters in browser.events
        if method == "Network.requestWillBeSent"
    ]
    assert set(asked) <= {"file", "data"}
    assert asked.count("file") == 1
    assert not [event for event in browser.events if event[0] == "Log.entryAdded"]

    picture = browser.screenshot()
    picture.save(tmp_path / "page.png")
    assert picture.width == width
    assert picture.height > 3 * width
    pixels = np.asarray(picture)
    assert (pixels[0, 0].mean() < 64) == dark


def test_the_movie_of_the_report_plays_by_itself(browser: Browser, page: str) -> None:
    browser.open(page, 1200)
    assert browser.value(
        """new Promise(done => {
            const v = document.querySelector("video");
            v.addEventListener("timeupdate", () => v.currentTime > 0.3 && done(true));
            setTimeout(() => done(false), 20000);
        })"""
    )
