"""The explorer shows names as text, runs nothing that is not its own, and asks nobody else."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.conditional import Conditional, write_conditional
from tests.support.explorer import Explorer, exploring
from tests.support.processes import Server

EVIL = "<img src=x onerror=alert(1)>"
NAMES = (EVIL, '"><script>alert(2)</script>', "javascript:alert(3)", "' onclick='alert(4)")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of models whose classes have names in markup."""
    folder = tmp_path_factory.mktemp("marked")
    write_conditional(folder / "models" / "flat", Conditional(names=NAMES, dim=2))
    many = tuple(f"{EVIL}{index}" for index in range(14))
    weights = (1 / 14,) * 14
    write_conditional(folder / "models" / "many", Conditional(names=many, weights=weights))
    with Server(folder / "models", folder / "log", "--gateway-port", "0") as running:
        yield running.wait_until_serving()


@pytest.mark.parametrize("state", [
    "model=flat&view=plane", "model=flat&view=styles", "model=flat&view=picture",
    "model=many&view=dimensions", "model=many&view=styles", "model=many&view=picture",
    "model=flat&view=server",
])  # fmt: skip
def test_names_in_markup_are_text(
    state: str, browser: Browser, marked: Server, digits: list[Path]
) -> None:
    with exploring(browser, marked.gateway) as explorer:
        tab = explorer.open(state)
        expect(tab.page.locator(".view")).to_be_visible()
        files = tab.page.locator("input[type=file]")
        if files.count():
            files.set_input_files(digits if "styles" in state else digits[0])
        tab.settled()
        assert tab.page.locator("main img, main script, main [onclick], main a").count() == 0
        if "server" not in state:
            assert EVIL in (tab.page.locator("main").text_content() or "")


def test_what_an_address_says_is_text(explorer: Explorer) -> None:
    tab = explorer.open(f"model={EVIL}&view={EVIL}&z={EVIL}&pins={EVIL}&label={EVIL}&seed={EVIL}")
    expect(tab.page.get_by_role("alert")).to_have_text(f"This server does not serve “{EVIL}” now.")
    tab.settled()
    assert tab.page.locator("main img, main script").count() == 0
    tab.page.goto(f"{explorer.origin}/#model=mnist&view=picture&picture=AAAA")
    expect(tab.page.get_by_role("alert")).to_contain_text("not a picture")


def test_the_page_may_load_and_call_its_own_server_alone(
    explorer: Explorer, server: Server
) -> None:
    paths = {"/", "/explorer/main.js", "/explorer/explorer.css", "/explorer/views/plane.js"}
    for path in paths:
        with urllib.request.urlopen(f"{server.gateway}{path}", timeout=30) as reply:
            policy = reply.headers["Content-Security-Policy"]
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
    refused = "Refused|violates|TrustedHTML|a request to http://localhost"
    tab = explorer.open("model=mnist2d", expected=refused)
    expect(tab.page.locator(".plane")).to_be_visible()
    tab.settled()
    assert paths <= {one.url.removeprefix(server.gateway).partition("#")[0] for one in tab.requests}
    outcomes = tab.page.evaluate(
        """async (other) => [
            await fetch(other).then(() => "called", () => "refused"),
            (() => { try { document.body.innerHTML = "<b>x</b>"; return "markup"; }
                     catch { return "refused"; } })(),
            await new Promise((resolve) => {
                const image = new Image();
                image.onload = () => resolve("loaded");
                image.onerror = () => resolve("refused");
                image.src = other;
            }),
        ]""",
        server.gateway.replace("127.0.0.1", "localhost"),
    )
    assert outcomes == ["refused"] * 3
    # The browser itself has stopped them.
    assert all(one.failure for one in tab.requests if not one.url.startswith(server.gateway))


def test_a_file_with_markup_as_name_is_refused_by_its_name(
    explorer: Explorer, tmp_path: Path
) -> None:
    file = tmp_path / "<b onclick=alert(5)>x.png"
    file.write_text("no picture")
    tab = explorer.open("model=mnist2d&view=picture")
    tab.page.locator("input[type=file]").set_input_files(file)
    expect(tab.page.get_by_role("alert")).to_contain_text(
        "<b onclick=alert(5)>x.png: not a picture"
    )
