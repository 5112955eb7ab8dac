"""The explorer's view of a model for pictures of any size."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from latentserve.client import Client
from tests.support.explorer import PHONE, Explorer

BEFORE, AFTER = "The picture", "Its reconstruction"


def test_a_picture_of_odd_size_and_its_reconstruction(
    explorer: Explorer, client: Client, tmp_path: Path
) -> None:
    tab = explorer.open("model=photos", width=PHONE)
    before, after = (tab.page.get_by_role("img", name=name, exact=True) for name in (BEFORE, AFTER))
    # The test card, as long as nothing is chosen.
    expect(after).to_be_visible()
    tab.settled()
    assert tab.pixels(after).shape == (256, 256, 4)

    file = tmp_path / "photo.png"
    y, x = np.mgrid[:61, :107]
    Image.fromarray(np.stack([2 * x, 4 * y, x + y], -1).astype(np.uint8)).save(file)
    tab.page.locator("input[type=file]").set_input_files(file)
    # Multiples of 8.
    tab.until(lambda: tab.pixels(after).shape == (56, 104, 4), "the size that the model takes")
    tab.settled()
    sent = tab.pixels(before)[..., :3].transpose(2, 0, 1)
    again = client.reconstruct(sent[None], model="photos", dtype="uint8")[0]
    tab.until_shown(after, again)
    # No more was cut off than the size of the model's pictures needs.
    photo = np.asarray(Image.open(file).resize((104, 59)))[1:57].transpose(2, 0, 1)
    assert abs(sent.astype(float) - photo).mean() < 3

    told = tab.page.locator("p[role=status]", has_text="dB").inner_text()
    found = re.match(r"(\S+) dB\. Latents 2 x 14 x 26: (\S+) times fewer values", told)
    assert found, told
    decibels = 10 * np.log10(255**2 / np.mean((sent.astype(float) - again) ** 2))
    assert float(found[1]) == pytest.approx(decibels, abs=0.051)
    assert float(found[2]) == pytest.approx(3 * 56 * 104 / (2 * 14 * 26), abs=0.051)


def test_the_slider_between_the_two(explorer: Explorer) -> None:
    tab = explorer.open("model=photos")
    after = tab.page.get_by_role("img", name=AFTER, exact=True)
    expect(after).to_be_visible()
    slider = tab.page.get_by_role("slider")

    def clipped() -> str:
        return str(after.evaluate("element => getComputedStyle(element).clipPath"))

    assert clipped() == "inset(0px 0px 0px 50%)"
    tab.tab_to(slider)
    tab.page.keyboard.press("End")
    assert clipped() == "inset(0px 0px 0px 100%)"
    expect(explorer.again(tab).page.get_by_role("slider")).to_have_value("100")
    box = slider.bounding_box()
    assert box is not None
    tab.page.mouse.click(box["x"] + 1, box["y"] + box["height"] / 2)
    assert re.fullmatch(r"inset\(0px 0px 0px [0-3]%\)|inset\(0px\)", clipped())


def test_a_photograph_that_is_too_large_is_made_smaller(explorer: Explorer, tmp_path: Path) -> None:
    tab = explorer.open("model=photos")
    after = tab.page.get_by_role("img", name=AFTER, exact=True)
    expect(after).to_be_visible()
    for size, wanted in (((2100, 1050), (512, 1024)), ((9, 30), (48, 16))):
        Image.new("RGB", size, (200, 80, 20)).save(tmp_path / "large.png")
        tab.page.locator("input[type=file]").set_input_files(tmp_path / "large.png")
        tab.until(lambda wanted=wanted: tab.pixels(after).shape[:2] == wanted, f"{wanted}")
