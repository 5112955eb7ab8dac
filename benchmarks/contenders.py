"""All contenders by name: the servers and reference programs that are compared."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.servers.bare import Bare
from benchmarks.servers.echo import Echo
from benchmarks.servers.echo_program import TRANSPORTS
from benchmarks.servers.kserve import KServe
from benchmarks.servers.mlserver import MLServer
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
    "rayserve": RayServe,
}


def chosen(names: Sequence[str], variants: Iterable[str] = ()) -> list[Contender]:
    """Creates the contenders chosen on the command line.

    Args:
        names: Keys of CONTENDERS.
        variants: Further contenders, each `NAME=ARGUMENTS` for a `latentserve serve` with these
            arguments.

    Raises:
        ValueError: A name is unknown, or a variant has another form or a name that is taken.
    """
    found: list[Contender] = []
    for name in names:
        if name not in CONTENDERS:
            raise ValueError(f"server: got {name!r}, wanted one of {', '.join(CONTENDERS)}")
        found.append(CONTENDERS[name](name))
    for variant in variants:
        name, equals, arguments = variant.partition("=")
        if not (name and equals) or name in CONTENDERS:
            raise ValueError(f"variant: got {variant!r}, wanted NAME=ARGUMENTS and a new name")
        found.append(Ours(name, shlex.split(arguments)))
    return found
