"""Two hosts on one machine: network namespaces joined by a cable, each with its own name.

They share the file system, as real ones share a folder by NFS; processors, clock and kernel are
one.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support import ROOT

# Runs in a host, in a mount namespace of its own: the name, and a table of names.
_ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
_SECONDS = 10.0


class Host:
    """One of two hosts.

    Args:
        name: Its name, which is that of its network namespace as well.
        names: A file like /etc/hosts with the addresses of both.
        log: What its processes print is appended to this file.
    """

    def __init__(self, name: str, names: Path, log: Path):
        self.name = name
        self.log = log
        self._names = names

    def torchrun(
        self, *arguments: str, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Starts `torchrun` with these arguments; returns its process."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", _ENTER, "sh",
                 self.name, self._names, sys.executable, "-m", "torch.distributed.run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **environment},
            )  # fmt: skip

    def processes(self) -> list[int]:
        """Ids of the processes that run on it."""
        return [int(line) for line in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Sends SIGKILL to all its processes."""
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Makes two hosts that reach each other by their names; skips the test where it cannot.

    Args:
        folder: An empty folder, for their logs.
    """
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "hostname"))):
        pytest.skip("needs root, iproute2, and the programs unshare and hostname")
    names = [f"host{number}-{os.getpid()}" for number in (1, 2)]
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            stack.callback(_ip, "netns", "delete", name)
        one, two = names
        _ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", two)
        for number, name in enumerate(names, 1):
            _ip("-n", name, "address", "add", f"10.97.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")
        table = folder / "hosts"
        table.write_text(f"127.0.0.1 localhost\n10.97.0.1 {one}\n10.97.0.2 {two}\n")
        hosts = [Host(name, table, folder / f"{name}.log") for name in names]
        for host in hosts:
            stack.callback(host.kill)
        yield hosts[0], hosts[1]


def _ip(*arguments: str) -> str:
    """Runs `ip` and returns what it prints."""
    return subprocess.run(
        ["ip", *arguments], check=True, capture_output=True, text=True, timeout=_SECONDS
    ).stdout
