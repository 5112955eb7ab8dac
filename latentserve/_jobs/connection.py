"""How the workers of a job connect to a server."""

from dataclasses import dataclass
from pathlib import Path

from latentserve._client.options import token_in
from latentserve._files import is_read_once, reason
from latentserve.client import Client, Retry, Tls


@dataclass(frozen=True)
class Connection:
    """Options of a client that any process can make; it can be pickled.

    Files are named by their paths and read by the process that connects: neither a token nor a key
    is in it. Once it is pickled the paths are absolute, and are those of each worker's host.

    Attributes:
        target: Address of the server, for example `dns:///latentserve:50051`.
        timeout: Deadline of each message, in seconds.
        patience: Time without progress, in seconds, before giving up on a server that is full or
            cannot be reached.
        tls: Whether to connect over TLS; implied by the other TLS options.
        tls_ca: CA certificates (PEM); None for those built into gRPC.
        tls_cert: Client certificate (PEM), for a server that requires one.
        tls_key: Private key (PEM) of the client certificate.
        tls_name: Name to expect in the server's certificate; empty for the target's host.
        token_file: File with the token, read again for each call; None for no token.
    """

    target: str = "localhost:50051"
    timeout: float = 60.0
    patience: float = 600.0
    tls: bool = False
    tls_ca: Path | str | None = None
    tls_cert: Path | str | None = None
    tls_key: Path | str | None = None
    tls_name: str = ""
    token_file: Path | str | None = None

    def client(self) -> Client:
        """Returns a new client; close it, or use it in a `with` statement.

        Raises:
            OSError: A file cannot be read.
            ValueError: The token file has no token, a file can be read only once, or only one of
                certificate and key is given.
        """
        files = self._files()
        for name, path in files.items():
            if path is not None and is_read_once(path):
                raise ValueError(
                    f"{name}: {path}: got a pipe or a device, wanted a regular file, which is read "
                    "again"
                )
        if self.token_file is not None:
            self._token()  # reports an unusable file before the first call
        tls = None
        if self.tls or self.tls_name or self.tls_ca or self.tls_cert or self.tls_key:
            tls = Tls(
                ca=files["tls_ca"],
                certificate=files["tls_cert"],
                key=files["tls_key"],
                server_name=self.tls_name,
            )
        return Client(
            self.target,
            timeout=self.timeout,
            tls=tls,
            token=None if self.token_file is None else self._token,
            retry=Retry(patience_seconds=self.patience),
        )

    def _token(self) -> str:
        assert self.token_file is not None
        try:
            return token_in(Path(self.token_file).read_bytes())
        except OSError as error:
            raise ValueError(f"token_file: {self.token_file}: {reason(error)}") from error
        except ValueError as error:
            raise ValueError(f"token_file: {self.token_file}: {error}") from error

    def _files(self) -> dict[str, Path | None]:
        """The files, by the names of their attributes."""
        names = ("tls_ca", "tls_cert", "tls_key", "token_file")
        given = {name: getattr(self, name) for name in names}
        return {name: None if path is None else Path(path) for name, path in given.items()}

    def __getstate__(self) -> dict[str, object]:
        absolute = {name: path and path.absolute() for name, path in self._files().items()}
        return {**vars(self), **absolute}
