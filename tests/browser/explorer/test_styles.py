"""The explorer's styles of a conditional model: one latent in all classes."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Route, expect

from latentserve._client.posteriors import joined
from latentserve.client import Client
from tests.support.conditional import Conditional, write_conditional
from tests.support.explorer import PHONE, Explorer, Tab, exploring, png, posted
from tests.support.processes import Server

SHEET = "One style in the classes"


def opened(explorer: Explorer, model: str, **options: object) -> Tab:
    tab = explorer.open(f"model={model}&view=styles", **options)  # type: ignore[arg-type]
    expect(tab.page.locator(".slider input").first).to_be_visible()
    return tab.settled()


def check_sheet(tab: Tab, client: Client, model: str) -> None:
    """Checks that the sheet has the address's latent in all classes."""
    tab.settled()
    count = len(client.model(model).labels)
    images = client.decode(
        np.repeat(tab.latent()[None], count, 0), labels=range(count), model=model, dtype="uint8"
    )
    columns = count if count <= 12 else 13
    rows = [np.concatenate(list(row), -1) for row in images.reshape(-1, columns, *images.shape[1:])]
    tab.until_shown(SHEET, np.concatenate(rows, -2))


@pytest.mark.parametrize("model", ["mnist-style", "fonts"])
def test_one_style_in_all_classes(model: str, explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, model)
    styles = client.latent_map(model=model).mean
    np.testing.assert_array_equal(tab.latent(), styles[0])
    check_sheet(tab, client, model)

    index = tab.page.get_by_label("Style of test image")
    index.fill("17")
    tab.page.keyboard.press("Enter")
    check_sheet(tab, client, model)
    np.testing.assert_array_equal(tab.latent(), styles[17])
    # There is none with this number: the last is shown.
    index.fill("123456")
    tab.page.keyboard.press("Enter")
    check_sheet(tab, client, model)
    np.testing.assert_array_equal(tab.latent(), styles[-1])

    slider = tab.page.locator(".slider input").first
    tab.tab_to(slider)
    for _ in range(20):
        tab.page.keyboard.press("ArrowLeft")
    check_sheet(tab, client, model)
    assert (tab.latent() != styles[-1]).sum() == 1

    other = explorer.again(tab)
    other.until(lambda: (other.pixels(SHEET) == tab.pixels(SHEET)).all(), "the same sheet")
    before = tab.latent()
    tab.page.get_by_role("button", name="Another style").click()
    tab.until(lambda: (tab.settled().latent() != before).any(), "another style")


def test_a_draw_that_is_answered_after_a_slider_has_moved_changes_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    # Without a map, styles are drawn from the prior.
    write_conditional(tmp_path / "models" / "drawn")
    with (
        Server(tmp_path / "models", tmp_path / "log", "--gateway-port", "0") as server,
        Client(server.wait_until_serving().target) as client,
        exploring(browser, server.gateway) as explorer,
    ):
        tab = opened(explorer, "drawn")
        held: list[Route] = []
        tab.page.route("**/*:sample?*", lambda route: held.append(route))
        tab.page.get_by_role("button", name="Another style").click()
        tab.until(lambda: len(held) == 1, "the draw")
        slider = tab.page.locator(".slider input").first
        slider.fill("1.5")
        tab.until(lambda: len(tab.calls("decode")) == 2, "the image of the sliders")
        tab.page.wait_for_timeout(300)  # until the address has been written
        moved = tab.latent()
        held[0].continue_()
        check_sheet(tab, client, "drawn")
        np.testing.assert_array_equal(tab.latent(), moved)
        assert float(slider.input_value()) == pytest.approx(1.5, abs=0.02)


def test_several_pictures_are_joined_as_the_client_does(
    explorer: Explorer, client: Client, digits: list[Path]
) -> None:
    tab = opened(explorer, "mnist-style", width=PHONE)
    tab.page.locator("input[type=file]").set_input_files(digits)
    given = tab.page.locator(".given li")
    expect(given).to_have_count(3)

    def check(files: list[Path], labels: list[int]) -> None:
        found = client.encode(
            [file.read_bytes() for file in files], labels=labels, model="mnist-style"
        )
        wanted, _ = joined(found.mean, found.log_var)
        tab.until(lambda: np.allclose(tab.settled().latent(), wanted, atol=1e-4), "joined")
        check_sheet(tab, client, "mnist-style")

    check(digits, [0, 1, 2])
    # The row is what the client's restyle makes of them together.
    together = client.restyle(
        [file.read_bytes() for file in digits], [0, 1, 2], range(10),
        together=True, model="mnist-style", dtype="uint8",
    )  # fmt: skip
    tab.until_shown(SHEET, together)

    given.nth(1).get_by_label("Its class").select_option("7")
    check(digits, [0, 7, 2])
    given.nth(0).get_by_role("button", name="Remove").click()
    expect(given).to_have_count(2)
    check(digits[1:], [7, 2])
    given.nth(0).get_by_role("button", name="Remove").click()
    check(digits[2:], [2])

    other = explorer.again(tab)
    other.until(lambda: (other.pixels(SHEET) == tab.pixels(SHEET)).all(), "the same sheet")


def test_points_of_a_plain_autoencoder_are_averaged(browser: Browser, tmp_path: Path) -> None:
    write_conditional(tmp_path / "models" / "plain", Conditional(posterior="delta"))
    files = [
        png(tmp_path / f"{value}.png", np.full((1, 4, 4), value, np.uint8)) for value in (40, 200)
    ]
    with (
        Server(tmp_path / "models", tmp_path / "log", "--gateway-port", "0") as server,
        Client(server.wait_until_serving().target) as client,
        exploring(browser, server.gateway) as explorer,
    ):
        tab = opened(explorer, "plain")
        tab.page.locator("input[type=file]").set_input_files(files)
        expect(tab.page.locator(".given li")).to_have_count(2)
        points = client.encode([file.read_bytes() for file in files], labels=[0, 1]).mean
        middle = points.mean(0)
        tab.until(lambda: np.allclose(tab.settled().latent(), middle, atol=1e-5), "the average")
        np.testing.assert_allclose(posted(tab.calls("decode")[-1])[0], middle, atol=1e-5)
