"""The faults: what each does to a fleet, and what callers are promised meanwhile."""

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import peers
from tests.faults.answers import SHIPPED_VERSION
from tests.faults.fleet import Fleet, kill_process

#: Longest that a client waits for a frozen server before it calls another, in seconds.
FROZEN_SECONDS = 15.0


@dataclass(frozen=True)
class Fault:
    """A fault, and what callers are promised while it is played.

    Calls of clients that retry, as they do by default, do not fail in any of them, and no row of
    any answer is ever wrong.

    Attributes:
        name: Its name in the table.
        play: Plays it; returns once the fleet is whole again.
        servers: Number of servers.
        options: Options of the servers.
        is_seamless: Whether calls without retries do not fail either.
        longest_gap: Longest time that a caller with retries may go without an answer, in seconds.
    """

    name: str
    play: Callable[[Fleet], None]
    servers: int = 3
    options: tuple[str, ...] = ()
    is_seamless: bool = False
    longest_gap: float = 10.0


def _sigterm(fleet: Fleet) -> None:
    fleet.terminate(0)
    time.sleep(1.0)
    fleet.start(0)


def _restart(fleet: Fleet) -> None:
    fleet.terminate(0)
    fleet.start(0)


def _sigkill(fleet: Fleet) -> None:
    fleet.kill(0)
    time.sleep(1.0)
    fleet.start(0)


def _rolling_restart(fleet: Fleet) -> None:
    for index in range(len(fleet.servers)):
        fleet.terminate(index)
        fleet.start(index)
        # As an orchestrator does: on with the next one when this one has been found ready.
        time.sleep(2.0)


def _sigstop(fleet: Fleet) -> None:
    with fleet.frozen(fleet.pids(0)):
        time.sleep(FROZEN_SECONDS + 3.0)


def _worker_killed(fleet: Fleet) -> None:
    for index in range(len(fleet.servers)):
        pid = fleet.workers(index)[0]
        kill_process(pid)
        time.sleep(2.0)


def _worker_frozen(fleet: Fleet) -> None:
    pid = fleet.workers(0)[0]
    with fleet.frozen([pid]):
        deadline = time.monotonic() + 20.0
        # A zombie has no environment, so it is not among them either.
        while pid in fleet.workers(0):
            assert time.monotonic() < deadline, "the frozen worker was not replaced"
            time.sleep(0.1)
        time.sleep(3.0)


def _reload(fleet: Fleet) -> None:
    """A version of the same graphs comes and goes."""
    (model,) = fleet.models.iterdir()
    added = model / str(SHIPPED_VERSION + 1)
    for _ in range(2):
        _copy_version(model / str(SHIPPED_VERSION), added)
        for command in (lambda: None, lambda: shutil.rmtree(added)):
            command()
            for index in range(len(fleet.servers)):
                fleet.signal(index, signal.SIGHUP)
            time.sleep(1.5)


def _copy_version(source: Path, to: Path) -> None:
    partial = to.with_name(f".{to.name}.partial")
    shutil.copytree(source, partial)
    manifest = json.loads((partial / "manifest.json").read_text())
    (partial / "manifest.json").write_text(json.dumps(manifest | {"version": int(to.name)}))
    partial.rename(to)


def _slow_senders(fleet: Fleet) -> None:
    with (
        peers.slow_senders(fleet.addresses),
        peers.slow_senders(fleet.gateways, peers.HTTP_REQUEST),
    ):
        time.sleep(6.0)


def _unread_replies(fleet: Fleet) -> None:
    most = 2 * QUEUE_BYTES + 200 * 2**20
    with (
        peers.unread_replies(fleet.addresses[:1]),
        peers.unread_http_replies(fleet.gateways[:1]),
    ):
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            rss = fleet.rss(0)
            assert rss < most, f"{rss >> 20} MiB resident, wanted less than {most >> 20}"
            time.sleep(0.1)


def _descriptors(fleet: Fleet) -> None:
    fleet.limit_descriptors(100)
    with peers.many_connections(fleet.addresses, 400):
        time.sleep(3.0)


#: `--max-queue-bytes` of the servers whose replies nobody reads.
QUEUE_BYTES = 64 * 2**20
# What the servers have by default where they serve others than this machine.
_LAME_DUCK = ("--lame-duck-seconds", "3")
_WORKERS = ("--workers", "2", *_LAME_DUCK)
_NARROW = ("--max-queue-bytes", str(QUEUE_BYTES))
_GRPCIO = ("--transport", "grpcio")

FAULTS = (
    Fault("SIGTERM", _sigterm, options=_LAME_DUCK, is_seamless=True),
    Fault("rolling restart", _rolling_restart, options=_LAME_DUCK, is_seamless=True),
    Fault("rolling restart, grpcio", _rolling_restart, options=(*_LAME_DUCK, *_GRPCIO)),
    Fault("restart of a lone server", _restart, servers=1),
    Fault("SIGKILL", _sigkill),
    Fault("SIGSTOP for 18 s", _sigstop, longest_gap=FROZEN_SECONDS),
    Fault("reload", _reload, options=("--versions", "all"), is_seamless=True),
    Fault("SIGKILL of a worker", _worker_killed, servers=2, options=_WORKERS),
    Fault("SIGSTOP of a worker", _worker_frozen, servers=2, options=_WORKERS, longest_gap=15.0),
    Fault("slow senders", _slow_senders, is_seamless=True),
    Fault("unread replies", _unread_replies, options=_NARROW),
    Fault("unread replies, grpcio", _unread_replies, options=(*_NARROW, *_GRPCIO)),
    Fault("descriptors run out", _descriptors),
    Fault("descriptors run out, workers", _descriptors, servers=2, options=_WORKERS),
)


def fault_named(name: str) -> Fault:
    """The fault of a name."""
    (found,) = (fault for fault in FAULTS if fault.name == name)
    return found
