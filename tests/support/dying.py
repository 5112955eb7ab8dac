"""Connections of a job's workers that kill themselves, that are slow, or need no server."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.job_child import FreeSizeClient

_STREAMS = ("encode_stream", "decode_stream", "sample_stream")


def on_replies(client: Any, act: Callable[[], None]) -> None:
    """Calls `act` after each message of the streams of a client."""

    def acting(stream: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def call(*arguments: Any, **options: Any) -> Iterator[Any]:
            for message in stream(*arguments, **options):
                yield message
                act()

        return call

    for name in _STREAMS:
        setattr(client, name, acting(getattr(client, name)))


@dataclass(frozen=True)
class DyingWorkers:
    """A connection whose workers send themselves SIGKILL after the first message of a shard.

    Attributes:
        inner: What the workers really connect by.
        marks: Folder that counts the deaths; `death-0`, `death-1`, ...
        deaths: How many workers die.
        seconds: Time that each message takes longer, in seconds.
    """

    inner: Any
    marks: Path
    deaths: int = 1
    seconds: float = 0.0

    def client(self) -> Any:
        """A client whose streams kill the process."""
        client = self.inner.client()

        def act() -> None:
            time.sleep(self.seconds)
            for death in range(self.deaths):
                with contextlib.suppress(FileExistsError):
                    (self.marks / f"death-{death}").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)

        on_replies(client, act)
        return client


class Opened(FreeSizeClient):
    """A client that has nothing to close."""

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None: ...


class FreeSizes:
    """A connection without a server, to a model of images of any size."""

    def client(self) -> Opened:
        """A client that computes by arithmetic."""
        return Opened()
