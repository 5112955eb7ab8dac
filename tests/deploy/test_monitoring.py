"""Alerts, dashboard and scaling name metrics and labels that a running server has."""

import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
import yaml

from latentserve.client import Client, Tls
from service.settings import Settings
from tests.support import ROOT
from tests.support.environments import python_with
from tests.support.manifests import KUBERNETES, documents, one
from tests.support.processes import Server
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

COMPONENTS = KUBERNETES / "components"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
# What Prometheus adds to each sample that it scrapes, here by the ServiceMonitor.
_TARGET_LABELS = {"job", "instance", "namespace", "pod"}
# Runs where promql-parser is: reads expressions, prints what is wrong with each.
_PARSE = """
import json, sys
import promql_parser
def problem(expression):
    try:
        promql_parser.parse(expression)
    except ValueError as error:
        return str(error)
print(json.dumps([problem(expression) for expression in json.load(sys.stdin)]))
"""


def alert_expressions() -> list[str]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    page = one("overlays/monitoring", "ConfigMap", "latentserve-dashboard")["data"]
    found: dict[str, Any] = json.loads(page["latentserve.json"])
    return found


def dashboard_expressions() -> list[str]:
    """The queries of the panels, with Grafana's variables replaced."""
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def adapter_rules() -> list[dict[str, Any]]:
    """The rules of the Prometheus adapter."""
    values = yaml.safe_load((COMPONENTS / "autoscale" / "adapter-values.yaml").read_text())
    found: list[dict[str, Any]] = values["rules"]["custom"]
    return found


def adapter_expressions() -> list[str]:
    """The queries of the adapter's rules, with its templates filled in as for a Pod."""
    filled = {"<<.GroupBy>>": "pod", "<<.LabelMatchers>>": 'namespace="here",pod=~"one|two"'}
    found = []
    for rule in adapter_rules():
        query = rule["metricsQuery"]
        for template, value in filled.items():
            query = query.replace(template, value)
        assert "<<" not in query
        found += [rule["seriesQuery"], query]
    return found


def keda_expressions() -> list[str]:
    scaled = one("overlays/autoscale-keda", "ScaledObject")["spec"]
    return [trigger["metadata"]["query"] for trigger in scaled["triggers"]]


