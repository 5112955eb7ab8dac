"""Child processes, and the CPU time and memory of their process trees."""

import os
import signal
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / ".cache"

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STOP_SECONDS = 30.0


class ServerFailed(Exception):
    """A server did not start, or its reply was wrong."""


class Program:
    """A child process that runs until it is stopped.

    Args:
        command: Command line.
        name: Name of its log, `benchmarks/.cache/logs/NAME.log`.
        env: Variables added to those of this process.
        stdin: Whether to open a pipe to its standard input.
        root: Checkout whose packages it imports; this one by default.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        name: str,
        env: Mapping[str, str] | None = None,
        stdin: bool = False,
        root: Path | None = None,
    ):
        self.log = CACHE / "logs" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            [str(part) for part in command],
            cwd=root or ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._file,
            text=True,
            # A new session, so that `stop` can tell orphans of this process by their session id.
            start_new_session=True,
        )

    @property
    def stdin(self) -> IO[str]:
        """Pipe to its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    def line(self, wanted: str) -> str:
        """Reads standard output up to a line that contains `wanted`, and returns that line.

        Raises:
            ServerFailed: The process exited without printing such a line.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if wanted in line:
                return line.strip()
            self._file.write(line)
        raise self.failed(f"it ended before it printed {wanted!r}")

    def drain(self) -> None:
        """Starts a thread that copies further output to the log, so that the pipe never fills."""

        def copy() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self._file.write(line)

        threading.Thread(target=copy, daemon=True).start()

    def failed(self, what: str) -> ServerFailed:
        """Makes an error from a message and the last lines of the log."""
        self._file.flush()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        return ServerFailed(f"{self.log.stem}: {what}\n{tail}")

    def stop(self) -> None:
        """Stops the process and its descendants."""
        pids = tree(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in pids:
            # Kills descendants that outlived the process.
            if pid != self.process.pid and _session(pid) == self.process.pid:
                os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self._file.close()


@contextmanager
def pinned(cpus: Collection[int]) -> Iterator[None]:
    """Restricts this thread, and the processes that it starts within, to some CPUs.

    Args:
        cpus: The CPUs; empty for no restriction.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(pid: int) -> list[int]:
    """Ids of a process and its current descendants."""
    children: dict[int, list[int]] = {}
    for process in _all():
        fields = _stat(process)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(process)
    found = [pid]
    for process in found:
        found.extend(children.get(process, ()))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system CPU time of a process and its descendants so far, in seconds.

    Includes children that have exited and been waited for. Resolution: 10 ms per process.
    """
    total = 0
    for process in tree(pid):
        fields = _stat(process)
        if fields is not None:
            # utime, stime, cutime, cstime: fields 14 to 17 of proc(5); ours begin at 3.
            total += sum(int(value) for value in fields[11:15])
    return total / _TICKS


def resident_mib(pid: int) -> float:
    """Resident memory in MiB, summed over a process and its descendants.

    A page that several of them share is counted once for each.
    """
    pages = 0
    for process in tree(pid):
        try:
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * _PAGE / 2**20


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field, the name, may itself contain blanks and brackets.
    return text.rpartition(")")[2].split()


def _session(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[3])
