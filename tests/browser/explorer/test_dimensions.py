"""The explorer's sliders of latent dimensions, draws from the prior, and films between two."""

import re

import numpy as np
import pytest
from playwright.sync_api import Locator, Route, expect

from latentserve.client import Client
from tests.support.explorer import PHONE, Explorer, Tab, posted

NOW = "The image of these latents"
STRIP = "From one sample to another: all frames, from left to right"


def opened(explorer: Explorer, model: str, state: str = "", **options: object) -> Tab:
    tab = explorer.open(f"model={model}&view=dimensions&{state}", **options)  # type: ignore[arg-type]
    expect(sliders(tab).first).to_be_visible()
    return tab.settled()


def sliders(tab: Tab) -> Locator:
    return tab.page.locator(".slider input")


def axis_of(slider: Locator) -> int:
    return int((slider.get_attribute("name") or "")[1:])


def check_decoded(tab: Tab, client: Client, model: str, slider: Locator) -> None:
    """Checks that the image is that of the latents, and that one of them is the slider's."""
    tab.settled()
    z = posted(tab.calls("decode")[-1])
    assert z[0, axis_of(slider)] == pytest.approx(float(slider.input_value()), abs=1e-6)
    tab.until_shown(NOW, client.decode(z, model=model, dtype="uint8")[0])
    np.testing.assert_array_equal(tab.latent(), z[0])


@pytest.mark.parametrize("model", ["mnist", "emoji"])
def test_sliders_with_mouse_and_keyboard(model: str, explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, model)
    # The first are those that test images use most.
    axes = [axis_of(slider) for slider in sliders(tab).all()]
    kl = client.latent_map(model=model).kl
    np.testing.assert_array_equal(axes, np.argsort(-kl, kind="stable")[:10])

    first = sliders(tab).first
    box = first.bounding_box()
    assert box is not None
    tab.page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    check_decoded(tab, client, model, first)

    second = sliders(tab).nth(1)
    tab.tab_to(second)
    before = second.input_value()
    for _ in range(5):
        tab.page.keyboard.press("ArrowRight")
    assert float(second.input_value()) > float(before)
    check_decoded(tab, client, model, second)

    # The address holds all of it.
    other = explorer.again(tab)
    other.until(lambda: (other.pixels(NOW) == tab.pixels(NOW)).all(), "the same image")

    tab.page.get_by_role("button", name="More dimensions").click()
    expect(sliders(tab)).to_have_count(20)
    expect(sliders(explorer.again(tab))).to_have_count(20)
    tab.page.get_by_role("button", name="Back to the middle").click()
    tab.settled()
    middle = client.model(model)
    mean = middle.prior_mean if len(middle.prior_mean) else np.zeros(middle.latent_dim)
    np.testing.assert_allclose(posted(tab.calls("decode")[-1])[0], mean, atol=1e-6)


def test_sliders_with_a_finger(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, "mnist", width=PHONE, dark=True)
    slider = sliders(tab).nth(2)
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    tab.page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
    check_decoded(tab, client, "mnist", slider)


def test_what_changed_lies_over_the_image(explorer: Explorer) -> None:
    # Without motion it stays there.
    tab = opened(explorer, "mnist", reduced_motion="reduce")
    over = tab.page.locator(".over")
    before = tab.pixels(NOW)[..., 0].astype(int)
    sliders(tab).first.fill(sliders(tab).first.get_attribute("min") or "")
    tab.settled()
    change = tab.pixels(NOW)[..., 0].astype(int) - before
    assert abs(change).max() > 50
    alpha = tab.pixels(over)[..., 3]
    np.testing.assert_allclose(alpha, np.minimum(255, 2 * abs(change)), atol=1)
    tab.page.get_by_role("button", name="Show what changed").click()
    expect(over).to_be_hidden()


