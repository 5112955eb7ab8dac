"""Faults behind nginx and HAProxy, with the configurations in deploy/; skipped without them."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.answers import Answers
from tests.faults.catalogue import fault_named
from tests.faults.fleet import Fleet
from tests.faults.load import Load
from tests.faults.ports import free_ports
from tests.faults.proxy import Proxy
from tests.faults.table import Table
from tests.support import ROOT

pytestmark = pytest.mark.long

NGINX = ROOT / "deploy" / "nginx" / "nginx.conf"
HAPROXY = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
_SERVER = r"10\.0\.0\.(\d):50051"


def nginx(fleet: Fleet, folder: Path) -> Proxy:
    """A fleet behind nginx."""
    (port,) = free_ports(1)
    text = re.sub(_SERVER, lambda found: fleet.addresses[int(found[1]) - 1], NGINX.read_text())
    text = text.replace("listen 50050", f"listen 127.0.0.1:{port}")
    config = folder / "nginx.conf"
    config.write_text(f"daemon off; pid {folder}/nginx.pid; user root;\n{text}")
    log = folder / "nginx.log"
    return Proxy(["nginx", "-c", config, "-e", log], f"127.0.0.1:{port}", log)


def haproxy(fleet: Fleet, folder: Path) -> Proxy:
    """A fleet behind HAProxy, which asks the ports for metrics whether servers are ready."""
    (port,) = free_ports(1)

    def server(found: re.Match[str]) -> str:
        index = int(found[1]) - 1
        return f"{fleet.addresses[index]} port {fleet.metrics[index].rpartition(':')[2]}"

    text = re.sub(_SERVER, server, HAPROXY.read_text())
    config = folder / "haproxy.cfg"
    config.write_text(text.replace("bind :50050", f"bind 127.0.0.1:{port}"))
    command = ["haproxy", "-db", "-f", str(config)]
    return Proxy(command, f"127.0.0.1:{port}", folder / "haproxy.log")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["SIGTERM", "rolling restart", "SIGKILL", "SIGSTOP for 18 s"])
@pytest.mark.parametrize("start", [nginx, haproxy], ids=lambda start: start.__name__)
def test_a_fault_behind_another_proxy(
    start: Callable[[Fleet, Path], Proxy],
    name: str,
    models: Path,
    right: Answers,
    table: Table,
    tmp_path: Path,
) -> None:
    """Calls without retries may fail, and wait, but not in a restart behind HAProxy."""
    if shutil.which(start.__name__) is None:
        pytest.skip(f"no {start.__name__}")
    fault = fault_named(name)
    with (
        Fleet(models, tmp_path, fault.servers, options=fault.options) as fleet,
        start(fleet, tmp_path) as proxy,
        Load({start.__name__: proxy.target}, right, tmp_path / "jobs") as load,
    ):
        for _ in range(1 if "SIGSTOP" in name else 3):
            fault.play(fleet)
            time.sleep(2.0)
    (tallies,) = load.tallies().values()
    table.add(name, start.__name__, tallies)
    for (kind, retries), tally in tallies.items():
        assert tally.wrong_rows == 0, kind
        assert tally.calls > len(tally.failures), kind
        if retries or (fault.is_seamless and start is haproxy):
            assert not tally.failures, (kind, tally.failures[:5])
