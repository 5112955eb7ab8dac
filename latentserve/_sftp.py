"""Files by SFTP, for stores: fsspec's file system, with host keys that are checked."""

import io
from typing import Any

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem

# A host that does not answer is as good as gone: seconds for the connection, and for each reply.
_CONNECT_SECONDS, _REPLY_SECONDS = 15.0, 60.0
_PREFETCHED = 64


class Sftp(SFTPFileSystem):  # type: ignore[misc]
    """Files by SFTP, on hosts in ~/.ssh/known_hosts alone.

    fsspec's own accepts the key of any host. The user's keys and the agent are tried, as `ssh`
    does; ~/.ssh/config is not read. Not for use by several threads at once.
    """

    def _connect(self) -> None:
        self.client = paramiko.SSHClient()
        self.client.load_system_host_keys()
        self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
        waits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), _CONNECT_SECONDS)
        self.client.connect(self.host, **(waits | self.ssh_kwargs))
        self.ftp = self.client.open_sftp()
        channel = self.ftp.get_channel()
        if channel is not None:
            channel.settimeout(_REPLY_SECONDS)

    def rename_new(self, old: str, new: str) -> None:
        """Renames a file, unless there is one of that name; else OSError.

        `mv` replaces the other one. OpenSSH makes a link here, which is atomic.
        """
        self.ftp.rename(self._strip_protocol(old), self._strip_protocol(new))

    def pipe_file(self, path: str, value: bytes, **_: object) -> None:
        """Writes a file, without a wait for the answer to each of its parts."""
        self.ftp.putfo(io.BytesIO(value), self._strip_protocol(path))

    def get_file(self, rpath: str, lpath: str, callback: Any = None, **_: object) -> None:
        """Fetches a file."""
        done = None if callback is None else lambda size, _total: callback.absolute_update(size)
        # More requests at once than OpenSSH takes may hang.
        self.ftp.get(
            self._strip_protocol(rpath),
            lpath,
            callback=done,
            max_concurrent_prefetch_requests=_PREFETCHED,
        )

    def revive(self) -> None:
        """Connects again if the connection has ended since."""
        transport = self.client.get_transport()
        if transport is None or not transport.is_active():
            self.client.close()
            self._connect()


def connected(url: str) -> tuple[Sftp, str]:
    """Connects to the host of a URL.

    Returns:
        A file system of its own, which no other caller gets, and the path on it.
    """
    options: dict[str, Any] = Sftp._get_kwargs_from_urls(url)
    return Sftp(**options, skip_instance_cache=True), Sftp._strip_protocol(url)
