"""The commands `info`, `check` and `reload`, and the options of the connection."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time

import trustme

from latentserve.client import Client
from tests.support.in_process import run_cli
from tests.support.processes import Server
from tests.support.tiny import write_tiny

pytest_plugins = ["tests.support.cli_fixtures"]


def test_info_describes_the_server_and_its_models(server_env):
    done = run_cli("info", env=server_env)
    assert done.returncode == 0, done.stderr
    assert "mnist/2 (default): trained on mnist" in done.stdout
    assert "mnist2d/2: trained on mnist" in done.stdout
    assert "latents    40, posterior gaussian, prior flow-gmm" in done.stdout
    assert "labels     0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in done.stdout
    assert "test ELBO" in done.stdout
    assert "limits: 4096 rows, 67108864 bytes a message\n" in done.stdout
    assert "in flight: 65536 rows, 536870912 bytes; score: 5000 draws\n" in done.stdout


def test_info_of_one_model_describes_it_alone(server_env):
    done = run_cli("info", "--model", "mnist2d", "--model-version", "2", env=server_env)
    assert done.stdout.startswith("mnist2d/2: trained on mnist")
    assert "mnist/2" not in done.stdout


def test_info_as_json_holds_every_model(server_env):
    server = json.loads(run_cli("info", "--json", env=server_env).stdout)
    assert server["default_model"] == "mnist"
    assert [model["name"] for model in server["models"]] == [
        "emoji",
        "fonts",
        "mnist",
        "mnist-style",
        "mnist2d",
    ]
    model = json.loads(run_cli("info", "--json", "--model", "mnist2d", env=server_env).stdout)
    assert model == server["models"][-1]
    assert model["latent_dim"] == 2


def test_check_exits_0_when_serving(server_env):
    done = run_cli("check", env=server_env)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    assert run_cli("check", "--model", "mnist", env=server_env).returncode == 0


def test_check_exits_1_without_a_server_or_such_a_model(server_env):
    done = run_cli("check", "--server", "127.0.0.1:1", "--timeout", "2")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run_cli("check", "--model", "nope", env=server_env).returncode == 1


def test_reload_lists_served_added_removed_and_refused_versions(tmp_path):
    write_tiny(tmp_path / "models" / "tiny")
    with Server(tmp_path / "models", tmp_path / "log", "--admin") as server:
        server.wait_until_serving()
        server_env = {"LATENTSERVE_SERVER": server.target}
        write_tiny(tmp_path / "models" / "tiny", seed=1)
        done = run_cli("reload", env=server_env)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "serving  tiny/2\nadded    tiny/2\nremoved  tiny/1\n"
        write_tiny(tmp_path / "models" / "tiny", golden_error=9.0)
        done = run_cli("reload", "--json", env=server_env)
        assert done.returncode == 1
        assert json.loads(done.stdout)["serving"] == [{"name": "tiny", "version": 2}]
        assert done.stderr.startswith("latentserve reload: tiny/3 is refused: ")
        assert len(done.stderr.splitlines()) == 1


def test_the_connection_may_come_from_the_environment(shipped, tmp_path):
    for variable, text in (
        ("LATENTSERVE_TLS_CA", "--tls-ca: "),
        ("LATENTSERVE_TOKEN_FILE", "--token-file: "),
    ):
        done = run_cli("info", env={variable: str(tmp_path / "nowhere")})
        assert done.returncode == 1
        assert text in done.stderr
    port = shipped.target.rpartition(":")[2]
    empty = {"LATENTSERVE_TLS_CA": "", "LATENTSERVE_TOKEN_FILE": "", "LATENTSERVE_SERVER": ""}
    assert run_cli("check", env={"LATENTSERVE_GRPC_PORT": port, **empty}).returncode == 0
    assert run_cli("check", env={"LATENTSERVE_TIMEOUT": "soon"}).returncode == 2


def test_what_kubernetes_injects_is_no_port_of_the_default_server():
    environment = {"LATENTSERVE_GRPC_PORT": "tcp://10.96.3.4:50051", "LATENTSERVE_SERVER": ""}
    done = run_cli("check", "--help", env=environment)
    assert "(default: localhost:50051)" in " ".join(done.stdout.split())


@contextlib.contextmanager
def piped(file):
    """Yields the path of a pipe that holds what a file does."""
    reading, writing = os.pipe()
    os.write(writing, file.read_bytes())
    os.close(writing)
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)


def test_certificates_and_token_reach_a_server_that_requires_them(tmp_path):
    write_tiny(tmp_path / "models" / "tiny")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name, host in (("server", "models.example"), ("caller", "caller.example")):
        certificate = authority.issue_cert(host)
        certificate.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        certificate.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    for name in ("tokens", "token"):
        (tmp_path / name).write_text("open-sesame-open-sesame\n")
    (tmp_path / "wrong").write_text("please-please-please-open\n")
    given = {
        "--tls-ca": tmp_path / "ca.pem",
        "--tls-cert": tmp_path / "caller.pem",
        "--tls-key": tmp_path / "caller.key",
        "--tls-name": "models.example",
        "--token-file": tmp_path / "token",
    }

    def info(options, env=None):
        flags = itertools.chain.from_iterable(options.items())
        return run_cli("info", "--server", server.target, "--timeout", "3", *flags, env=env)

    with Server(
        tmp_path / "models", tmp_path / "log",
        "--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"),
        "--tls-client-ca", str(tmp_path / "ca.pem"), "--token-file", str(tmp_path / "tokens"),
    ) as server:  # fmt: skip
        deadline = time.monotonic() + 30
        while info(given).returncode != 0:
            assert time.monotonic() < deadline, info(given).stderr
        variables = {
            f"LATENTSERVE_{option[2:].upper().replace('-', '_')}": str(value)
            for option, value in given.items()
        }
        assert info({}, env=variables).returncode == 0
        with piped(tmp_path / "token") as token, piped(tmp_path / "caller.key") as key:
            # What the shell makes of <(...).
            done = info({**given, "--token-file": token, "--tls-key": key})
            assert (done.returncode, done.stderr) == (0, "")
        without = [
            {option: value for option, value in given.items() if option not in left_out}
            for left_out in (
                ("--tls-cert", "--tls-key"), ("--tls-name",), ("--tls-ca",), ("--token-file",),
                tuple(given),
            )
        ]  # fmt: skip
        for options in (*without, {**given, "--token-file": tmp_path / "wrong"}):
            done = info(options)
            assert done.returncode == 1, options
            assert done.stderr.startswith("latentserve info: ")
            assert len(done.stderr.splitlines()) == 1


def test_client_commands_run_without_the_application(server_env):
    code = (
        "import sys\nfrom latentserve.cli import main\n"
        "for name in ('training', 'export', 'service', 'bundle', 'PIL', 'pydantic'):\n"
        "    sys.modules[name] = None\n"
        "sys.exit(main(['info']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, **server_env},
    )
    assert done.returncode == 0


def test_the_timeout_option_reaches_the_call(shipped):
    with Client(shipped.target) as client:
        assert client.is_serving()
    done = run_cli("sample", "-n", "4000", "--server", shipped.target, "--timeout", "0.001")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
