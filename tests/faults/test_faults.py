"""Every fault under load, by gRPC and by HTTP: one round, or in the long form five."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.answers import Answers
from tests.faults.catalogue import FAULTS, Fault, fault_named
from tests.faults.envoy import Envoy
from tests.faults.fleet import Fleet
from tests.faults.load import Load, Tallies
from tests.faults.table import Table

_LONG_ROUNDS = 5
# A caller's pauses, and a busy machine.
_TOLERANCE_SECONDS = 1.0


def broken_promises(fault: Fault, reached: str, tallies: Tallies) -> Iterator[str]:
    """Yields what was promised and not kept."""
    for (kind, retries), tally in tallies.items():
        where = f"{reached}, {kind} {'with' if retries else 'without'} retries"
        if tally.wrong_rows:
            yield f"{where}: {tally.wrong_rows} wrong rows"
        if tally.calls <= len(tally.failures):
            yield f"{where}: no call succeeded"
        if tally.failures and (retries or fault.is_seamless):
            yield f"{where}: {len(tally.failures)} of {tally.calls} failed: {tally.failures[:5]}"
        if retries and tally.longest_gap > fault.longest_gap + _TOLERANCE_SECONDS:
            yield f"{where}: {tally.longest_gap:.1f} s without an answer"


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(1, id="once"),
        pytest.param(_LONG_ROUNDS, id="often", marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault(
    fault: Fault,
    rounds: int,
    models: Path,
    right: Answers,
    envoy: Path,
    table: Table,
    tmp_path: Path,
) -> None:
    with (
        Fleet(models, tmp_path, fault.servers, options=fault.options) as fleet,
        Envoy(envoy, fleet.addresses, tmp_path) as proxy,
    ):
        targets = {"Envoy": proxy.target, "round robin": fleet.target, "HTTP": fleet.gateway}
        with Load(targets, right, tmp_path / "jobs") as load:
            for _ in range(rounds):
                fault.play(fleet)
                time.sleep(2.0)
        for index in range(fault.servers):
            assert fleet.is_answering(index), fleet.logs()
    broken: list[str] = []
    for reached, tallies in load.tallies().items():
        table.add(fault.name, reached, tallies)
        broken += broken_promises(fault, reached, tallies)
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSTOP for 18 s"])
def test_a_fault_behind_envoy_by_http(
    name: str, models: Path, right: Answers, envoy: Path, table: Table, tmp_path: Path
) -> None:
    fault = fault_named(name)
    with (
        Fleet(models, tmp_path, fault.servers, options=fault.options) as fleet,
        Envoy(envoy, fleet.addresses, tmp_path, fleet.gateways) as proxy,
        Load({"Envoy, HTTP": f"http:{proxy.gateway}"}, right, tmp_path / "jobs") as load,
    ):
        fault.play(fleet)
        time.sleep(2.0)
    (tallies,) = load.tallies().values()
    table.add(fault.name, "Envoy, HTTP", tallies)
    assert not list(broken_promises(fault, "Envoy, HTTP", tallies))
