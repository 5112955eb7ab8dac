"""`make demo`, run twice as the README says."""

import json
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.processes import latentserve

pytestmark = pytest.mark.demo
PICTURES = ("samples.png", "reconstructions.png", "digits.png", "latent.png")


def make_demo() -> tuple[str, float]:
    began = time.monotonic()
    done = subprocess.run(
        ["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, time.monotonic() - began


@pytest.fixture(scope="module", autouse=True)
def first() -> str:
    """What the first run printed."""
    shutil.rmtree(ROOT / "demo", ignore_errors=True)
    return make_demo()[0]


def test_the_demo_prints_its_pictures_and_the_elbo(first):
    for name in PICTURES:
        assert f"demo/{name}" in first
    assert "test ELBO " in first
    assert "server stopped with status 0" in first


def test_the_pictures_of_the_demo_are_not_blank():
    for name in PICTURES:
        with Image.open(ROOT / "demo" / name) as picture:
            assert min(picture.size) > 100
            assert np.asarray(picture.convert("L")).std() > 20


def test_the_flagship_draws_grey_digits(first: str) -> None:
    assert "serving mnist/" in first
    with Image.open(ROOT / "demo" / "digits.png") as picture:
        red, green, blue = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(red, green)
    assert np.array_equal(red, blue)


def test_reconstructions_resemble_the_digits_above_them():
    with Image.open(ROOT / "demo" / "reconstructions.png") as picture:
        sheet = np.asarray(picture, dtype=float)
    rows = (np.split(row, 12, axis=1) for row in np.split(sheet[:, : sheet.shape[1] // 12 * 12], 2))
    digits, again = (np.reshape(list(row), (12, -1)) for row in rows)
    likeness = np.corrcoef(digits, again)[:12, 12:]
    own = np.diagonal(likeness).mean()
    others = (likeness.sum() - np.trace(likeness)) / (likeness.size - 12)
    # Their sharpness depends on how many steps the machine takes in two minutes.
    assert own > 0.5
    assert own > others + 0.2


def test_the_demo_model_reaches_the_stated_elbo():
    """At most 145 nats on the whole binarized test set of 10,000 digits."""
    for folder in ("demo/run", "demo/models/mnist2d/1"):
        done = latentserve("evaluate", str(ROOT / folder), "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["images"] == 10_000
        assert result["elbo"] <= 145


def test_a_second_demo_is_quick_and_draws_the_same_pictures():
    before = {name: (ROOT / "demo" / name).read_bytes() for name in PICTURES[:3]}
    _, seconds = make_demo()
    assert seconds < 60
    for name, content in before.items():
        assert (ROOT / "demo" / name).read_bytes() == content
