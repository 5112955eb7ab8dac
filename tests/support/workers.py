"""Servers with worker processes, and a search for processes that outlive them."""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from latentserve.v1 import latent_service_pb2 as pb
from tests.support.processes import Server
from tests.support.stubs import stub_of
from tests.support.waiting import wait_until

MARK = "LATENTSERVE_TEST_MARK"


def marked(mark: str) -> set[int]:
    """Pids of the processes with a mark in their environment, also of orphans."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            # A zombie's environment is empty.
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


class Workers(Server):
    """A server with workers; its exit asserts that no process is left."""

    def __init__(self, models, log, *arguments, workers=2, program=""):
        self.mark = secrets.token_hex(8)
        options = ("--workers", str(workers), "--http-port", "0", *arguments)
        super().__init__(models, log, *options, env={MARK: self.mark}, program=program)

    def pids(self) -> set[int]:
        """Pids of the workers."""
        return marked(self.mark) - {self.process.pid}

    def signal(self, name: signal.Signals) -> None:
        os.kill(self.process.pid, name)

    def http(self, path: str, accept: str = "*/*") -> tuple[int, str]:
        request = urllib.request.Request(self.origin + path, headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    def labels(self, name: str) -> dict[str, list[dict[str, str]]]:
        """Labels of a metric's samples, by the number of the worker."""
        result: dict[str, list[dict[str, str]]] = {}
        for sample in self.samples():
            if sample.name == name:
                result.setdefault(sample.labels["worker"], []).append(sample.labels)
        return result

    def served(self) -> list[list[str]]:
        """Models that each worker serves, as `name/version`, in the order of the workers."""
        info = self.labels("latentserve_model_info")
        return [
            sorted(f"{labels['model']}/{labels['version']}" for labels in info[worker])
            for worker in sorted(info)
        ]

    def logged(self) -> str:
        return self.log.read_text()

    def __exit__(self, *error):
        try:
            super().__exit__(*error)
            wait_until(lambda: not marked(self.mark), self.logged, seconds=5)
        finally:
            for pid in marked(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def call_in_flight(server: Server):
    """Starts a stream; yields a function that reads its rest and returns its number of rows."""
    with stub_of(server.target) as stub:
        request = pb.SampleRequest(count=1000, seed=1)
        stream = stub.SampleStream(pb.SampleStreamRequest(request=request, chunk_rows=50))
        first = next(stream)
        yield lambda: sum(reply.response.images.tensor.shape[0] for reply in [first, *stream])


#: Moments of the start of a server with two workers, in their order.
START = ("interpreter", "signal handlers", "one worker", "two workers", "one worker loaded")


def wait_for_start(moment: str, pid: int, mark: str, log: Path) -> None:
    """Returns at a moment of `START`.

    Args:
        moment: One of `START`.
        pid: The process that `started` has returned.
        mark: Its mark.
        log: Its log.
    """
    conditions: dict[str, Callable[[], object]] = {
        "interpreter": lambda: pid in marked(mark),
        "signal handlers": lambda: handles(pid, signal.SIGTERM),
        "one worker": lambda: len(marked(mark)) > 1,
        "two workers": lambda: len(marked(mark)) > 2,
        "one worker loaded": lambda: "serving one" in log.read_text(),
    }
    wait_until(conditions[moment], log.read_text)


def handles(pid: int, name: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"^SigCgt:\s+(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> name - 1 & 1)


def started(folder: Path, tmp_path: Path, mark: str, **options) -> subprocess.Popen:
    """Starts a server with two workers and does not wait for its port; its log is `log`."""
    with (tmp_path / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "latentserve", "serve", "--models", str(folder),
             "--port", "0", "--http-port", "off", "--workers", "2", "--lame-duck-seconds", "0"],
            stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, MARK: mark}, **options,
        )  # fmt: skip
