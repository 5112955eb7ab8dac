"""A Chromium for tests of pages, driven by Playwright.

Its synchronous API runs an event loop of its own in this thread for as long as the browser is open,
so tests with a browser are plain functions, and wait in Playwright alone.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

FLAGS = (
    "--no-sandbox",  # which a container's root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
)
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")


def find_chromium() -> str:
    """The path of a Chromium, installed first where there is none and that can be done."""
    if found := next(filter(None, map(shutil.which, NAMES)), None):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.fail("no Chromium here; wanted one: apt-get install chromium")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", "--quiet", *command],
            env=quiet, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.fail(f"apt-get {command[0]}: {done.stderr or done.stdout}")
    return find_chromium()


@contextlib.contextmanager
def open_chromium() -> Iterator[Browser]:
    """A headless Chromium, closed in the end."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        try:
            yield running
        finally:
            running.close()
