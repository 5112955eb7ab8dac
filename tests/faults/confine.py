"""Limits that the system sets a server: memory of its cgroup, and a disk that is full."""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[tuple[str, ...]]:
    """A memory cgroup; skips the test where this process may not make one.

    Args:
        limit: Most bytes that its processes may use.

    Yields:
        Command that starts its arguments in there.
    """
    old = (_CGROUPS / "memory").is_dir()
    folder = (_CGROUPS / "memory" if old else _CGROUPS) / f"latentserve-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of one's own: {error}")
    try:
        try:
            (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory limit: {error}")
        yield "sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(folder)
    finally:
        folder.rmdir()


class Disk:
    """A small disk of its own (tmpfs); skips the test where this process may not mount one.

    Args:
        folder: Where to mount it; is created.
        size: Its size in bytes.
    """

    def __init__(self, folder: Path, size: int):
        self.folder = folder
        folder.mkdir()
        if os.geteuid() != 0:
            pytest.skip("only root may mount a disk")
        done = self._mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
        if done.returncode:
            pytest.skip(f"no disk of one's own: {done.stderr}")

    def grow(self, size: int) -> None:
        """Makes the disk larger."""
        done = self._mount("-o", f"remount,size={size}", str(self.folder))
        assert done.returncode == 0, done.stderr

    def fill(self) -> None:
        """Leaves no byte free."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for block in (4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(block)):
                        pass

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _mount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