EXPRESSIONS = {
    "alerts": alert_expressions,
    "dashboard": dashboard_expressions,
    "adapter": adapter_expressions,
    "keda": keda_expressions,
}


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every sample of a server of two workers with TLS and a route, with its labels."""
    folder = tmp_path_factory.mktemp("exposed")
    for _ in range(2):
        write_tiny(folder / "models" / "tiny")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    tls = ["--tls-cert", f"{folder}/server.pem", "--tls-key", f"{folder}/server.pem"]
    options = ["--workers", "2", "--drift-share", "0.1", "--route", "tiny=1:50,2:50", *tls]
    images = np.zeros((64, 1, 4, 4), np.float32)
    server = Server(folder / "models", folder / "log", "--http-port", "0", *options)
    with server:
        ready = f"{server.origin}/readyz"
        wait_until(lambda: answers(ready), lambda: (folder / "log").read_text())
        with Client(server.target, tls=Tls(ca=authority.cert_pem.bytes())) as client:

            def measured() -> bool:
                client.encode(images)
                return server.metric("latentserve_reconstruction_error") > 0

            wait_until(measured, lambda: (folder / "log").read_text())
        found: dict[str, set[str]] = {}
        for sample in server.samples():
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def missing(expression: str, exposed: dict[str, set[str]]) -> set[str]:
    """Metrics and labels of an expression that no sample has.

    A label counts as missing if none of the expression's metrics has it.
    """
    names = set(re.findall(r"\b(?:latentserve|process)_\w+", expression))
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    labels = {*matched, *(label.strip() for group in grouped for label in group.split(","))}
    known = set().union(_TARGET_LABELS, *(exposed.get(name, set()) for name in names))
    return (names - exposed.keys()) | (labels - known)


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_every_metric_and_label_exists_on_a_running_server(
    source: str, exposed: dict[str, set[str]]
) -> None:
    expressions = EXPRESSIONS[source]()
    assert expressions
    for expression in expressions:
        assert missing(expression, exposed) == set(), expression


def test_a_metric_or_a_label_that_no_server_has_is_found(exposed: dict[str, set[str]]) -> None:
    assert missing("rate(latentserve_request_total[1m])", exposed) == {"latentserve_request_total"}
    by_method = "sum by (method) (latentserve_requests_total)"
    assert missing(by_method, exposed) == {"method"}
    assert missing('latentserve_rejected_total{cause="deadline"}', exposed) == {"cause"}


@pytest.fixture(scope="module")
def parser() -> Path:
    return python_with(["promql-parser==0.12.0"], "")


def problems_of(parser: Path, expressions: list[str]) -> list[str | None]:
    done = subprocess.run(
        [parser, "-c", _PARSE],
        input=json.dumps(expressions),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str | None] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("source", EXPRESSIONS)
def test_every_expression_is_promql(source: str, parser: Path) -> None:
    expressions = EXPRESSIONS[source]()
    assert [one for one in problems_of(parser, expressions) if one is not None] == []
    broken = [f"{expression} )" for expression in expressions]
    assert None not in problems_of(parser, broken)


def test_the_operators_rules_are_the_alerts() -> None:
    rule = one("overlays/monitoring", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())


def test_the_monitor_scrapes_each_server_once_under_the_job_of_the_alerts() -> None:
    monitor = one("overlays/monitoring", "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [
        document
        for document in documents("overlays/monitoring")
        if document["kind"] == "Service"
        and wanted <= document["metadata"]["labels"].items()
        and endpoint["port"] in {port["name"] for port in document["spec"]["ports"]}
    ]
    (service,) = services
    job = service["metadata"]["labels"][monitor["jobLabel"]]
    assert f'job="{job}"' in "".join(alert_expressions())
    policy = one("overlays/monitoring", "NetworkPolicy", "latentserve")["spec"]
    assert [rule for rule in policy["ingress"] if rule["ports"][0]["port"] == "metrics"]


def test_the_autoscaler_asks_for_the_metrics_that_the_adapter_serves() -> None:
    served = {rule["name"]["as"] for rule in adapter_rules()}
    for rule in adapter_rules():
        assert rule.keys() == {"seriesQuery", "resources", "name", "metricsQuery"}
        assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
    spec = one("overlays/autoscale", "HorizontalPodAutoscaler")["spec"]
    assert {metric["pods"]["metric"]["name"] for metric in spec["metrics"]} == served
    # A Pod has rows in flight up to this limit; the autoscaler has to act long before.
    (rows,) = [
        int(metric["pods"]["target"]["averageValue"])
        for metric in spec["metrics"]
        if metric["pods"]["metric"]["name"] == "latentserve_queue_rows"
    ]
    assert rows == Settings().max_queue_rows // 16 == Settings().max_rows


@pytest.mark.parametrize("name", ["overlays/autoscale", "overlays/autoscale-keda"])
def test_an_autoscaler_owns_the_number_of_replicas(name: str) -> None:
    deployment = one(name, "Deployment", "latentserve")
    assert "replicas" not in deployment["spec"]
    kind = "ScaledObject" if name.endswith("keda") else "HorizontalPodAutoscaler"
    target = one(name, kind)["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]


def test_both_autoscalers_behave_alike() -> None:
    by_metric = one("overlays/autoscale", "HorizontalPodAutoscaler")["spec"]
    by_query = one("overlays/autoscale-keda", "ScaledObject")["spec"]
    bounds = by_query["minReplicaCount"], by_query["maxReplicaCount"]
    assert (by_metric["minReplicas"], by_metric["maxReplicas"]) == bounds
    config = by_query["advanced"]["horizontalPodAutoscalerConfig"]
    assert config["behavior"] == by_metric["behavior"]
    window = by_metric["behavior"]["scaleDown"]["stabilizationWindowSeconds"]
    assert window >= Settings().max_connection_age_seconds


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert columns.stop <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
