"""A worker's process as the supervisor handles it."""

import asyncio
import logging

from service.settings import Settings
from service.workers.control import WorkerConfig
from service.workers.process import Worker


class FakeProcess:
    returncode = None

    def __init__(self, events):
        self._events = events

    def kill(self):
        self._events.append("killed")


async def test_a_process_is_killed_before_a_log_that_may_block(monkeypatch):
    events = []
    monkeypatch.setattr(
        logging.getLogger("service.workers.process"),
        "error",
        lambda text, *values: events.append(text % values),
    )
    workers = [Worker(n, WorkerConfig(addresses=(), settings=Settings()), None) for n in range(2)]
    for worker in workers:
        worker._process = FakeProcess(events)
        worker.kill()
    await asyncio.sleep(0)
    assert events[:2] == ["killed", "killed"]
    assert events[2:] == [f"worker {n} has not ended; it is killed" for n in range(2)]
