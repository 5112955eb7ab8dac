"""A stream on grpcio's threads, with a deadline for each message."""

import queue
import threading
import time
from typing import Any

import grpc

from latentserve._client.plans import ended_early, too_slow
from latentserve.errors import from_rpc_error


class ThreadedStream:
    """The open stream of a plan; opened again whenever the plan resumes.

    gRPC's deadlines are for whole streams, which may take any time here. So a watchdog thread
    cancels the stream when `receive` has waited too long for a message.

    Args:
        target: The server's address, for errors.
        seconds: Deadline of each message, in seconds.
    """

    def __init__(self, target: str, seconds: float):
        self._target = target
        self._seconds = seconds
        # Read by a thread of grpcio; None marks the end of the requests.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        self._waiting_since: float | None = None
        self._expired = False
        self._closed = threading.Event()
        self._watch = threading.Thread(
            target=self._watch_deadline, name="latentserve stream", daemon=True
        )
        self._watch.start()

    def open(self, method: Any, request: Any, metadata: Any) -> None:
        """Opens a stream, after cancelling the previous one.

        Args:
            method: Method of a stub.
            request: The only request; None if requests are sent by `send`.
            metadata: Metadata of the call.
        """
        self._cancel()
        self._requests = queue.SimpleQueue()
        requests = iter(self._requests.get, None) if request is None else request
        self._call = method(requests, metadata=metadata)

    def send(self, request: Any) -> None:
        """Queues a message, which grpcio sends as flow control permits."""
        self._requests.put(request)

    def receive(self) -> Any:
        """Waits for the next message.

        Raises:
            DeadlineExceeded: No message arrived in time.
            ServerError: The stream has ended.
        """
        # Needs no lock or notification: assignment is atomic, and the watchdog polls it.
        self._waiting_since = time.monotonic()
        try:
            return next(self._call)
        except StopIteration:
            raise ended_early(self._target) from None
        except grpc.RpcError as error:
            slow = self._expired
            failed = too_slow(self._seconds) if slow else from_rpc_error(error, self._target)
        finally:
            self._waiting_since = None
        raise failed

    def close(self) -> None:
        """Cancels the stream, unless it has ended, and stops its threads."""
        self._closed.set()
        self._watch.join()
        self._cancel()

    def _cancel(self) -> None:
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()

    def _watch_deadline(self) -> None:
        left = self._seconds
        while not self._closed.wait(min(max(left, 0.001), 1.0)):
            since = self._waiting_since
            left = self._seconds if since is None else since + self._seconds - time.monotonic()
            if since is not None and left <= 0:
                self._expired = True
                self._call.cancel()
                return
