"""What replicas behind Envoy give and cost: measured on this machine, and simulated for many.

    python -m benchmarks.scaling --rounds 5

Starts one server, and behind an Envoy each one, two and three, with a compute thread each, and
sends them calls of the shipped models from h2load. Everything shares this machine's CPUs: so the
figures say what a call costs each process, and how far the simulation of benchmarks/replicas.py
agrees. The rounds of all are interleaved, and medians are reported. The simulation then gives every
process a core of its own.
"""

import argparse
import math
import resource
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from benchmarks import h2load
from benchmarks.machine import machine
from benchmarks.processes import ROOT, Program, cpu_seconds
from benchmarks.replicas import Costs, Outcome, simulate
from benchmarks.servers.envoy import Envoy
from benchmarks.servers.launched import LaunchedServer
from benchmarks.shapes import Shape
from common.cpus import usable_cpus
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

REPLICAS = (1, 2, 3)
CONNECTIONS, STREAMS = 4, 8
#: Busy share of the replicas in the simulation.
BUSY = 0.7
_MANY = (1, 3, 10, 100, 1000)
_SECONDS = 3.0


@dataclass(frozen=True)
class Kind:
    """A kind of call.

    Attributes:
        name: What it asks for.
        method: Method of LatentService.
        request: The request, serialized.
    """

    name: str
    method: str
    request: bytes


def kinds() -> tuple[Kind, ...]:
    """A small call, and a large one."""
    z = np.zeros((1, 32), np.float32)
    latents = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=z.shape, data=z.tobytes())
    uint8 = pb.IMAGE_FORMAT_UINT8
    decode = pb.DecodeRequest(model=pb.ModelSelector(name="mnist"), latents=latents, format=uint8)
    sample = pb.SampleRequest(model=pb.ModelSelector(name="emoji"), count=4, seed=1, format=uint8)
    return (
        Kind("Decode, 1 digit", "Decode", decode.SerializeToString()),
        Kind("Sample, 4 icons of 64 x 64", "Sample", sample.SerializeToString()),
    )


class Replica(LaunchedServer):
    """`latentserve serve` of the shipped models, with one compute thread."""

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [sys.executable, "-m", "latentserve", "serve", "--models", ROOT / "models",
             "--port", "0", "--http-port", "off", "--threads", "1", "--log-level", "warning"],
            self.name,
        )  # fmt: skip
        self.port = int(program.line("listening on").rpartition(":")[2])
        return program


@dataclass(frozen=True)
class Setup:
    """Servers that answer on one port.

    Attributes:
        replicas: The servers.
        envoy: Envoy in front of them; None for a single server that is called directly.
    """

    replicas: Sequence[LaunchedServer]
    envoy: LaunchedServer | None

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{len(self.replicas)} behind Envoy" if self.envoy else "1, without Envoy"


@dataclass(frozen=True)
class Figures(Outcome):
    """What was measured in a run.

    Attributes:
        costs: CPU time of a call.
    """

    costs: Costs


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="of a run (default: %(default)g)"
    )
    options = parser.parse_args(arguments)
    if not h2load.available():
        print("h2load: not found, wanted Debian's package nghttp2-client", file=sys.stderr)
        return 2
    print(f"{machine()}\n\n{CONNECTIONS * STREAMS} calls in flight.\n")
    with setups() as found:
        for kind in kinds():
            figures = measured(found, kind, options.rounds, options.seconds)
            print(measured_table(kind, figures))
            print(simulated_table(kind, figures[-1][1].costs))
    return 0


@contextmanager
def setups() -> Iterator[list[Setup]]:
    """One server alone, and one, two and three of others behind Envoy."""
    with ExitStack() as stack:

        def started(server: LaunchedServer) -> LaunchedServer:
            server.start()
            stack.callback(server.stop)
            return server

        replicas = [started(Replica(f"replica-{number}")) for number in range(max(REPLICAS))]
        found = [Setup(replicas[:1], None)]
        for count in REPLICAS:
            ports = [replica.port for replica in replicas[:count]]
            found.append(Setup(replicas[:count], started(Envoy(f"envoy-{count}", ports))))
        yield found


