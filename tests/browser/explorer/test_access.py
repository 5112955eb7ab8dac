"""The explorer and a server that wants a token: it is asked for, used, and kept nowhere."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support import ROOT
from tests.support.explorer import Explorer, Tab, exploring
from tests.support.processes import Server
from tests.support.tiny import write_tiny

TOKEN = "a-token-of-some-length-0123456789"
NOW = "The image at the point"
# Chromium logs each refused request.
REFUSED = "401 \\(Unauthorized\\)"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token file, of a model of two dimensions."""
    folder = tmp_path_factory.mktemp("guarded")
    write_tiny(folder / "models" / "flat", dim=2)
    (folder / "tokens").write_text(f"{TOKEN}\n")
    options = ("--gateway-port", "0", "--token-file", str(folder / "tokens"))
    with Server(folder / "models", folder / "log", *options) as running:
        yield running


@pytest.fixture
def explorer(browser: Browser, guarded: Server) -> Iterator[Explorer]:
    with exploring(browser, guarded.gateway) as opened:
        yield opened


def kept(page: Page) -> str:
    """All that the page has kept anywhere."""
    storages = page.evaluate(
        "[localStorage, sessionStorage, document.cookie, location.href].map(JSON.stringify)"
    )
    return " ".join([*storages, str(page.context.cookies()), str(page.context.storage_state())])


def unlocked(explorer: Explorer, state: str = "") -> Tab:
    tab = explorer.open(state, expected=REFUSED)
    tab.page.get_by_role("textbox", name="Token").fill(TOKEN)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator(".plane")).to_be_visible()
    return tab.settled()


def test_a_token_is_asked_for_until_it_is_right(explorer: Explorer) -> None:
    tab = explorer.open("model=flat&z=0.5,0.5", expected=REFUSED)
    dialog = tab.page.get_by_role("dialog", name="This server wants a token")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("alert")).to_be_hidden()
    # Everything with the keyboard; the field has the focus already.
    tab.page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    tab.page.keyboard.type("wrong")
    tab.page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not accept this token.")
    expect(dialog.get_by_role("textbox")).to_have_value("")
    tab.page.keyboard.type(TOKEN)
    tab.page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(tab.page.locator(".plane")).to_be_visible()
    tab.settled()
    assert tab.pixels(NOW).shape == (4, 4, 4)
    expect(tab.page.get_by_role("status").first).to_be_hidden()
    assert TOKEN not in kept(tab.page)
    assert TOKEN not in tab.page.content()
    assert not [one.url for one in tab.requests if TOKEN in one.url]

    # A reload asks again.
    tab.page.reload()
    expect(dialog).to_be_visible()


def test_the_calls_that_it_shows_do_not_have_the_token(explorer: Explorer, tmp_path: Path) -> None:
    tab = unlocked(explorer, "model=flat&z=0.5,0.5")
    tab.page.locator(".snippet summary").click()
    texts = {}
    for language in ("Python", "curl", "grpcurl"):
        tab.page.get_by_role("button", name=language, exact=True).click()
        texts[language] = tab.page.locator(".snippet code").inner_text()
        assert TOKEN not in texts[language]
        assert "TOKEN" in texts[language]
    subprocess.run(
        ["bash", "-euc", f"{texts['curl']} -sSf"],
        cwd=tmp_path, env={**os.environ, "TOKEN": TOKEN}, check=True,
    )  # fmt: skip
    assert (tmp_path / "reply.png").read_bytes().startswith(b"\x89PNG")
    program = texts["Python"].replace("TOKEN", TOKEN)
    subprocess.run(
        [sys.executable, "-c", f"{program}\n\nimport numpy\nnumpy.save('reply.npy', reply)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    tab.until_shown(NOW, np.load(tmp_path / "reply.npy")[0])
