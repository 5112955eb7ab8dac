"""A person's own pictures, of any kind: trained, exported, served, sampled and scored.

No option is given but `--data`, and `--image-size` where the pictures differ in size. None of the
commands may print a warning, and hardly a step may be skipped. The slow cases train for 24 steps;
the long ones need data that `npm` or the system provides, or train for long, but for one.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentserve.client import Client
from tests.support.processes import Server, latentserve
from tests.support.tiny_runs import ONE_THREAD

#: Coloured icons of 64 x 64, Noto Emoji in Apache-2.0.
ICONS = "emoji-datasource-google@16.0.0"
#: Where Debian's package dataset-fashion-mnist puts its files.
FASHION = Path("/usr/share/datasets/fashion-mnist")

Images = NDArray[np.uint8]
#: Writes pictures below a folder; returns the options that name them.
Maker = Callable[[Path], tuple[str, ...]]


def write(folder: Path, images: Images, names: tuple[str, ...] = ("",)) -> tuple[str, ...]:
    """Writes images [N, H, W] or [N, H, W, 3] as PNG files, in subfolders in turn."""
    for index, image in enumerate(images):
        path = folder / names[index % len(names)] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return ("--data", f"folder:{folder}")


def digits(folder: Path) -> tuple[str, ...]:
    """Digits of 8 x 8: each block of MNIST's, without two rows and columns at each edge."""
    from training.data.datasets import load_dataset

    test = load_dataset("mnist").test
    blocks = test.images[:1_500, 0, 2:26, 2:26].reshape(-1, 8, 3, 8, 3)
    small = np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)
    for label in range(10):
        write(folder / str(label), small[test.labels[:1_500] == label])
    return ("--data", f"folder:{folder}")


def landscapes(folder: Path) -> tuple[str, ...]:
    """RGB of 40 x 72: a sky that brightens towards the horizon, a sun and a hill."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :72]
    images = np.zeros((240, 40, 72, 3), np.float64)
    for image in images:
        sky, ground = rng.uniform(60, 230, 3), rng.uniform(20, 120, 3)
        image[:] = sky + (rows / 40)[..., None] * (255 - sky) * 0.6
        y, x, radius = rng.uniform(4, 18), rng.uniform(8, 64), rng.uniform(3, 7)
        image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = (255, 230, 120)
        hill = 26 + rng.uniform(2, 8) * np.sin(
            columns * rng.uniform(0.05, 0.12) + rng.uniform(0, 6)
        )
        image[rows > hill] = ground
        image += rng.normal(0, 4, image.shape)
    return write(folder, images.clip(0, 255).astype(np.uint8))


def constant(folder: Path) -> tuple[str, ...]:
    """Every pixel of every picture has one colour."""
    return write(folder, np.full((40, 32, 32, 3), (200, 30, 90), np.uint8))


def repeated(folder: Path) -> tuple[str, ...]:
    """One picture, forty times."""
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    return write(folder, np.repeat(picture, 40, axis=0))


def lone(folder: Path) -> tuple[str, ...]:
    """Two classes; one has a single picture."""
    rng = np.random.default_rng(0)
    many = rng.normal(120, 40, (100, 24, 24)).clip(0, 255).astype(np.uint8)
    write(folder / "many", many)
    return write(folder / "one", many[:1] // 2) and ("--data", f"folder:{folder}")


def scans(folder: Path) -> tuple[str, ...]:
    """Black-and-white scans of 128 x 128: lines of writing on paper, at one bit."""
    rng = np.random.default_rng(0)
    images = np.full((200, 128, 128), 255, np.uint8)
    for image in images:
        for top in range(int(rng.integers(6, 14)), 116, 14):
            for left in range(8, int(rng.integers(60, 120)), 6):
                image[top : top + 8, left : left + 4] *= rng.random((8, 4)) > 0.6
    return write(folder, images)


def photographs(folder: Path) -> tuple[str, ...]:
    """Photographs that scikit-image ships, cut into 64 x 64."""
    import skimage.data

    shipped = Path(skimage.data.__file__).parent
    patches = []
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"):
        photograph = np.asarray(Image.open(shipped / name).convert("RGB"))
        height, width = (side // 64 * 64 for side in photograph.shape[:2])
        cut = photograph[:height, :width].reshape(height // 64, 64, width // 64, 64, 3)
        patches.append(cut.swapaxes(1, 2).reshape(-1, 64, 64, 3))
    return write(folder, np.concatenate(patches))


def icons(folder: Path, size: int) -> tuple[str, ...]:
    """Icons with transparency, of an npm package."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm")
    folder.mkdir(parents=True)
    packed = subprocess.run(
        [npm, "pack", "--silent", ICONS], cwd=folder, capture_output=True, text=True, check=False
    )
    if packed.returncode:
        pytest.skip(f"npm pack {ICONS}: {packed.stderr[-200:]}")
    archive = folder / packed.stdout.strip()
    shutil.unpack_archive(archive, folder / "all", filter="data")
    archive.unlink()
    return (
        "--data", f"folder:{folder / 'all' / 'package' / 'img' / 'google' / '64'}",
        "--image-size", str(size),
    )  # fmt: skip