def measured(
    found: Sequence[Setup], kind: Kind, rounds: int, seconds: float
) -> list[tuple[Setup, Figures]]:
    """Medians of the rounds for each setup; a short first round sets the number of calls."""
    calls = {setup.name: max(64, round(seconds * run(setup, kind, 256).rate)) for setup in found}
    results: dict[str, list[Figures]] = {setup.name: [] for setup in found}
    for number in range(rounds):
        for setup in found[:: -1 if number % 2 else 1]:
            results[setup.name].append(run(setup, kind, calls[setup.name]))
    return [(setup, median(results[setup.name])) for setup in found]


def run(setup: Setup, kind: Kind, calls: int) -> Figures:
    """Sends a number of calls."""
    target = setup.envoy or setup.replicas[0]
    shape = Shape("decode", 1, "uint8", CONNECTIONS, STREAMS)
    servers = [replica.pid for replica in setup.replicas]
    proxies = [setup.envoy.pid] if setup.envoy else []
    before = [sum(map(cpu_seconds, pids)) for pids in (servers, proxies)]
    ended = children_seconds()
    load = h2load.run(
        target.port, f"/latentserve.v1.LatentService/{kind.method}", kind.request, shape, calls
    )
    of_servers, of_proxies = (
        (sum(map(cpu_seconds, pids)) - start) / calls
        for pids, start in zip((servers, proxies), before, strict=True)
    )
    caller = (children_seconds() - ended) / calls
    costs = Costs(caller=caller, proxy=of_proxies, replica=of_servers)
    return Figures(calls / load.seconds, load.p50_ms / 1000, load.p99_ms / 1000, costs)


def children_seconds() -> float:
    """CPU time of the children that have ended: of h2load, while the servers go on."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def median(runs: Sequence[Figures]) -> Figures:
    """The median of each figure."""

    def of(values: Iterator[float]) -> float:
        return statistics.median(values)

    return Figures(
        of(run.rate for run in runs),
        of(run.p50 for run in runs),
        of(run.p99 for run in runs),
        Costs(
            of(run.costs.caller for run in runs),
            of(run.costs.proxy for run in runs),
            of(run.costs.replica for run in runs),
        ),
    )


def measured_table(kind: Kind, figures: Sequence[tuple[Setup, Figures]]) -> str:
    """What was measured, and what the simulation says of the same costs on as many cores."""
    cores = usable_cpus()
    lines = [
        f"| {kind.name}: servers | calls/s | simulated | p50 ms | p99 ms "
        "| CPU µs a call: servers | Envoy | h2load |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for setup, got in figures:
        expected = simulate(
            got.costs,
            replicas=len(setup.replicas),
            in_flight=CONNECTIONS * STREAMS,
            cores=cores,
            calls=20_000,
        )
        costs = got.costs
        lines.append(
            f"| {setup.name} | {got.rate:,.0f} | {expected.rate:,.0f} | {1e3 * got.p50:.1f} "
            f"| {1e3 * got.p99:.1f} | {1e6 * costs.replica:,.0f} | {1e6 * costs.proxy:,.0f} "
            f"| {1e6 * costs.caller:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def simulated_table(kind: Kind, costs: Costs) -> str:
    """Many replicas, equally busy: with as many threads of Envoy as they need, and with one."""
    lines = [
        f"| {kind.name}: replicas | calls/s at {BUSY:.0%} busy | threads of Envoy | their share of "
        "all CPU time | p50 ms | p99 ms | p99 ms, one replica missing | most with one thread of "
        "Envoy, calls/s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for replicas in _MANY:
        rate = BUSY * replicas / costs.replica
        threads = math.ceil(replicas * costs.proxy / costs.replica)
        calls = max(50_000, 200 * replicas)
        free = Costs(0.0, costs.proxy, costs.replica)
        whole = simulate(
            free, replicas=replicas, proxies=threads, rate=rate, varies=True, calls=calls
        )
        cells = [f"{replicas:,}", f"{whole.rate:,.0f}", f"{threads:,}"]
        cells.append(f"{costs.proxy / (costs.proxy + costs.replica):.0%}")
        cells += [f"{1e3 * whole.p50:.1f}", f"{1e3 * whole.p99:.1f}"]
        if replicas > 1:
            fewer = simulate(
                free, replicas=replicas - 1, proxies=threads, rate=rate, varies=True, calls=calls
            )
            stable = rate * costs.replica < replicas - 1
            cells.append(f"{1e3 * fewer.p99:.1f}" if stable else "too few")
        else:
            cells.append("none")
        single = simulate(free, replicas=replicas, in_flight=32 * replicas, calls=calls)
        cells.append(f"{single.rate:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
