"""SIGTERM, SIGINT and SIGHUP of a server process, from its first import to its exit.

The handlers raise nothing. An exception from a handler would surface wherever the main thread is:
in the middle of importing a C extension it would be swallowed, or break the import.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """The handlers; made in the main thread, before slow imports.

    Before `delivered` there is nothing to drain and nothing to reload: SIGTERM and SIGINT end the
    process at once with status 0, SIGHUP does nothing. After the event loop has ended, the
    process is about to exit, and all of them do nothing.

    (`add_signal_handler` of the event loop would not do: when the loop is closed, it resets the
    signals to their default, and a signal during the exit would kill the process.)
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_stop: Callable[[bool], None] = lambda _interactive: None
        self._on_reload: Callable[[], None] = lambda: None
        for number in _STOP:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._reload)

    @contextmanager
    def delivered(self, stop: Callable[[bool], None], reload: Callable[[], None]) -> Iterator[None]:
        """Context manager within which the running event loop handles the signals.

        Args:
            stop: Called for each SIGTERM and SIGINT; its argument is True for SIGINT, which a
                terminal sends.
            reload: Called for each SIGHUP.
        """
        self._loop, self._on_stop, self._on_reload = asyncio.get_running_loop(), stop, reload
        # The kernel may deliver a signal to a thread other than the main one. Python then writes a
        # byte here, which wakes the event loop, and its main thread runs the handlers.
        reader, writer = socket.socketpair()
        with reader, writer:
            for end in (reader, writer):
                end.setblocking(False)
            self._loop.add_reader(reader, lambda: reader.recv(4096))
            signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(-1)
                self._loop.remove_reader(reader)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self._loop is None:
            os._exit(0)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_stop, number == signal.SIGINT)

    def _reload(self, _number: int, _frame: FrameType | None) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_reload)
