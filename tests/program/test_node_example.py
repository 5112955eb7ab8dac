"""The JavaScript example: it draws the same images as the Python client, to the bit."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from latentserve._cli.png import grid
from latentserve.client import Client
from tests.support import ROOT
from tests.support.conditional import Conditional, write_conditional
from tests.support.environments import node_modules
from tests.support.flaky import Flaky, serving
from tests.support.processes import Server

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")

EXAMPLE = Path("examples", "node")


@pytest.fixture(scope="module")
def server(each_server: Server) -> Server:
    return each_server


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example and of the protos, with its dependencies installed."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copytree(ROOT / EXAMPLE, folder / EXAMPLE, ignore=shutil.ignore_patterns("node_modules"))
    (folder / EXAMPLE / "node_modules").symlink_to(node_modules(ROOT / EXAMPLE))
    return folder / EXAMPLE


def run(
    example: Path, *arguments: str | Path, command: tuple[str, ...] = ("client.mjs",)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", *command, *map(str, arguments)],
        cwd=example,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # A configured proxy would get the requests to 127.0.0.1 too.
        env={key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
    )


def python_grid(target: str, model: str, seed: int) -> np.ndarray:
    with Client(target) as client:
        labels = client.model(model).labels
        images = [
            client.sample(
                10, seed=seed, offset=10 * row, label=row if labels else None, model=model,
                dtype="uint8",
            )
            for row in range(len(labels) or 10)
        ]  # fmt: skip
    return grid(np.concatenate(images), columns=10)


@pytest.mark.parametrize("seed", [7, 2**64 - 1000])
def test_node_draws_the_same_digits_as_the_python_client(
    example: Path, server: Server, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "grid.png"
    done = run(example, "--server", server.target, "--out", out, "--seed", str(seed))
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture)
    assert np.array_equal(pixels, python_grid(server.target, "", seed))
    first, second, *_, last = done.stdout.splitlines()
    assert first.startswith("latentserve ")
    assert second.startswith("mnist version 1: 28x28 grey, 32 latents, prior ")
    # A model that was trained gives back what it has drawn itself.
    mean = re.fullmatch(r"mean absolute difference after encoding and decoding: (.+) of 255", last)
    assert mean is not None
    assert 0 < float(mean[1]) < 25


@pytest.mark.parametrize("model", ["flow-gmm", "gmm", "rgb"])
def test_node_draws_a_row_for_each_label_and_colour_images(
    example: Path, kinds_server: Server, tmp_path: Path, model: str
) -> None:
    out = tmp_path / "grid.png"
    done = run(example, "--server", kinds_server.target, "--out", out, "--model", model)
    assert (done.returncode, done.stderr) == (0, "")
    with Image.open(out) as picture:
        pixels = np.asarray(picture)
    assert np.array_equal(pixels, python_grid(kinds_server.target, model, 7))


@pytest.mark.parametrize("prior", ["standard", "gmm"])
def test_node_encodes_and_decodes_with_the_labels_of_a_conditional_model(
    example: Path, tmp_path: Path, prior: Literal["standard", "gmm"]
) -> None:
    write_conditional(tmp_path / "models" / "letters", Conditional(prior=prior))
    out = tmp_path / "grid.png"
    with Server(tmp_path / "models", tmp_path / "log") as running:
        running.wait_until_serving()
        done = run(example, "--server", running.target, "--out", out)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"prior {prior}, conditional on labels a b c d, on cpu" in done.stdout
        with Image.open(out) as picture:
            pixels = np.asarray(picture)
        assert np.array_equal(pixels, python_grid(running.target, "", 7))
        with Client(running.target) as client:
            total = 0.0
            for label in range(4):
                images = client.sample(10, seed=7, offset=10 * label, label=label, dtype="uint8")
                mean = client.encode(images, labels=label).mean
                decoded = client.decode(mean, labels=label, dtype="uint8")
                total += np.abs(images.astype(int) - decoded.astype(int)).mean() / 4
    assert done.stdout.splitlines()[-1].endswith(f"decoding: {total:.2f} of 255")


def test_node_prints_the_field_violation_of_an_invalid_argument(
    example: Path, server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "grid.png"
    done = run(example, "--server", server.target, "--out", out, "--temperature", "1000")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Sample: INVALID_ARGUMENT",
        "  temperature: got 1000, wanted 0 to 100",
    ]
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--model", "nope"], 1, "GetModel: NOT_FOUND: "),
        (["--timeout", "0"], 1, "GetServerInfo: DEADLINE_EXCEEDED: "),
        (["--out", "/nowhere/grid.png"], 1, "/nowhere/grid.png"),
        (["--seed", str(2**64)], 2, "--seed: got 18446744073709551616, wanted a whole number"),
        (["--temperature", "hot"], 2, "--temperature: wanted a number"),
        (["--what"], 2, "usage: node client.mjs"),
    ],
)
def test_node_reports_an_error_by_status_and_without_a_stack_trace(
    example: Path, server: Server, arguments: list[str], status: int, told: str
) -> None:
    done = run(example, "--server", server.target, *arguments)
    assert done.returncode == status
    assert told in done.stderr
    assert "    at " not in done.stderr


def test_node_reports_an_unreachable_server(example: Path) -> None:
    done = run(example, "--server", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("GetServerInfo: UNAVAILABLE: ")


def test_node_retries_an_unavailable_server(example: Path) -> None:
    program = (
        'import { Connection } from "./latentserve.mjs";'
        "const connection = new Connection(process.argv[1], 20);"
        'console.log((await connection.call("GetServerInfo", {})).version);'
        "connection.close();"
    )
    flaky = Flaky(2)
    with serving(flaky) as target:
        done = run(example, target, command=("--input-type=module", "-e", program))
    assert (done.stdout, done.stderr) == ("9\n", "")
    assert flaky.calls == 3


def test_node_reports_a_model_without_a_prior(
    example: Path, kinds_server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "grid.png"
    done = run(example, "--server", kinds_server.target, "--out", out, "--model", "delta")
    assert done.returncode == 1
    assert done.stderr.startswith("Sample: FAILED_PRECONDITION: ")


def test_node_dependencies_are_pinned_and_name_no_registry() -> None:
    wanted = json.loads((ROOT / EXAMPLE / "package.json").read_text())["dependencies"]
    lock = json.loads((ROOT / EXAMPLE / "package-lock.json").read_text())
    assert all(version[0].isdigit() for version in wanted.values())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version
    assert all("integrity" in entry and "resolved" not in entry for entry in packages.values())
