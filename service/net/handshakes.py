"""Failed TLS handshakes: counted by reason, and logged at a bounded rate."""

import logging
import ssl
import time
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

# Minimum time between two log lines with the same reason.
_LINE_SECONDS: Final = 10.0
#: Reasons as in the metric, each with its explanation in the log.
REASONS: Final = {
    "plaintext": "the client does not speak TLS, which this port wants",
    "no_client_certificate": "the client has presented no certificate (see tls-client-ca)",
    "client_certificate": "the client's certificate is not accepted",
    "refused_by_client": "the client does not accept this server's certificate",
    "protocol": "no TLS version, cipher or protocol in common",
    "timeout": "the client did not complete it in time",
    "closed": "the client has closed the connection",
    "other": "",
}
# OpenSSL's names for three of these reasons: plaintext, protocol, refused_by_client.
_PLAINTEXT: Final = (
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "WRONG_VERSION_NUMBER",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
)
_PROTOCOL: Final = (
    "UNSUPPORTED_PROTOCOL",
    "VERSION_TOO_LOW",
    "NO_SHARED_CIPHER",
    "NO_SUITABLE_SIGNATURE_ALGORITHM",
    "NO_APPLICATION_PROTOCOL",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "WRONG_SSL_VERSION",
)
_ALERTS: Final = (
    "UNKNOWN_CA",
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_UNKNOWN",
    "UNSUPPORTED_CERTIFICATE",
    "ACCESS_DENIED",
    "DECRYPT_ERROR",
)


class FailedHandshakes:
    """Counts and logs failed TLS handshakes.

    Connections that a client closes before the handshake, as health checks over TCP do, are
    logged at debug level, all other failures at info.

    Args:
        count: Called with the reason of each failure.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, count: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._count = count
        self._clock = clock
        # By reason: time of the last log line, and number of failures since.
        self._logged: dict[str, tuple[float, int]] = {}

    def add(self, peer: str, error: Exception) -> None:
        """Counts a failed handshake; logs it unless its reason was logged in the last few seconds.

        Args:
            peer: Address of the client.
            error: What the handshake raised.
        """
        reason = reason_of(error)
        self._count(reason)
        level = logging.DEBUG if reason == "closed" else logging.INFO
        if not _log.isEnabledFor(level):
            return
        now = self._clock()
        last, skipped = self._logged.get(reason, (-_LINE_SECONDS, 0))
        if now - last < _LINE_SECONDS:
            self._logged[reason] = last, skipped + 1
            return
        self._logged[reason] = now, 0
        more = f"; {skipped} more since the last such line" if skipped else ""
        _log.log(level, "TLS handshake of %s failed: %s%s", peer, _text(reason, error), more)


def reason_of(error: Exception) -> str:
    """The reason of a failed handshake, one of REASONS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "client_certificate"
    if isinstance(error, ssl.SSLError):
        name = getattr(error, "reason", None) or ""  # absent in errors made in Python
        if name == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return "no_client_certificate"
        if "CERTIFICATE_VERIFY_FAILED" in name:
            return "client_certificate"
        if name in _PLAINTEXT:
            return "plaintext"
        if name in _PROTOCOL:
            return "protocol"
        if "ALERT" in name and name.endswith(_ALERTS):
            return "refused_by_client"
        return "closed" if isinstance(error, ssl.SSLEOFError) else "other"
    if isinstance(error, ConnectionResetError | BrokenPipeError | EOFError):
        return "closed"
    # asyncio's own error of a handshake that takes too long is a ConnectionAbortedError.
    return "timeout" if isinstance(error, TimeoutError | ConnectionAbortedError) else "other"


def _text(reason: str, error: Exception) -> str:
    if reason == "other":
        return str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{REASONS[reason]}: {error.verify_message}"
    if reason == "refused_by_client" and isinstance(error, ssl.SSLError):
        return f"{REASONS[reason]} ({error.reason})"
    return REASONS[reason]
