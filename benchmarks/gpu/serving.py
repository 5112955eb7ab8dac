"""`latentserve serve` on a GPU: what it draws, what it refuses, what it answers, and its health."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.record import Figure, Record, Setting
from benchmarks.gpu.served import Served, serving
from benchmarks.processes import ROOT
from latentserve.client import Client, LatentserveError, ModelInfo

_SEED = 7
_ROWS, _QUICK_ROWS = 512, 32
# Of an image in [0, 1]: the tolerance of CUDA in all manifests.
_ALLOWED = 1e-3
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# How long a server may take to find out that its device is lost.
_NOTICE_SECONDS = 15.0
_CALL_ROWS = 64


def sampling(setting: Setting) -> Iterator[Record]:
    """Draws the same rows from a server on the device and from one on the CPU."""
    rows = _QUICK_ROWS if setting.quick else _ROWS
    with (
        serving("cpu") as reference,
        serving(str(setting.device)) as served,
        Client(reference.target) as wanted,
        Client(served.target) as got,
    ):
        for model in got.models():
            images = got.sample(rows, seed=_SEED, model=model.name)
            half = got.sample(rows // 2, seed=_SEED, offset=rows // 2, model=model.name)
            same = wanted.sample(rows, seed=_SEED, model=model.name)
            differences = {
                "from the CPU": _difference(images, same),
                "of the second half, drawn alone": _difference(images[rows // 2 :], half),
            }
            passed = all(value <= _ALLOWED for value in differences.values())
            yield Record(
                f"{model.name}: {rows} rows of a seed, largest difference", {**differences}, passed
            )


def _difference(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.max(np.abs(got - wanted)))


def server(setting: Setting) -> Iterator[Record]:
    """Asks for CUDA where there is none, calls a server on the device, and breaks its context."""
    for command in (
        ["serve", "--models", str(ROOT / "models"), "--port", "0", "--http-port", "off"],
        ["train", "--preset", "dense", "--data", "mnist", "--steps", "1", "--out",
         str(setting.work / "run")],
    ):  # fmt: skip
        yield _refusal(command)
    yield _fallback()
    with serving(str(setting.device)) as served:
        yield from _calls(served, setting)
    yield from _lost(setting)


def _refusal(command: list[str]) -> Record:
    """Asks for CUDA where no GPU is visible: one line, and a status other than 0."""
    done = subprocess.run(
        [sys.executable, "-m", "latentserve", *command, "--device", "cuda"],
        cwd=ROOT, env={**os.environ, **_NO_GPU}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stderr.strip().split("\n")
    clear = done.returncode != 0 and len(lines) == 1 and "device: got" in lines[0]
    title = f"latentserve {command[0]} --device cuda without a GPU"
    return Record(title, {"status": done.returncode, "says": lines[-1]}, clear)


def _fallback() -> Record:
    """Starts a server with `--device auto` where no GPU is visible."""
    with serving("auto", env=_NO_GPU) as served, Client(served.target) as client:
        devices = set(client.model("mnist").devices.values())
    title = "latentserve serve --device auto without a GPU"
    return Record(title, {"runs on": ", ".join(sorted(devices))}, devices == {"cpu"})


def _calls(served: Served, setting: Setting) -> Iterator[Record]:
    """Calls each model, and looks where it runs."""
    with Client(served.target) as client:
        for model in client.models():
            began = time.perf_counter()
            error = _all_calls(client, model)
            on = set(model.devices.values())
            figures: dict[str, Figure] = {
                "s": time.perf_counter() - began,
                "runs on": ", ".join(sorted(on)),
            }
            if error:
                figures["error"] = error
            passed = not error and on == {str(setting.device)}
            yield Record(
                f"{model.name}: Encode, Decode, Reconstruct, Sample, Score", figures, passed
            )
    status = served.healthz()
    yield Record("/healthz of a server that has its device", {"status": status}, status == 200)


def _all_calls(client: Client, model: ModelInfo) -> str:
    """Makes a call of each kind; returns what went wrong, or nothing."""
    where: dict[str, Any] = {"model": model.name}
    given: dict[str, Any] = {"labels": 0} if model.conditional else {}
    try:
        images = client.sample(_CALL_ROWS, seed=_SEED, **where)
        posterior = client.encode(images, **given, **where)
        arrays = [
            images,
            posterior.mean,
            client.decode(posterior.mean, **given, **where),
            client.reconstruct(images, **given, **where),
            client.score(images, seed=_SEED, **given, **where).elbo,
        ]
    except LatentserveError as error:
        return str(error)
    return "" if all(np.isfinite(array).all() for array in arrays) else "a value is not finite"


def _lost(setting: Setting) -> Iterator[Record]:
    """Breaks the CUDA context of a server, and asks for its health."""
    title = "/healthz after the CUDA context is lost"
    # There is no card of that number, so on a CPU nothing is broken.
    index = setting.device.index if setting.device.kind == "cuda" else -1
    module = ("benchmarks.gpu.lost_context",)
    with serving(str(setting.device), module=module) as served, Client(served.target) as client:
        before = served.healthz()
        served.program.stdin.write(f"{index}\n")
        served.program.stdin.flush()
        end = time.monotonic() + _NOTICE_SECONDS
        while "context " not in (said := served.program.log.read_text()):
            if time.monotonic() > end:
                said = "context not broken: the kernel has not ended"
                break
            time.sleep(0.1)
        if "context not broken" in said:
            yield Record(title, {"not done": said.strip().split("\n")[-1]})
            return
        error = "none"
        try:
            client.sample(1, seed=_SEED, timeout=_NOTICE_SECONDS)
        except LatentserveError as failed:
            error = type(failed).__name__
        while (after := served.healthz()) == 200 and time.monotonic() < end:
            time.sleep(0.1)
        # Before the server is stopped, which may take long without its device.
        figures: dict[str, Figure] = {"before": before, "after": after, "error of a call": error}
        yield Record(title, figures, (before, after) == (200, 503) and error != "none")
