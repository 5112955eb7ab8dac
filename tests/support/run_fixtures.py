"""Pytest plugin with the fixtures of training; apart from the others because it needs torch."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.blobs import blobs, write_blobs
from tests.support.interrupted import without_pictures
from tests.support.tiny_runs import COMMAND
from training.cli import main
from training.data.datasets import Dataset


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Limits torch to one thread, so that numbers are reproducible to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Turns off the pictures of a run, which take longer than the rest of a short run."""
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch.setattr)
        yield


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restores the signal handlers that `main` sets."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def blobs_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """`--data` and its value, a tiny data set."""
    return "--data", write_blobs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def command(blobs_data: tuple[str, str]) -> tuple[str, ...]:
    """The arguments of a run with all phases, without `--out`."""
    return (*COMMAND, *blobs_data)


@pytest.fixture(scope="module")
def unbroken(
    command: tuple[str, ...],
    one_thread: None,  # noqa: ARG001
    no_pictures: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A complete run that was never interrupted. Tests must copy it before they change it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    before = signal.getsignal(signal.SIGTERM)
    assert main([*command, "--out", str(folder)]) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


@pytest.fixture(scope="session")
def few() -> Dataset:
    """A data set of 300 blobs to train on."""
    return blobs()
