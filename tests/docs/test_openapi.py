"""The document of the HTTP API: up to date, complete, and true of the real routes."""

import json
import re

import pytest

from docs.make_openapi import DOCUMENT, PAGE, document
from docs.openapi.page import page
from latentserve.v1 import latent_service_pb2 as pb
from service.gateway.operations import OPERATIONS, STREAMS
from tests.support.http import Caller
from tests.support.processes import Server
from tests.support.tiny import write_tiny

made = json.loads(DOCUMENT.read_text())


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    write_tiny(folder / "models" / "one")
    with Server(folder / "models", folder / "log", "--gateway-port", "0") as server:
        yield Caller(server.wait_until_serving().gateway)


def test_the_document_and_the_page_are_up_to_date():
    fresh = document()
    assert fresh == made, "stale: make docs"
    assert page(fresh) == PAGE.read_text(), "stale: make docs"


def test_every_method_of_the_service_has_an_operation():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["LatentService"].methods}
    told = {operation.rpc for operation in (*OPERATIONS, *STREAMS)}
    assert told | {"GetServerInfo", "ListModels", "GetModel", "GetLatentMap"} == methods


def test_the_server_serves_both(gateway):
    assert gateway.get("/openapi.json").json() == made
    reply = gateway.get("/api")
    assert reply.media == "text/html; charset=utf-8"
    assert "unsafe" not in reply.headers["content-security-policy"]
    # Nothing comes from elsewhere, and there are no scripts.
    text = reply.body.decode()
    assert set(re.findall(r'(?:href|src)="([^"]*)"', text)) == {"/openapi.json", "/api.css"}
    assert "<script" not in text
    assert gateway.get("/api.css").media == "text/css; charset=utf-8"


def test_every_path_is_a_route(gateway):
    for path, methods in made["paths"].items():
        real = path.replace("{model}", "one").replace("{version}", "1")
        allowed = gateway.ask("OPTIONS", real).headers["allow"].split(", ")
        assert {method.upper() for method in methods} == set(allowed) - {"HEAD"}, path
