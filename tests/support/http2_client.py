"""A gRPC client on a socket and the h2 library, which can send what no gRPC library would."""

import base64
import socket
import ssl
import time
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote

import h2.events as events
from google.rpc import status_pb2
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.settings import SettingCodes, Settings

from tests.support.http2_peer import message, request_fields

LATENT = "/latentserve.v1.LatentService/"
_SECONDS = 20.0


@dataclass
class Reply:
    """What has been received on a stream so far."""

    fields: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray, repr=False)
    reset: int | None = None
    ended: bool = False

    @property
    def over(self) -> bool:
        """Whether the server has ended or reset the stream."""
        return self.ended or self.reset is not None

    @property
    def status(self) -> int:
        """Status code of gRPC."""
        return int(self.fields["grpc-status"])

    @property
    def text(self) -> str:
        """The grpc-message, decoded."""
        return unquote(self.fields.get("grpc-message", ""))

    @property
    def details(self) -> status_pb2.Status:
        padded = self.fields["grpc-status-details-bin"] + "=="
        return status_pb2.Status.FromString(base64.b64decode(padded))

    @property
    def messages(self) -> list[bytes]:
        """The messages that are complete, without their prefixes."""
        result, at = [], 0
        while at + 5 <= len(self.body):
            stop = at + 5 + int.from_bytes(self.body[at + 1 : at + 5], "big")
            if stop > len(self.body):
                break
            result.append(bytes(self.body[at + 5 : stop]))
            at = stop
        return result


class RawClient:
    """One HTTP/2 connection to a server.

    Args:
        target: Host and port.
        window: Initial flow-control window of each stream, in bytes.
        grants: Whether received DATA is acknowledged by WINDOW_UPDATE.
        tls: Trusted certificates; None for plain text.
    """

    def __init__(
        self,
        target: str,
        window: int = 2**20,
        *,
        grants: bool = True,
        tls: ssl.SSLContext | None = None,
    ):
        host, port = target.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), _SECONDS)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        configuration = H2Configuration(
            client_side=True,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = H2Connection(configuration)
        # h2 closes the connection on GOAWAY; open streams are to finish (RFC 9113 section 6.8).
        machine, stays_open = self.h2.state_machine, (None, ConnectionState.CLIENT_OPEN)
        machine._transitions = {
            **machine._transitions,
            (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): stays_open,
        }
        values = {SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = Settings(client=True, initial_values=values)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**30)
        self.grants = grants
        self.replies: dict[int, Reply] = {}
        self.goaways: list[int] = []
        self.closed = False
        self.flush()

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def open(self, path: str, *, ends: bool = False, **more: str) -> int:
        """Sends the headers of a call; returns its stream identifier."""
        fields = request_fields(path if path.startswith("/") else LATENT + path, **more)
        return self.open_with(fields, ends=ends)

    def open_with(self, fields: list[tuple[str, str]], *, ends: bool = False) -> int:
        number = int(self.h2.get_next_available_stream_id())
        self.h2.send_headers(number, fields, end_stream=ends)
        self.replies[number] = Reply()
        self.flush()
        return number

    def send(self, number: int, data: bytes, *, ends: bool = False) -> None:
        """Sends DATA as flow control allows."""
        while data and not self.replies[number].over:
            size = min(self.h2.local_flow_control_window(number), 16_384, len(data))
            if size:
                self.h2.send_data(number, data[:size])
                data = data[size:]
                self.flush()
            else:
                self.read()
        if ends and not self.replies[number].over:
            self.h2.end_stream(number)
            self.flush()

    def call(self, path: str, body: bytes, flag: int = 0, **more: str) -> Reply:
        """Makes a call with one message, and waits for its reply."""
        number = self.open(path, **more)
        self.send(number, message(body, flag), ends=True)
        return self.wait(number)

    def wait(self, number: int, seconds: float = _SECONDS) -> Reply:
        """Reads until a stream has ended or was reset."""
        self.wait_for(lambda: self.replies[number].over, seconds)
        return self.replies[number]

    def wait_for(self, done, seconds: float = _SECONDS) -> None:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + seconds
        while not done():
            assert not self.closed, "the server closed the connection"
            assert time.monotonic() < deadline, self.replies
            self.read()

    def read(self, seconds: float = 1.0) -> bool:
        """Reads once; returns False on a timeout."""
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(2**18)
        except TimeoutError:
            return False
        finally:
            self.socket.settimeout(_SECONDS)
        if not data:
            self.closed = True
            return True
        for event in self.h2.receive_data(data):
            self._take(event)
        self.flush()
        return True

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.goaways.append(int(event.error_code or 0))
            return
        reply = self.replies.get(getattr(event, "stream_id", 0) or 0, Reply())
        if isinstance(event, events.ResponseReceived | events.TrailersReceived):
            reply.fields |= dict(event.headers or [])  # type: ignore[arg-type]
        elif isinstance(event, events.DataReceived):
            reply.body += event.data or b""
            if self.grants and event.flow_controlled_length:
                self.h2.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id or 0
                )
        elif isinstance(event, events.StreamReset):
            reply.reset = int(event.error_code or 0)
        elif isinstance(event, events.StreamEnded):
            reply.ended = True
