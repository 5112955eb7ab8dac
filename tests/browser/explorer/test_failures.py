"""The explorer when single calls fail: it says so, once, and until they work again."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, Route, expect

from tests.support.explorer import Explorer

# Chromium logs each request that fails.
REFUSED = "Failed to load resource: the server responded with a status of 400"
REASON = "what the server says"


def refuse(route: Route) -> None:
    route.fulfill(status=400, json={"detail": REASON, "code": "INVALID_ARGUMENT"})


def refusing(operation: str, times: int | None = None) -> Callable[[Page], None]:
    """Makes a page's calls of an operation fail, the first ones or all."""

    def prepared(page: Page) -> None:
        page.route(f"**/*:{operation}*", refuse, times=times)

    return prepared


def test_a_note_goes_when_what_had_failed_works_again(explorer: Explorer) -> None:
    tab = explorer.open(
        "model=mnist2d&view=plane&z=1,1", expected=REFUSED, prepared=refusing("decode", 1)
    )
    note = tab.page.get_by_role("alert")
    expect(note).to_have_text(REASON)
    # The plane itself has come, which is another task.
    tab.settled()
    expect(note).to_be_visible()
    tab.page.locator(".plane").press("ArrowLeft")
    expect(note).to_be_hidden()


def test_a_note_stays_while_only_other_calls_work(explorer: Explorer) -> None:
    tab = explorer.open(
        "model=mnist2d&view=plane&pins=0,0;1,1",
        expected=REFUSED, prepared=refusing("interpolate", 1),
    )  # fmt: skip
    note = tab.page.get_by_role("alert")
    expect(note).to_have_text(REASON)
    tab.page.locator(".plane").press("ArrowLeft")
    tab.settled()
    expect(note).to_be_visible()
    # Without the pins, there is no film that could fail.
    tab.page.locator(".plane").press("Escape")
    expect(note).to_be_hidden()


def test_a_picture_that_cannot_be_reconstructed_is_not_waited_for(
    explorer: Explorer, digits: list[Path]
) -> None:
    tab = explorer.open("model=photos", expected=REFUSED, prepared=refusing("reconstruct", 1))
    note = tab.page.get_by_role("alert")
    expect(note).to_have_text(REASON)
    told = tab.page.locator("main p[role=status]")
    expect(told).to_have_text("The server could not reconstruct this picture.")
    tab.page.locator("input[type=file]").set_input_files(digits[0])
    expect(told).to_contain_text("dB")
    expect(note).to_be_hidden()


def test_samples_that_cannot_be_had_are_asked_for_again(
    explorer: Explorer, digits: list[Path]
) -> None:
    tab = explorer.open(
        "model=mnist&view=picture", expected=REFUSED, prepared=refusing("sample", 1)
    )
    files = tab.page.locator("input[type=file]")
    files.set_input_files(digits[0])
    note = tab.page.get_by_role("alert")
    expect(note).to_have_text(REASON)
    expect(tab.page.locator(".posterior").first).to_be_visible()
    files.set_input_files(digits[1])
    expect(tab.page.locator(".nearest li")).to_have_count(5)
    expect(note).to_be_hidden()


def test_a_file_that_is_no_picture_is_forgotten_with_the_next(
    explorer: Explorer, digits: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    for state in ("model=mnist&view=picture", "model=mnist-style&view=styles", "model=photos"):
        tab = explorer.open(state)
        files = tab.page.locator("input[type=file]")
        files.set_input_files(tmp_path / "notes.png")
        note = tab.page.get_by_role("alert")
        expect(note).to_contain_text("notes.png: not a picture")
        files.set_input_files(digits[0])
        expect(note).to_be_hidden()


def test_a_file_that_is_no_picture_is_told_of_until_the_next(
    explorer: Explorer, digits: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    held: list[Route] = []
    tab = explorer.open(
        "model=photos",
        prepared=lambda page: page.route("**/*:reconstruct*", lambda route: held.append(route)),
    )
    tab.until(lambda: len(held) == 1, "the test card's reconstruction")
    files = tab.page.locator("input[type=file]")
    files.set_input_files(tmp_path / "notes.png")
    note = tab.page.get_by_role("alert")
    expect(note).to_contain_text("notes.png: not a picture")
    held[0].continue_()
    expect(tab.page.locator("main p[role=status]")).to_contain_text("dB")
    expect(note).to_be_visible()
    tab.page.unroute("**/*:reconstruct*")
    files.set_input_files(digits[0])
    expect(note).to_be_hidden()


def test_pictures_of_a_style_are_taken_together_or_not_at_all(
    explorer: Explorer, digits: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    tab = explorer.open("model=mnist-style&view=styles")
    files = tab.page.locator("input[type=file]")
    files.set_input_files([digits[0], tmp_path / "notes.png"])
    expect(tab.page.get_by_role("alert")).to_contain_text("notes.png: not a picture")
    files.set_input_files(digits[1])
    expect(tab.page.get_by_role("alert")).to_be_hidden()
    expect(tab.page.locator(".given li")).to_have_count(1)


def test_a_style_that_is_not_wanted_any_more_may_fail(
    explorer: Explorer, digits: list[Path]
) -> None:
    tab = explorer.open("model=mnist-style&view=styles", expected=REFUSED)
    slider = tab.page.locator(".slider input").first
    expect(slider).to_be_visible()
    held: list[Route] = []
    tab.page.route("**/*:encode*", lambda route: held.append(route))
    files = tab.page.locator("input[type=file]")
    files.set_input_files(digits[0])
    tab.until(lambda: len(held) == 1, "the style of the picture")
    slider.fill("1.5")
    refuse(held[0])
    tab.settled()
    note = tab.page.get_by_role("alert")
    expect(note).to_have_count(0)

    # One that is wanted is told of, until its picture is removed.
    files.set_input_files(digits[1])
    tab.until(lambda: len(held) == 3, "the styles of both pictures")
    for route in held[1:]:
        refuse(route)
    expect(note).to_have_text(REASON)
    tab.page.unroute("**/*:encode*")
    for _ in range(2):
        tab.page.get_by_role("button", name="Remove").first.click()
    expect(note).to_be_hidden()
