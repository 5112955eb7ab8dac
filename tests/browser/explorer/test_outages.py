"""The explorer while its server is away, busy, or serves other models than before."""

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from latentserve.client import Client
from tests.support.explorer import Explorer, exploring
from tests.support.processes import Server, free_port
from tests.support.tiny import write_tiny

NOW = "The image at the point"
# Chromium logs each request that fails.
LOST = "Failed to load resource: net::ERR_"
# A call that was waiting is refused by the server that has other models.
GONE = "Failed to load resource: the server responded with a status of 404"
BUSY = "Failed to load resource: the server responded with a status of (429|503)"


def serving(models: Path, port: int) -> AbstractContextManager[Server]:
    return Server(models, models.parent / "log", "--gateway-port", str(port))


def test_a_server_that_is_killed_is_waited_for(browser: Browser, tmp_path: Path) -> None:
    write_tiny(tmp_path / "models" / "one", dim=2)
    port = free_port()
    with exploring(browser, f"http://127.0.0.1:{port}") as explorer:
        with serving(tmp_path / "models", port) as server:
            tab = explorer.open("z=1,1", expected=f"{LOST}|{GONE}")
            expect(tab.page.locator(".plane")).to_be_visible()
            tab.settled()
            server.process.kill()
            server.process.wait()
        tab.page.locator(".plane").focus()
        tab.page.keyboard.press("Shift+ArrowLeft")
        state = tab.page.locator("#state")
        expect(state).to_have_text(
            "The server does not answer. This page goes on as soon as it does."
        )
        # What is tried meanwhile is shown later.
        tab.page.keyboard.press("Shift+ArrowLeft")

        with serving(tmp_path / "models", port):
            expect(state).to_be_hidden(timeout=30_000)
            tab.settled()
            assert tab.state()["z"] == "0.375,1"
            z0 = tab.page.get_by_label("z0")
            expect(z0).to_have_value("0.38")
            before = tab.pixels(NOW)
            z0.fill("-2")
            tab.page.keyboard.press("Enter")
            tab.until(lambda: (tab.pixels(NOW) != before).any(), "another image")

        # Another set of models: the page says so, and shows what there is.
        write_tiny(tmp_path / "others" / "models" / "two", dim=2, shape=(1, 6, 6))
        z0.fill("1")
        tab.page.keyboard.press("Enter")
        expect(state).to_be_visible()
        with serving(tmp_path / "others" / "models", port):
            expect(tab.page.get_by_role("alert")).to_have_text(
                "This server does not serve “one” now.", timeout=30_000
            )
            expect(tab.page.get_by_role("heading", level=1)).to_have_text("two: plane")
            expect(tab.page.get_by_label("Model")).to_have_value("two/1")
            tab.until(lambda: tab.pixels(NOW).shape == (6, 6, 4), "the other model's image")


def test_a_model_that_is_gone_is_replaced_by_another(browser: Browser, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_tiny(models / "one", dim=2)
    write_tiny(models / "two", dim=2)
    with (
        Server(models, tmp_path / "log", "--gateway-port", "0", "--admin") as server,
        exploring(browser, server.gateway) as explorer,
    ):
        tab = explorer.open("model=two", expected=GONE)
        expect(tab.page.get_by_role("heading", level=1)).to_have_text("two: plane")
        tab.settled()
        (models / "two").rename(tmp_path / "two")
        with Client(server.target) as client:
            client.reload()
        tab.page.locator(".plane").hover()
        expect(tab.page.get_by_role("alert")).to_have_text("This server does not serve “two” now.")
        expect(tab.page.get_by_role("heading", level=1)).to_have_text("one: plane")


def test_a_version_that_is_gone_is_not_mistaken_for_another(explorer: Explorer) -> None:
    # The shipped mnist2d is of version 2.
    tab = explorer.open("model=mnist2d&version=1&view=picture&z=1,1&pins=0,0;1,1")
    expect(tab.page.get_by_role("alert")).to_have_text(
        "This server does not serve version 1 of “mnist2d” now."
    )
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("mnist2d: your picture")
    assert tab.settled().state() == {"model": "mnist2d", "version": "2", "view": "picture"}
    # Without a version, an address is of whichever is served.
    tab.page.goto(f"{explorer.origin}/#model=mnist2d&view=plane&z=1,1")
    expect(tab.page.get_by_label("z0")).to_have_value("1.00")
    expect(tab.page.get_by_role("alert")).to_have_count(0)


def test_replicas_that_differ_are_asked_again_with_pauses(explorer: Explorer) -> None:
    # As behind a balancer during a rollout: one lists the model, another one is called.
    gone = {"detail": "model 'mnist2d' is not served here", "code": "NOT_FOUND"}

    def differ(page: Page) -> None:
        page.route("**/*:decode?*", lambda route: route.fulfill(status=404, json=gone))

    tab = explorer.open("model=mnist2d&z=1,1", expected=GONE, prepared=differ)
    note = tab.page.get_by_role("alert")
    expect(note).to_contain_text("looks again in a few seconds: model 'mnist2d' is not served here")

    def looks() -> int:
        return sum(one.url.endswith("/v1/models") for one in tab.requests)

    # The first time at once, then every three seconds.
    assert looks() == 2
    for _ in range(5):
        tab.page.locator(".plane").press("ArrowLeft")
    tab.page.wait_for_timeout(1000)
    assert looks() == 2
    tab.until(lambda: looks() == 3, "another look")
    expect(note).to_be_visible()
    tab.page.wait_for_timeout(1500)
    assert looks() == 3

    tab.page.unroute("**/*:decode?*")
    expect(note).to_be_hidden()
    tab.settled()
    assert tab.pixels(NOW).shape == (28, 28, 4)
    assert tab.state()["z"] != "0,0"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_tried_again(status: int, explorer: Explorer) -> None:
    tab = explorer.open("model=mnist2d&z=0,0", expected=BUSY)
    expect(tab.page.locator(".plane")).to_be_visible()
    tab.settled()
    refused = 0

    def refuse(route: Route) -> None:
        nonlocal refused
        if refused == 3:
            route.continue_()
            return
        refused += 1
        route.fulfill(
            status=status,
            # Long enough for the test to see what the page says in the meantime.
            headers={"retry-after": "1"},
            json={"detail": "too many rows in flight", "code": "RESOURCE_EXHAUSTED"},
        )

    before = tab.pixels(NOW)
    tab.page.route("**/*:decode?*", refuse)
    tab.page.locator(".plane").focus()
    for _ in range(3):
        tab.page.keyboard.press("Shift+ArrowUp")
    state = tab.page.locator("#state")
    expect(state).to_have_text(
        "The server is busy, and this page tries again: too many rows in flight"
    )
    expect(state).to_be_hidden()
    tab.until(lambda: (tab.pixels(NOW) != before).any(), "the image")
    assert refused == 3
