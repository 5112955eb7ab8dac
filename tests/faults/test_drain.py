"""The command that Kubernetes runs before it ends an Envoy: callers leave, no call fails."""

import re
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import yaml

from latentserve.client import Client
from tests.faults.answers import Answers
from tests.faults.envoy import Envoy
from tests.faults.fleet import Fleet
from tests.faults.load import NO_RETRIES, Load
from tests.support import ROOT

_POD = ROOT / "deploy" / "kubernetes" / "components" / "envoy" / "deployment.yaml"


def drained(proxy: Envoy) -> int:
    """Number of connections by gRPC that Envoy has asked to leave."""
    with urlopen(f"http://{proxy.admin}/stats?filter=http.grpc.downstream_cx_drain_close") as reply:
        return int(re.findall(rb": (\d+)", reply.read())[0])


def test_callers_leave_an_envoy_that_is_to_end_without_a_failed_call(
    models: Path, right: Answers, envoy: Path, tmp_path: Path
) -> None:
    (container,) = yaml.safe_load(_POD.read_text())["spec"]["template"]["spec"]["containers"]
    command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert "--drain-time-s" in container["args"]
    with (
        Fleet(models, tmp_path) as fleet,
        Envoy(envoy, fleet.addresses, tmp_path, options=("--drain-time-s", "2")) as proxy,
        Client(proxy.target, retry=NO_RETRIES) as client,
        Load({"Envoy": proxy.target}, right, tmp_path, (("narrow", False),) * 4, client) as load,
    ):
        time.sleep(1.0)
        assert drained(proxy) == 0
        # With the port of this Envoy, and without the wait that follows.
        script = command[-1].replace("/127.0.0.1/9901", "/" + proxy.admin.replace(":", "/"))
        assert script.endswith("; sleep 60")
        subprocess.run([*command[:-1], script.removesuffix("; sleep 60")], check=True, timeout=10)
        time.sleep(4.0)
        assert drained(proxy) > 0
    for tally in load.tallies()["Envoy"].values():
        assert tally.calls > 50
        assert tally.wrong_rows == 0
        assert tally.failures == []
