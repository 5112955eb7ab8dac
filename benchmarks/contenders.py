"""All contenders by name: the servers and reference programs that are compared."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence

from benchmarks.results import PINNED
from benchmarks.servers.bare import Bare
from benchmarks.servers.echo import Echo
from benchmarks.servers.echo_program import TRANSPORTS
from benchmarks.servers.kserve import KServe
from benchmarks.servers.mlserver import MLServer
from benchmarks.servers.mosec import Mosec
from benchmarks.servers.ours import Ours
from benchmarks.servers.plain import Plain
from benchmarks.servers.pyvoy import Pyvoy, PyvoyEcho
from benchmarks.servers.rayserve import RayServe
from benchmarks.servers.server import Contender
from benchmarks.servers.triton import Triton

CONTENDERS: Mapping[str, Callable[[str], Contender]] = {
    "bare": Bare,
    "bare-2": lambda name: Bare(name, processes=2),
    **{f"echo-{kind}": lambda name, kind=kind: Echo(name, kind) for kind in TRANSPORTS},  # type: ignore[misc]
    "echo-pyvoy": PyvoyEcho,
    "plain": Plain,
    "ours": Ours,
    "pyvoy": Pyvoy,
    "triton": Triton,
    # Two instances of each model, which at best doubles the rate of calls with many images.
    "triton-2": lambda name: Triton(name, instances=2),
    "mlserver": MLServer,
    "mlserver-batching": lambda name: MLServer(name, batch_seconds=0.001),
    "kserve": KServe,
    "mosec": Mosec,
    "rayserve": RayServe,
}


def chosen(
    names: Sequence[str], variants: Sequence[str] = (), pins: Sequence[str] = ()
) -> list[Contender]:
    """Creates the contenders chosen on the command line.

    Args:
        names: Keys of CONTENDERS.
        variants: Further contenders, each `NAME=ARGUMENTS` for a `latentserve serve` with these
            arguments.
        pins: Lists of CPUs, such as `0` and `0,1`: there is one of each contender for each list,
            called `NAME@CPUS`, to be run on these CPUs. Empty for contenders on all CPUs.

    Raises:
        ValueError: A name or a CPU is unknown, or a variant has another form or a name that is
            taken.
    """
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(f"server: got {name!r}, wanted one of {', '.join(CONTENDERS)}")
    for variant in variants:
        name, equals, _ = variant.partition("=")
        if not (name and equals) or name in CONTENDERS:
            raise ValueError(f"variant: got {variant!r}, wanted NAME=ARGUMENTS and a new name")
    found: list[Contender] = []
    for cpus in pins or [""]:
        suffix = cpus and PINNED + cpus
        made = [CONTENDERS[name](name + suffix) for name in names]
        for variant in variants:
            name, _, arguments = variant.partition("=")
            made.append(Ours(name + suffix, shlex.split(arguments)))
        for contender in made:
            contender.cpus = _cpus(cpus)
        found += made
    return found


def _cpus(text: str) -> frozenset[int]:
    """Parses a list of CPUs, such as `0,1`; empty for an empty text."""
    usable = os.sched_getaffinity(0)
    numbers = [int(number) if number.isdecimal() else -1 for number in text.split(",") if text]
    if not usable.issuperset(numbers):
        raise ValueError(f"pin: got {text!r}, wanted some of {','.join(map(str, sorted(usable)))}")
    return frozenset(numbers)