def fashion(_folder: Path) -> tuple[str, ...]:
    """Fashion-MNIST as IDX files."""
    where = Path(os.environ.get("LATENTSERVE_FASHION", FASHION))
    if not where.is_dir():
        pytest.skip(f"no {where}: apt-get install dataset-fashion-mnist")
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return ("--data", "idx:" + ",".join(str(where / f"{name}-ubyte.gz") for name in files))


QUICK: dict[str, tuple[Maker, tuple[int, int, int]]] = {
    "digits of 8 x 8": (digits, (1, 8, 8)),
    "40 x 72 RGB": (landscapes, (3, 40, 72)),
    "constant": (constant, (3, 32, 32)),
}
LONG: dict[str, tuple[Maker, tuple[int, int, int]]] = {
    "icons at 32": (lambda folder: icons(folder, 32), (3, 32, 32)),
    "icons at 64": (lambda folder: icons(folder, 64), (3, 64, 64)),
    "icons at 128": (lambda folder: icons(folder, 128), (3, 128, 128)),
    "photographs": (photographs, (3, 64, 64)),
    "Fashion-MNIST": (fashion, (1, 28, 28)),
    "one picture repeated": (repeated, (3, 32, 32)),
    "a class of one": (lone, (1, 24, 24)),
    "scans of 128 x 128": (scans, (1, 128, 128)),
}


def run(*arguments: str | Path) -> str:
    """Runs a command that has to succeed without a warning; returns what it printed."""
    done = latentserve(*arguments, env=ONE_THREAD, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("make", "shape", "length"),
    [
        *(pytest.param(*case, ("--steps", "24"), id=name,
                       marks=pytest.mark.long if name == "constant" else pytest.mark.slow)
          for name, case in QUICK.items()),
        *(pytest.param(*case, (), marks=pytest.mark.long, id=name)
          for name, case in LONG.items()),
    ],
)  # fmt: skip
def test_pictures_are_trained_exported_served_sampled_and_scored_without_a_warning(
    make: Maker, shape: tuple[int, int, int], length: tuple[str, ...], tmp_path: Path
) -> None:
    options, trained = make(tmp_path / "pictures"), tmp_path / "run"
    run("train", *options, *length, "--device", "cpu", "--out", trained)
    metrics = json.loads((trained / "metrics.json").read_text())
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert metrics["skipped_steps"] <= 0.01 * log[-1]["step"]
    elbos = [entry["validation_elbo"] for entry in log if "validation_elbo" in entry]
    assert None not in elbos
    # Of noise nothing can be learned, so that the first steps are as good as any.
    assert elbos[-1] < 1.001 * next(entry["elbo"] for entry in log if "elbo" in entry)

    run("export", trained, "--to", tmp_path / "models" / "own", "--samples", "200")
    with (
        Server(tmp_path / "models", tmp_path / "log") as server,
        Client(server.wait_until_serving().target) as client,
    ):
        assert client.model("own").image_shape == shape
        samples = client.sample(8, seed=3, dtype="uint8")
        assert samples.shape == (8, *shape)
        scores = client.score(samples, seed=3)
        assert np.isfinite(scores.elbo).all()
        # What the model has drawn itself is not stranger to it than noise.
        noise = np.random.default_rng(0).integers(0, 256, samples.shape, dtype=np.uint8)
        assert scores.elbo.mean() < client.score(noise, seed=3).elbo.mean()
    assert "warning" not in (tmp_path / "log").read_text().lower()


@pytest.mark.slow
def test_five_pictures_are_refused_with_the_number_that_is_wanted(tmp_path: Path) -> None:
    options = write(tmp_path / "pictures", np.zeros((5, 16, 16), np.uint8))
    refused = latentserve("train", *options, "--out", tmp_path / "run")
    assert refused.returncode == 1
    assert "5 usable images, wanted 20 or more" in refused.stderr
    assert not (tmp_path / "run").exists()
