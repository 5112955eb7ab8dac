"""Settings of the server: their sources and order, their errors, and the number of CPUs."""

import re

import pytest

from common.cpus import usable_cpus
from service import server
from service.errors import StartError
from service.settings import (
    Settings,
    flag,
    injected_by_kubernetes,
    parser,
    read_settings,
    variable,
)
from tests.support import ROOT


def test_command_line_overrides_environment_overrides_file_overrides_default(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text("grpc_port = 1\nmax_rows = 1\nthreads = 1\nreflection = true\n")
    environment = {"LATENTSERVE_GRPC_PORT": "2", "LATENTSERVE_MAX_ROWS": "2"}
    settings = read_settings(["--config", str(file), "--port", "3"], environment)
    assert settings.grpc_port == 3
    assert settings.max_rows == 2
    assert settings.threads == 1
    assert settings.reflection is True
    assert settings.host == "127.0.0.1"


def test_the_config_file_can_be_named_by_the_environment(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text("drain_seconds = 2.5\n")
    assert read_settings([], {"LATENTSERVE_CONFIG": str(file)}).drain_seconds == 2.5


def test_the_service_variable_of_kubernetes_is_not_read():
    assert read_settings([], {"LATENTSERVE_PORT": "tcp://10.0.0.1:50051"}) == Settings()


@pytest.mark.parametrize("name", ["LATENTSERVE_GRPC_PORT", "LATENTSERVE_HTTP_PORT"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_kubernetes_injects_for_a_service_is_ignored_and_named(name, protocol):
    environment = {name: f"{protocol}://10.96.3.4:8080", "LATENTSERVE_THREADS": "1"}
    assert read_settings([], environment) == Settings(threads=1)
    (problem,) = injected_by_kubernetes(environment)
    assert problem.startswith(f"{name}: got '{protocol}://10.96.3.4:8080'")


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_same_number_for_both_ports_is_refused(transport, workers):
    arguments = ["--port", "45999", "--http-port", "45999"]
    with pytest.raises(StartError, match="http-port: got 45999, which is the port for gRPC"):
        read_settings([*arguments, "--transport", transport, "--workers", workers], {})
    assert read_settings(["--port", "0", "--http-port", "0"], {}).http_port == 0


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ([], 0),
        (["--host", "localhost"], 0),
        (["--host", "[::1]"], 0),
        (["--host", "127.8.9.1"], 0),
        (["--host", "0.0.0.0"], 3),
        (["--host", "server.example"], 3),
        (["--workers", "2"], 3),
        (["--workers", "2", "--lame-duck-seconds", "0"], 0),
        (["--lame-duck-seconds", "1.5"], 1.5),
    ],
)
def test_the_lame_duck_is_for_servers_that_others_reach(arguments, seconds):
    assert read_settings(arguments, {}).lame_duck == seconds


def test_an_empty_variable_counts_as_unset():
    assert read_settings([], {"LATENTSERVE_GRPC_PORT": ""}).grpc_port == 50051


def test_a_no_flag_overrides_the_environment():
    assert not read_settings(["--no-reflection"], {"LATENTSERVE_REFLECTION": "1"}).reflection


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        ([], {"LATENTSERVE_THREADS": "-1"}, "LATENTSERVE_THREADS: got '-1'"),
        (["--port", "65536"], {}, "--port: got '65536'"),
        (["--log-level", "loud"], {}, "--log-level: got 'loud'"),
        # Nothing that could be taken for a list of keys that is not empty.
        ([], {"LATENTSERVE_TRUST": " , "}, "LATENTSERVE_TRUST: got ' , ', wanted names of files"),
    ],
)
def test_an_invalid_value_is_named_with_its_source(arguments, environment, text):
    with pytest.raises(StartError, match=text):
        read_settings(arguments, environment)


@pytest.mark.parametrize("content", ["grpc_port = 70000", "no_such_setting = 1", "not toml ="])
def test_an_invalid_config_file_is_named(tmp_path, content):
    file = tmp_path / "serve.toml"
    file.write_text(content)
    with pytest.raises(StartError, match=str(file)):
        read_settings(["--config", str(file)], {})


def test_every_setting_is_described_and_has_a_flag_and_a_variable():
    text = parser().format_help()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert flag(name) in text
        assert variable(name).startswith("LATENTSERVE_")
        assert variable(name) != "LATENTSERVE_PORT"


@pytest.mark.parametrize(
    ("memory", "workers", "wanted"),
    [(64, 1, 8), (256, 1, 16), (1024, 1, 208), (1024, 4, 16), (65_536, 4, 512)],
)
def test_bytes_in_flight_default_to_what_memory_allows(monkeypatch, memory, workers, wanted):
    monkeypatch.setattr("service.settings.usable_memory", lambda: memory * 2**20)
    assert Settings(workers=workers).queue_bytes == wanted * 2**20
    assert Settings(workers=workers, max_queue_bytes=2**40).queue_bytes == 2**40


@pytest.mark.parametrize(
    ("memory", "workers", "wanted"),
    [(64, 1, 1_000_000), (256, 1, 1_677_721), (1024, 1, 21_810_380), (1024, 4, 1_677_721),
     (65_536, 4, 64_000_000)],
)  # fmt: skip
def test_the_pixels_of_a_picture_fit_into_the_memory(monkeypatch, memory, workers, wanted):
    monkeypatch.setattr("service.settings.usable_memory", lambda: memory * 2**20)
    assert Settings(workers=workers).max_picture_pixels == wanted


def test_a_server_resolves_the_bytes_in_flight_once(monkeypatch):
    monkeypatch.setattr("service.settings.usable_memory", lambda: 2**30)
    served = server._Server(Settings(), None)._settings
    monkeypatch.setattr("service.settings.usable_memory", lambda: 2**28)
    assert served.queue_bytes == 208 * 2**20


def test_every_setting_is_in_the_table_of_docs_operations():
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    listed = [
        option for line in rows for option in re.findall(r"`(--[a-z-]+)`", line.split("|")[1])
    ]
    assert sorted(listed) == sorted([*map(flag, Settings.model_fields), "--config"])


@pytest.mark.parametrize(
    ("content", "most"), [("max 100000", None), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_the_quota_of_a_container_bounds_the_cpus(tmp_path, content, most):
    free = usable_cpus(tmp_path, tmp_path / "none")
    (tmp_path / "cpu.max").write_text(content)
    wanted = free if most is None else min(free, most)
    assert usable_cpus(tmp_path, tmp_path / "none") == wanted


def test_a_quota_of_a_parent_cgroup_bounds_the_cpus(tmp_path):
    group = tmp_path / "system.slice" / "latentserve.service"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000")
    (group.parent / "cpu.max").write_text("50000 100000")
    own = tmp_path / "own"
    own.write_text("0::/system.slice/latentserve.service\n")
    assert usable_cpus(tmp_path, own) == 1
