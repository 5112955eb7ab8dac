"""The explorer is accessible: by axe-core's rules, on a phone, in the dark, without a mouse."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support import ROOT
from tests.support.environments import node_modules
from tests.support.explorer import DESK, PHONE, Explorer

VIEWS = [
    "model=mnist2d&view=plane&pins=0,0;1,1",
    "model=mnist&view=dimensions&to=1",
    "model=fonts&view=styles",
    "model=mnist-style&view=picture",
    "model=fonts&view=picture",
    "model=photos&view=image",
    "model=mnist&view=server",
]

# Controls, the colours of their borders, and those around them.
BORDERS = """() => {
    const clear = "rgba(0, 0, 0, 0)";
    const page = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return colour === clear ? page(element.parentElement) : colour;
    };
    const kinds = "button, select, input:not([type=range], [type=color]), .pad, .drop";
    const border = (element) => getComputedStyle(element).borderTopColor;
    return [...document.querySelectorAll(kinds)]
        .filter((one) => one.checkVisibility() && !one.disabled)
        .map((one) => [one.outerHTML, border(one), page(one.parentElement)]);
}"""


def luminance(colour: str) -> float:
    """The relative luminance of a CSS colour, rgb(r, g, b), as WCAG has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """The contrast of two colours, from 1 to 21."""
    darker, lighter = sorted(luminance(one) + 0.05 for one in (first, second))
    return lighter / darker


@pytest.fixture(scope="module")
def axe() -> str:
    return (
        node_modules(ROOT / "tests" / "support" / "axe") / "axe-core" / "axe.min.js"
    ).read_text()


@pytest.mark.parametrize("state", VIEWS)
def test_a_view_is_accessible_and_fits_a_phone(
    state: str, axe: str, explorer: Explorer, digits: list[Path]
) -> None:
    tab = explorer.open(state, width=PHONE, bypass_csp=True)
    page = tab.page
    expect(page.locator(".view")).to_be_visible()
    if "view=picture" in state or "view=styles" in state:
        page.locator("input[type=file]").set_input_files(digits[0])
    if page.locator(".snippet").is_visible():
        page.locator(".snippet summary").click()
    if "server" in state:
        expect(page.get_by_text("calls a second.")).to_be_visible()
    tab.settled()
    page.evaluate(axe)
    for width in (PHONE, DESK):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            result = page.evaluate("axe.run()")
            violations = [
                (one["id"], one["help"], [node["html"] for node in one["nodes"]])
                for one in result["violations"]
            ]
            assert violations == [], f"{width} px, {scheme}"
            assert len(result["passes"]) > 10


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("state", VIEWS)
def test_controls_are_told_from_what_is_around_them(
    state: str, dark: bool, explorer: Explorer
) -> None:
    # By WCAG 1.4.11, which axe-core has no rule for.
    tab = explorer.open(state, dark=dark)
    expect(tab.page.locator(".view")).to_be_visible()
    borders = tab.settled().page.evaluate(BORDERS)
    assert len(borders) > 3
    faint = [one for one in borders if contrast(one[1], one[2]) < 3]
    assert faint == []


def test_views_and_models_are_chosen_with_the_keyboard(explorer: Explorer) -> None:
    tab = explorer.open("model=mnist2d")
    expect(tab.page.locator(".plane")).to_be_visible()
    tab.page.keyboard.press("Tab")
    expect(tab.page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    tab.tab_to(tab.page.get_by_label("Model"))
    tab.page.keyboard.type("fonts")
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("fonts: styles")
    picture = tab.page.get_by_role("button", name="Your picture")
    tab.tab_to(picture)
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("fonts: your picture")
    # The focus stays on the tab that was chosen.
    expect(picture).to_be_focused()
    expect(picture).to_have_attribute("aria-current", "page")
    assert tab.settled().state() == {"model": "fonts", "version": "1", "view": "picture"}
    expect(tab.page).to_have_title("Your picture of fonts · latentserve")


def test_the_link_to_the_content_keeps_the_address(explorer: Explorer) -> None:
    tab = explorer.open("model=mnist2d&view=plane&z=1.5,0.2")
    expect(tab.page.locator(".plane")).to_be_visible()
    before = tab.settled().page.url
    tab.page.keyboard.press("Tab")
    expect(tab.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator("main")).to_be_focused()
    assert tab.settled().page.url == before
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("mnist2d: plane")
    expect(tab.page.get_by_label("z0")).to_have_value("1.50")
    # The next stop is in the content.
    tab.page.keyboard.press("Tab")
    expect(tab.page.locator(".plane")).to_be_focused()
