"""TLS certificates of the ports, reloaded when the files change."""

import logging
import math
import ssl
import threading
from pathlib import Path
from typing import Literal

from service.errors import StartError
from service.net.certificates import first_expiry

_log = logging.getLogger(__name__)


class TlsFiles:
    """Certificate, private key and, for mTLS, the CA certificates for verifying clients.

    The files are checked on each new connection and reloaded when one has changed. While they
    are invalid, as when the certificate has been replaced but its key has not, the previous ones
    stay in use, and an error is logged once.

    Args:
        certificate: Certificate chain, PEM.
        key: Private key, PEM, not encrypted.
        client_ca: CA certificates, PEM, by which client certificates are verified; None requests
            no client certificates.
        protocol: What is spoken over TLS, by its name in ALPN: HTTP/2 or HTTP/1.1.

    Raises:
        StartError: A file cannot be read, or certificate and key do not match.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        protocol: Literal["h2", "http/1.1"] = "h2",
    ):
        self._protocol = protocol
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._lock = threading.Lock()
        self._failing = False
        try:
            self._state = self._stat()
            self._contents = self._read()
        except (OSError, ValueError) as error:
            raise StartError(f"tls-cert, tls-key or tls-client-ca: {error}") from error

    @property
    def contents(self) -> tuple[bytes, bytes, bytes | None]:
        """PEM contents of certificate, key and client CA, as last loaded."""
        return self._contents

    @property
    def expires_at(self) -> float:
        """When the first certificate of the chain expires, in seconds since 1970."""
        return self._expires_at

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients have to present a certificate (mTLS)."""
        return self._client_ca is not None

    def ssl_context(self) -> ssl.SSLContext:
        """Reloads changed files; returns the SSL context for a new connection."""
        self.reload()
        return self._context

    def reload(self) -> bool:
        """Loads the files if they have changed; returns whether they have."""
        with self._lock:
            try:
                state = self._stat()
                if state == self._state and not self._failing:
                    return False
                self._contents = self._read()
            except (OSError, ValueError) as error:
                if not self._failing:
                    _log.error("TLS files: %s; keeping the previous ones", error)
                self._failing = True
                return False
            self._state, self._failing = state, False
            _log.info("TLS files: reloaded")
            return True

    def _stat(self) -> list[tuple[int, int, int]]:
        paths = [path for path in (self._certificate, self._key, self._client_ca) if path]
        stats = [path.stat() for path in paths]
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        contents = self._bytes()
        context = self._load_context()
        # `ssl` reads the files itself: make sure that it has read the same contents.
        if self._bytes() != contents:
            raise ValueError("they are being replaced")
        self._context = context
        expires_at = first_expiry(contents[0])
        self._expires_at = math.nan if expires_at is None else expires_at
        return contents

    def _bytes(self) -> tuple[bytes, bytes, bytes | None]:
        return (
            self._certificate.read_bytes(),
            self._key.read_bytes(),
            None if self._client_ca is None else self._client_ca.read_bytes(),
        )

    def _load_context(self) -> ssl.SSLContext:
        """Makes an SSL context; this also validates the files for grpcio, which does not.

        Raises:
            ValueError: A file is invalid, or certificate and key do not match.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([self._protocol])
        # For TLS 1.2, only cipher suites that HTTP/2 allows (RFC 9113 section 9.2.2).
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        try:
            # An empty password, or OpenSSL would prompt for one.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{self._certificate} and {self._key} are not a PEM certificate and its key, "
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
