"""TLS handshakes that fail: counted by reason and logged, and when the certificate expires."""

import asyncio
import datetime
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from service.net.certificates import first_expiry
from service.net.handshakes import REASONS, FailedHandshakes
from service.net.tls import TlsFiles
from service.observe.metrics import HANDSHAKE_REASONS
from tests.support.transports import Handlers, Running, serving
from tests.support.waiting import wait_until_async

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> dict[str, Path]:
    leaf = authority.issue_cert("localhost")
    paths = {name: tmp_path / f"{name}.pem" for name in ("certificate", "key", "client_ca")}
    leaf.cert_chain_pems[0].write_to_path(str(paths["certificate"]))
    leaf.private_key_pem.write_to_path(str(paths["key"]))
    authority.cert_pem.write_to_path(str(paths["client_ca"]))
    return paths


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "service.net.handshakes"):
        yield


def count(running: Running, reason: str) -> float:
    line = f'latentserve_tls_handshake_failures_total{{reason="{reason}"}} '
    (found,) = [text for text in running.page().splitlines() if text.startswith(line)]
    return float(found.removeprefix(line))


async def counted(running: Running, reason: str) -> None:
    await wait_until_async(lambda: count(running, reason))


def context(trusted: trustme.CA | None, own: trustme.LeafCert | None = None) -> ssl.SSLContext:
    result = ssl.create_default_context()
    result.set_alpn_protocols(["h2"])
    if trusted is not None:
        trusted.configure_trust(result)
    if own is not None:
        own.configure_cert(result)
    return result


def connect(target: str, tls: ssl.SSLContext) -> None:
    """Shakes hands, and reads; what goes wrong is for the server to say."""
    host, port = target.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as plain:
        try:
            with tls.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(PREFACE)
                secure.recv(1000)
        except OSError:
            pass


def send(target: str, data: bytes) -> None:
    host, port = target.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 5) as plain:
        plain.sendall(data)
        try:
            while plain.recv(1000):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("data", [PREFACE, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100])
async def test_plain_text_on_a_port_with_tls(files, data, caplog) -> None:
    async with serving(
        "http2", Handlers(), tls=TlsFiles(files["certificate"], files["key"])
    ) as run:
        await asyncio.to_thread(send, run.target, data)
        await counted(run, "plaintext")
    (line,) = caplog.messages
    assert line.startswith("TLS handshake of ipv4:127.0.0.1:")
    assert "does not speak TLS" in line


async def test_a_server_certificate_that_the_client_refuses(files, stranger, caplog) -> None:
    async with serving(
        "http2", Handlers(), tls=TlsFiles(files["certificate"], files["key"])
    ) as run:
        await asyncio.to_thread(connect, run.target, context(stranger))
        await counted(run, "refused_by_client")
    assert "does not accept this server's certificate" in caplog.text


@pytest.mark.parametrize(
    ("which", "reason", "text"),
    [
        ("none", "no_client_certificate", "has presented no certificate"),
        ("strange", "client_certificate", "the client's certificate is not accepted: "),
        ("expired", "client_certificate", "certificate has expired"),
    ],
)
async def test_a_client_certificate_that_the_server_refuses(
    files, authority, stranger, which, reason, text, caplog
) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    own = {
        "none": lambda: None,
        "strange": lambda: stranger.issue_cert("a@example.org"),
        "expired": lambda: authority.issue_cert("a@example.org", not_after=past),
    }[which]()
    async with serving("http2", Handlers(), tls=TlsFiles(**files)) as run:
        await asyncio.to_thread(connect, run.target, context(authority, own))
        await counted(run, reason)
    assert text in caplog.text


async def test_protocols_that_do_not_match_and_clients_that_leave(files, authority, caplog) -> None:
    old = context(authority)
    old.set_alpn_protocols([])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES256-SHA")
    async with serving(
        "http2", Handlers(), tls=TlsFiles(files["certificate"], files["key"])
    ) as run:
        await asyncio.to_thread(connect, run.target, old)
        await counted(run, "protocol")
        assert "in common" in caplog.text
        caplog.clear()
        socket.create_connection(("127.0.0.1", run.transport.port), 5).close()
        await counted(run, "closed")
        assert not caplog.messages, "health checks over TCP would fill the log"
        assert all(count(run, reason) >= 0 for reason in REASONS)


def test_a_line_for_each_reason_at_most_every_ten_seconds(caplog) -> None:
    now, counts = [0.0], []
    failed = FailedHandshakes(counts.append, lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        failed.add("ipv4:10.0.0.1:1", TimeoutError())
    failed.add("ipv4:10.0.0.1:1", ssl.SSLError(1, "[SSL: SOMETHING] something"))
    assert counts == ["timeout"] * 25 + ["other"]
    lines = [message for message in caplog.messages if "in time" in message]
    assert len(lines) == 3
    assert "9 more since" in lines[1]
    assert len(caplog.messages) == 4


def test_the_reasons_are_those_of_the_metric() -> None:
    assert tuple(REASONS) == HANDSHAKE_REASONS


def test_the_first_expiry_of_a_chain_is_read_as_cryptography_reads_it(authority) -> None:
    ends = [datetime.datetime(year, 5, 4, 3, 2, 1, tzinfo=datetime.UTC) for year in (2031, 2063)]
    pems = [
        authority.issue_cert("localhost", not_after=end).cert_chain_pems[0].bytes() for end in ends
    ]
    for pem in (*pems, authority.cert_pem.bytes()):
        wanted = x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
        assert first_expiry(pem) == wanted
    assert first_expiry(b"a comment\n" + pems[1] + pems[0]) == ends[0].timestamp()
    broken = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    assert first_expiry(broken) is None
    assert first_expiry(broken + pems[0]) == ends[0].timestamp()


async def test_the_expiry_of_the_certificate_is_a_metric_and_follows_a_reload(
    files, authority
) -> None:
    tls = TlsFiles(files["certificate"], files["key"])
    async with serving("http2", Handlers(), tls=tls) as run:
        name = "latentserve_certificate_expiry_seconds "
        (line,) = [text for text in run.page().splitlines() if text.startswith(name)]
        assert float(line.removeprefix(name)) == first_expiry(files["certificate"].read_bytes())
        end = datetime.datetime(2031, 1, 1, tzinfo=datetime.UTC)
        leaf = authority.issue_cert("localhost", not_after=end)
        for name_of, blob in (
            ("certificate", leaf.cert_chain_pems[0]),
            ("key", leaf.private_key_pem),
        ):
            fresh = files[name_of].with_suffix(".new")
            fresh.write_bytes(blob.bytes())
            fresh.replace(files[name_of])
        assert tls.reload()
        assert tls.expires_at == end.timestamp()
