"""Replacement of certificates under both transports, with real handshakes."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest import mock

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from service.api.servicer import Servicer
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.errors import StartError
from service.models.repository import Models
from service.net.tls import TlsFiles
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.grpcio_transport import GrpcioTransport
from service.transport.http2_transport import Http2Transport
from tests.support.clients import awaited


class Files:
    """A certificate and its key on disk, each replaced atomically, as an operator would."""

    def __init__(self, folder: Path, authority: trustme.CA):
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.client_ca = folder / "clients.pem"
        self.replace(authority)

    def replace(self, authority: trustme.CA) -> None:
        fresh = authority.issue_cert("localhost")
        self.write(self.certificate, fresh.cert_chain_pems[0].bytes())
        self.write(self.key, fresh.private_key_pem.bytes())

    def write(self, path: Path, blob: bytes) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_bytes(blob)
        fresh.replace(path)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> Files:
    return Files(tmp_path, authority)


@pytest.fixture(params=[GrpcioTransport, Http2Transport])
def serving(request):
    """Starts a transport without a model; its health service answers all the same."""

    @asynccontextmanager
    async def opened(tls: TlsFiles) -> AsyncIterator[int]:
        settings = Settings(grpc_port=0)
        telemetry = Telemetry(Metrics(), None, lambda _graph, error: pytest.fail(str(error)))
        admission = Admission(1, 1)
        engine = Engine(admission, telemetry)
        transport = request.param(
            Servicer(engine, Models, settings),
            None,
            settings,
            authenticate=lambda _authorization: "",
            capacity=admission,
            tls=tls,
            telemetry=telemetry,
        )
        await transport.start()
        try:
            yield transport.port
        finally:
            await transport.drain(0, asyncio.Event())
            engine.close()

    return opened


def channel(
    port: int, trusted: trustme.CA, own: trustme.LeafCert | None = None
) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        trusted.cert_pem.bytes(),
        own.private_key_pem.bytes() if own else None,
        own.cert_chain_pems[0].bytes() if own else None,
    )
    # A subchannel pool of its own, or a second channel would share the first one's connection.
    options = [
        ("grpc.ssl_target_name_override", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options)


async def code(through: grpc.aio.Channel) -> grpc.StatusCode:
    call = through.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
    return await call.code()


async def answered(port: int, trusted: trustme.CA, own: trustme.LeafCert | None = None) -> bool:
    """Whether the handshake of a new connection succeeds, and a call on it."""
    async with channel(port, trusted, own) as through:
        ended = await code(through)
    assert ended in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return ended is grpc.StatusCode.OK


# ------------------------------------------------------------------ handshakes


def test_tls_handshake_needs_a_client_that_trusts_the_authority(
    serving, files, authority, stranger
):
    async def scenario():
        async with serving(TlsFiles(files.certificate, files.key)) as port:
            assert await answered(port, authority)
            assert not await answered(port, stranger)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain:
                assert await code(plain) is grpc.StatusCode.UNAVAILABLE

    awaited(scenario())


def test_with_a_client_ca_clients_need_a_certificate_signed_by_it(
    serving, files, authority, stranger
):
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(files.client_ca))

    async def scenario():
        tls = TlsFiles(files.certificate, files.key, files.client_ca)
        async with serving(tls) as port:
            assert await answered(port, authority, clients.issue_cert("a@example.org"))
            assert not await answered(port, authority, stranger.issue_cert("a@example.org"))
            assert not await answered(port, authority)

    awaited(scenario())


def test_a_replaced_certificate_is_used_for_new_connections_and_old_ones_live(
    serving, files, authority, stranger
):
    async def scenario():
        async with (
            serving(TlsFiles(files.certificate, files.key)) as port,
            channel(port, authority) as old,
        ):
            assert await code(old) is grpc.StatusCode.OK
            files.replace(stranger)
            assert await answered(port, stranger)
            assert not await answered(port, authority)
            assert await code(old) is grpc.StatusCode.OK

    awaited(scenario())


def test_a_replaced_client_ca_is_used_for_new_connections(serving, files, authority, stranger):
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(files.client_ca))
    before, after = clients.issue_cert("a@example.org"), stranger.issue_cert("b@example.org")

    async def scenario():
        async with serving(TlsFiles(files.certificate, files.key, files.client_ca)) as port:
            assert await answered(port, authority, before)
            files.write(files.client_ca, stranger.cert_pem.bytes())
            assert await answered(port, authority, after)
            assert not await answered(port, authority, before)

    awaited(scenario())


def test_a_mismatched_pair_keeps_the_previous_one_and_is_logged_once(
    serving, files, authority, stranger, caplog
):
    async def scenario():
        async with serving(TlsFiles(files.certificate, files.key)) as port:
            fresh = stranger.issue_cert("localhost")
            files.write(files.certificate, fresh.cert_chain_pems[0].bytes())
            for _ in range(3):
                assert await answered(port, authority)
            errors = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert len(errors) == 1
            assert "keeping the previous ones" in errors[0].getMessage()
            files.write(files.key, fresh.private_key_pem.bytes())
            assert await answered(port, stranger)
            assert not await answered(port, authority)
            # Likewise for a file that is missing for a while.
            files.key.rename(files.key.with_suffix(".away"))
            assert await answered(port, stranger)

    with caplog.at_level(logging.INFO):
        awaited(scenario())


def test_connections_made_during_a_replacement_all_succeed(serving, files, authority):
    """Each handshake uses the previous pair or the new one, never a mixture."""

    async def scenario():
        async with serving(TlsFiles(files.certificate, files.key)) as port:
            calls = [asyncio.create_task(answered(port, authority)) for _ in range(20)]
            for _ in range(5):
                await asyncio.to_thread(files.replace, authority)
                calls += [asyncio.create_task(answered(port, authority)) for _ in range(4)]
            assert all(await asyncio.gather(*calls))

    awaited(scenario())


# ----------------------------------------------------------------------- files


def test_files_replaced_while_they_are_loaded_are_not_used(files, authority, stranger, caplog):
    """`ssl` loads the pair by path, after its contents were read."""
    tls = TlsFiles(files.certificate, files.key)
    before = tls.contents
    files.replace(authority)
    check = TlsFiles._load_context

    def replaced_meanwhile(self: TlsFiles) -> None:
        files.replace(stranger)
        check(self)

    with mock.patch.object(TlsFiles, "_load_context", replaced_meanwhile):
        assert not tls.reload()
    assert tls.contents == before
    assert "being replaced" in caplog.text
    assert tls.reload()
    assert tls.contents[0] == files.certificate.read_bytes()


def test_unchanged_tls_files_are_not_reloaded(files):
    tls = TlsFiles(files.certificate, files.key)
    with mock.patch.object(TlsFiles, "_read", side_effect=AssertionError):
        assert not tls.reload()
        for path in (files.certificate, files.key):
            assert not tls.reload()
            state = path.stat()
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert not tls.reload()


def encrypted(files: Files) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a password"),
        )
    )


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda files: files.key.unlink(), "No such file or directory: .*key.pem"),
        (lambda files: files.certificate.unlink(), "No such file or directory: .*cert.pem"),
        (lambda files: files.client_ca.unlink(), "No such file or directory: .*clients.pem"),
        (
            lambda files: trustme.CA().issue_cert("x").private_key_pem.write_to_path(files.key),
            "cert.pem and .*key.pem are not a PEM certificate and its key",
        ),
        (lambda files: files.certificate.write_text("hello"), "are not a PEM certificate"),
        (lambda files: files.certificate.write_text(""), "are not a PEM certificate"),
        (lambda files: files.key.write_bytes(os.urandom(99)), "are not a PEM certificate"),
        (encrypted, "its key, not encrypted"),
        (lambda files: files.client_ca.write_text(""), "clients.pem holds no certificate in PEM"),
        (lambda files: files.client_ca.write_text("hello"), "clients.pem holds no certificate"),
    ],
)
def test_invalid_tls_files_refuse_to_start(files, authority, damage, problem):
    authority.cert_pem.write_to_path(str(files.client_ca))
    TlsFiles(files.certificate, files.key, files.client_ca)
    damage(files)
    wanted = f"tls-cert, tls-key or tls-client-ca: .*{problem}"
    with pytest.raises(StartError, match=wanted) as refusal:
        TlsFiles(files.certificate, files.key, files.client_ca)
    assert "PRIVATE" not in str(refusal.value)
