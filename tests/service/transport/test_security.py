"""TLS and tokens of a real server."""

import os
import ssl
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from service.errors import StartError
from service.net.tls import TlsFiles
from tests.support.in_process import refused_start
from tests.support.processes import Server
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

# The second one becomes valid in the course of the tests.
TOKEN, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secure")
    write_tiny(folder / "models" / "one")
    return folder


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write(certificate: trustme.LeafCert, folder: Path, name: str = "server") -> list[str]:
    """Writes a certificate and its key as an operator would: each is replaced atomically."""
    paths = []
    for part, blob in (
        ("cert", certificate.cert_chain_pems[0]),
        ("key", certificate.private_key_pem),
    ):
        path = folder / f"{name}.{part}.pem"
        fresh = path.with_suffix(".new")
        blob.write_to_path(str(fresh))
        os.replace(fresh, path)  # noqa: PTH105
        paths.append(str(path))
    return paths


def secure(server: Server, ca: trustme.CA | None, client: trustme.LeafCert | None = None):
    """A channel that trusts a CA and, if given, presents a client certificate."""
    credentials = grpc.ssl_channel_credentials(
        ca.cert_pem.bytes() if ca else None,
        client.private_key_pem.bytes() if client else None,
        client.cert_chain_pems[0].bytes() if client else None,
    )
    options = [("grpc.ssl_target_name_override", "localhost")]
    return grpc.secure_channel(server.target, credentials, options=options)


def code_of(channel: grpc.Channel, metadata=(), timeout: float = 5.0) -> grpc.StatusCode:
    """Status code of a call."""
    with channel:
        stub = latent_service_pb2_grpc.LatentServiceStub(channel)
        call = stub.Sample.future(pb.SampleRequest(count=1), timeout=timeout, metadata=metadata)
        return call.code()


def serving(channel: grpc.Channel) -> bool:
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.RpcError:
        return False
    return reply.status == health_pb2.HealthCheckResponse.SERVING


def wait_until_serving(make_channel) -> None:
    def answers() -> bool:
        with make_channel() as channel:
            return serving(channel)

    wait_until(answers)


# ------------------------------------------------------------------------ TLS


@pytest.mark.usefixtures("each_transport")
def test_tls_handshake_needs_a_client_that_trusts_the_authority(folder, authority, tmp_path):
    certificate, key = write(authority.issue_cert("localhost"), tmp_path)
    arguments = ("--tls-cert", certificate, "--tls-key", key)
    with Server(folder / "models", tmp_path / "log", *arguments) as server:
        wait_until_serving(lambda: secure(server, authority))
        assert code_of(secure(server, authority)) == grpc.StatusCode.OK
        assert code_of(secure(server, trustme.CA())) == grpc.StatusCode.UNAVAILABLE
        plain = grpc.insecure_channel(server.target)
        assert code_of(plain) == grpc.StatusCode.UNAVAILABLE
        # The port really speaks TLS, with this certificate.
        host, port = server.target.rsplit(":", 1)
        pem = ssl.get_server_certificate((host, int(port)))
        assert pem.strip() == Path(certificate).read_text().strip()


@pytest.mark.usefixtures("each_transport")
def test_a_replaced_certificate_is_used_for_new_connections(folder, authority, tmp_path):
    certificate, key = write(authority.issue_cert("localhost"), tmp_path)
    arguments = ("--tls-cert", certificate, "--tls-key", key)
    with Server(folder / "models", tmp_path / "log", *arguments) as server:
        wait_until_serving(lambda: secure(server, authority))
        with secure(server, authority) as old:
            assert serving(old)
            later = trustme.CA()
            write(later.issue_cert("localhost"), tmp_path)
            assert code_of(secure(server, later)) == grpc.StatusCode.OK
            assert code_of(secure(server, authority)) == grpc.StatusCode.UNAVAILABLE
            assert serving(old)  # over the connection made before
        # A certificate without its key: the previous pair is kept, and the log says why.
        fresh = later.issue_cert("localhost")
        fresh.cert_chain_pems[0].write_to_path(certificate)
        assert code_of(secure(server, later)) == grpc.StatusCode.OK
        assert "keeping the previous ones" in server.log.read_text()