def test_draws_by_seed_temperature_truncation_and_class(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, "mnist")

    def check(**options: float) -> None:
        tab.settled()
        drawn = client.sample_with_latents(1, model="mnist", dtype="uint8", **options)  # type: ignore[arg-type]
        tab.until_shown(NOW, drawn.images[0])
        first = sliders(tab).first
        value = float(first.input_value())
        assert value == pytest.approx(float(drawn.latents[0, axis_of(first)]), abs=0.05)

    check(seed=0, temperature=0.7)
    tab.page.get_by_label("Seed", exact=True).fill("7")
    tab.page.keyboard.press("Enter")
    check(seed=7, temperature=0.7)
    tab.page.get_by_role("slider", name="Temperature").fill("1.2")
    check(seed=7, temperature=1.2)
    tab.page.get_by_label("Truncation").fill("0.5")
    tab.page.keyboard.press("Enter")
    check(seed=7, temperature=1.2, truncation=0.5)
    tab.page.get_by_role("button", name="4", exact=True).click()
    check(seed=7, temperature=1.2, truncation=0.5, label=4)

    # The address holds all of it.
    other = explorer.again(tab)
    other.until(lambda: (other.pixels(NOW) == tab.pixels(NOW)).all(), "the same image")
    tab.page.get_by_role("button", name="Another").click()
    tab.settled()
    assert tab.state()["seed"] not in ("", "7")


def test_many_draws_are_made_two_at_a_time_and_the_newest_is_shown(
    explorer: Explorer, client: Client
) -> None:
    tab = opened(explorer, "mnist")
    before = len(tab.calls("sample"))
    slider = tab.page.get_by_role("slider", name="Temperature")
    tab.tab_to(slider)
    for _ in range(12):
        tab.page.keyboard.press("ArrowRight")
    tab.settled()
    assert 0 < len(tab.calls("sample")) - before <= 2 * 12
    wanted = client.sample(1, seed=0, temperature=1.3, model="mnist", dtype="uint8")
    tab.until_shown(NOW, wanted[0])


def test_a_draw_that_is_answered_after_a_slider_has_moved_changes_nothing(
    explorer: Explorer, client: Client
) -> None:
    tab = opened(explorer, "mnist")
    first, second = sliders(tab).nth(0), sliders(tab).nth(1)
    before = second.input_value()
    held: list[Route] = []
    tab.page.route(re.compile(":(sample|decode)"), lambda route: held.append(route))
    tab.page.get_by_role("button", name="Another").click()
    tab.until(lambda: len(held) == 1, "the draw")
    first.fill("1.5")
    tab.until(lambda: len(held) == 2, "the image of the sliders")
    draw, decode = held
    draw.continue_()
    tab.page.wait_for_timeout(300)
    decode.continue_()
    check_decoded(tab, client, "mnist", first)
    assert float(first.input_value()) == pytest.approx(1.5, abs=0.05)
    assert second.input_value() == before


def test_a_film_leads_from_one_sample_to_another(explorer: Explorer, client: Client) -> None:
    tab = opened(explorer, "mnist", "seed=3")
    tab.page.get_by_label("From this seed to").fill("9")
    tab.page.get_by_role("button", name="Make it").click()
    expect(tab.canvas(STRIP)).to_be_visible()
    ends = [
        client.sample_with_latents(1, seed=seed, temperature=0.7, model="mnist").latents[0]
        for seed in (3, 9)
    ]
    path = client.interpolate(*ends, 32, method="spherical", model="mnist", dtype="uint8").images
    tab.until_shown(STRIP, path)
    other = explorer.again(tab)
    expect(other.canvas(STRIP)).to_be_visible()
    assert (other.pixels(STRIP) == tab.pixels(STRIP)).all()


def test_a_film_that_comes_late_does_not_replace_a_newer_one(explorer: Explorer) -> None:
    tab = opened(explorer, "mnist", "seed=3&to=9")
    expect(tab.canvas(STRIP)).to_be_visible()
    wanted = tab.pixels(STRIP)
    held: list[Route] = []
    tab.page.route("**/*:interpolate*", lambda route: held.append(route))
    for number, seed in enumerate(("4", "9"), 1):
        tab.page.get_by_label("From this seed to").fill(seed)
        tab.page.get_by_role("button", name="Make it").click()
        tab.until(lambda number=number: len(held) == number, "the film")
    for route in reversed(held):
        route.continue_()
        tab.page.wait_for_timeout(300)
    assert (tab.pixels(STRIP) == wanted).all()


def test_a_conditional_model_decodes_the_class_that_is_chosen(
    explorer: Explorer, client: Client
) -> None:
    tab = opened(explorer, "fonts")
    tab.page.get_by_label("Class").select_option("C")
    tab.settled()
    sliders(tab).first.fill("1")
    tab.settled()
    z = posted(tab.calls("decode")[-1])
    wanted = client.decode(z, labels=[2], model="fonts", dtype="uint8")
    tab.until_shown(NOW, wanted[0])
    other = explorer.again(tab)
    other.until(lambda: (other.pixels(NOW) == tab.pixels(NOW)).all(), "the same image")
