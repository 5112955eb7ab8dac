"""Certificates of the gRPC port, read again when they change."""

import logging
import ssl
import threading
from pathlib import Path

from service.errors import StartError

_log = logging.getLogger(__name__)


class TlsFiles:
    """A certificate, its key and, for mTLS, who may have signed a caller's certificate.

    They are looked at with each new connection and read again where one has changed. While
    they do not belong together, as between the replacing of one and of the other, those
    before go on, which an error in the log says once.

    Args:
        certificate: Chain in PEM.
        key: Private key in PEM, not encrypted.
        client_ca: Certificates in PEM that callers' must be signed by; None to ask for none.

    Raises:
        StartError: One cannot be read, or they do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None):
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()
        self._failing = False
        try:
            self._state = self._look()
            self._contents = self._read()
        except (OSError, ValueError) as error:
            raise StartError(f"tls-cert, tls-key or tls-client-ca: {error}") from error

    @property
    def contents(self) -> tuple[bytes, bytes, bytes | None]:
        """Certificate, key and client_ca, as they were last read."""
        return self._contents

    @property
    def asks_for_certificates(self) -> bool:
        """Whether callers have to show certificates of their own."""
        return self._client_ca is not None

    def ssl_context(self) -> ssl.SSLContext:
        """Returns what a new connection is to be encrypted by, for HTTP/2."""
        self.reread()
        return self._context

    def reread(self) -> bool:
        """Looks at the files; returns whether there are new ones to be used."""
        with self._lock:
            try:
                state = self._look()
                if state == self._state and not self._failing:
                    return False
                self._contents = self._read()
            except (OSError, ValueError) as error:
                if not self._failing:
                    _log.error("TLS files: %s; those before go on", error)
                self._failing = True
                return False
            self._state, self._failing = state, False
            _log.info("TLS files: read again")
            return True

    def _look(self) -> list[tuple[int, int, int]]:
        paths = [path for path in (self._certificate, self._key, self._client_ca) if path]
        stats = [path.stat() for path in paths]
        return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        contents = self._bytes()
        context = self._checked()
        # `ssl` reads files alone: what it checked has to be what was read.
        if self._bytes() != contents:
            raise ValueError("they are being replaced")
        self._context = context
        return contents

    def _bytes(self) -> tuple[bytes, bytes, bytes | None]:
        return (
            self._certificate.read_bytes(),
            self._key.read_bytes(),
            None if self._client_ca is None else self._client_ca.read_bytes(),
        )

    def _checked(self) -> ssl.SSLContext:
        """Finds out whether they belong together, which grpc would not say.

        Raises:
            ValueError: They do not.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        # For TLS 1.2, those that HTTP/2 does not forbid (RFC 9113 section 9.2.2).
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        try:
            # A password that is empty: none is asked for at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{self._certificate} and {self._key} are no certificate in PEM and its key, "
                f"not encrypted ({error.reason or error})"
            ) from error
        if self._client_ca is None:
            return context
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self._client_ca)
        except ssl.SSLError as error:
            raise ValueError(
                f"{self._client_ca} holds no certificate in PEM ({error.reason or error})"
            ) from error
        return context