@pytest.mark.usefixtures("each_transport")
def test_mtls_accepts_only_client_certificates_of_its_authority(folder, authority, tmp_path):
    certificate, key = write(authority.issue_cert("localhost"), tmp_path)
    ca = tmp_path / "clients.pem"
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(ca))
    arguments = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", str(ca))
    with Server(folder / "models", tmp_path / "log", *arguments) as server:
        good = clients.issue_cert("client@example.org")
        wait_until_serving(lambda: secure(server, authority, good))
        assert code_of(secure(server, authority, good)) == grpc.StatusCode.OK
        stranger = trustme.CA().issue_cert("client@example.org")
        assert code_of(secure(server, authority, stranger)) == grpc.StatusCode.UNAVAILABLE
        assert code_of(secure(server, authority)) == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("damage", ["missing", "other key", "no PEM"])
def test_missing_mismatched_or_malformed_tls_files_are_refused(authority, tmp_path, damage):
    certificate, key = map(Path, write(authority.issue_cert("localhost"), tmp_path))
    if damage == "missing":
        key.unlink()
    elif damage == "other key":
        authority.issue_cert("localhost").private_key_pem.write_to_path(str(key))
    else:
        certificate.write_text("hello")
    with pytest.raises(StartError, match="tls-cert, tls-key or tls-client-ca: "):
        TlsFiles(certificate, key)


def test_a_certificate_without_a_key_is_a_usage_error(folder, tmp_path):
    done = refused_start("--models", folder / "models", "--tls-cert", tmp_path / "cert.pem")
    assert done.returncode == 2
    assert "tls-cert and tls-key: got only one of them" in done.stderr
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------------- tokens


@pytest.fixture(scope="module")
def guarded(transport_kind, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("guarded") / "tokens"
    path.write_text(TOKEN)
    arguments = ("--token-file", str(path), "--reflection", "--admin")
    arguments += ("--transport", transport_kind)
    with Server(folder / "models", path.with_name("log"), *arguments) as server:
        yield server.wait_until_serving(), path


@pytest.mark.parametrize(
    ("authorization", "wanted"),
    [
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("Bearer 0000000000000000", grpc.StatusCode.UNAUTHENTICATED),
        (TOKEN, grpc.StatusCode.UNAUTHENTICATED),
        (f"Bearer {TOKEN}", grpc.StatusCode.OK),
    ],
)
def test_a_call_needs_a_valid_bearer_token(guarded, authorization, wanted):
    metadata = () if authorization is None else (("authorization", authorization),)
    assert code_of(grpc.insecure_channel(guarded[0].target), metadata) == wanted


def test_streams_admin_and_reflection_need_a_token_too(guarded):
    with grpc.insecure_channel(guarded[0].target) as channel:
        for name in ("LatentService/EncodeStream", "LatentService/SampleStream",
                     "LatentService/GetServerInfo", "AdminService/Reload"):  # fmt: skip
            call = channel.stream_stream(f"/latentserve.v1.{name}")(iter([b""]), timeout=5)
            assert call.code() == grpc.StatusCode.UNAUTHENTICATED, name
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = stub.ServerReflectionInfo(iter([request]), timeout=5)
        assert call.code() == grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        call = stub.ServerReflectionInfo(iter([request]), timeout=5, metadata=metadata)
        assert next(call).list_services_response.service


def test_health_needs_no_token(guarded):
    with grpc.insecure_channel(guarded[0].target) as channel:
        assert serving(channel)


def test_an_added_token_is_accepted_without_a_restart(guarded):
    server, path = guarded
    path.write_text(f"{TOKEN}\n{OTHER}\n")
    metadata = (("authorization", f"Bearer {OTHER}"),)

    def code() -> grpc.StatusCode:
        return code_of(grpc.insecure_channel(server.target), metadata)

    wait_until(lambda: code() == grpc.StatusCode.OK, seconds=10)


def test_no_token_appears_in_the_log_or_in_an_error(guarded):
    server, _ = guarded
    metadata = (("authorization", "Bearer a-wrong-but-real-secret"),)
    with grpc.insecure_channel(server.target) as channel:
        stub = latent_service_pb2_grpc.LatentServiceStub(channel)
        call = stub.Sample.future(pb.SampleRequest(count=1), metadata=metadata)
        assert "a wrong token" in call.details()
        assert "secret" not in call.details()
    log = server.log.read_text()
    assert TOKEN not in log
    assert "secret" not in log
