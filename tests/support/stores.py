"""Real stores on this machine: S3's protocol by moto, SFTP by OpenSSH, HTTP, and local ones."""

import contextlib
import functools
import getpass
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from tests.support.processes import free_port, lasting_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_SECONDS = 30.0


class S3:
    """moto's server in a process of its own, on one port for all its lives.

    Attributes:
        url: A folder in a bucket of it.
        env: Environment variables with which S3's tools find it.
    """

    def __init__(self) -> None:
        self._port = lasting_port()
        self.url = "s3://bucket/models"
        self.env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "hidden-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        self.start()

    def start(self) -> None:
        """Starts it with an empty bucket, also after `stop`."""
        program = "import sys; from moto.server import main; main(sys.argv[1:])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                self.make_bucket("bucket")
                return
            except OSError:
                assert self._process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def make_bucket(self, name: str) -> None:
        """Makes a bucket."""
        self._request("PUT", name)

    def clear(self) -> None:
        """Removes all buckets, and makes the first one again."""
        self._request("POST", "moto-api/reset")
        self.make_bucket("bucket")

    def _request(self, method: str, path: str) -> None:
        url = f"{self.env['AWS_ENDPOINT_URL']}/{path}"
        urllib.request.urlopen(urllib.request.Request(url, b"", method=method), timeout=10).close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Lets it answer nothing for a while, as a host behind a broken network does."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it; what it has is lost."""
        self._process.kill()
        self._process.wait(_SECONDS)


class Sshd:
    """A server of SFTP on a port of 127.0.0.1, which lets this user in by a key.

    Args:
        folder: Folder for its keys, and for the home of its clients.

    Attributes:
        url: A folder below `folder`.
        env: Environment variables with which clients know its host key and have theirs.
    """

    def __init__(self, folder: Path):
        assert SSHD is not None
        home = folder / "home"
        ssh = home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        for key in (folder / "host", ssh / "id_ed25519"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(command, check=True, timeout=30)
        self.port = free_port()
        public = (folder / "host.pub").read_text().split()[:2]
        (ssh / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")
        keys = folder / "authorized_keys"
        shutil.copy(ssh / "id_ed25519.pub", keys)
        self.files = folder / "files"
        self.files.mkdir()
        self.env = {"HOME": str(home)}
        self.url = f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}{self.files}/models"
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = {
            "ListenAddress": "127.0.0.1",
            "Port": self.port,
            "HostKey": folder / "host",
            "AuthorizedKeysFile": keys,
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "PasswordAuthentication": "no",
            "Subsystem": "sftp internal-sftp",
        }
        self._options = [f"-o{name}={value}" for name, value in settings.items()]
        self._log = folder / "sshd.log"
        self.start()

    def start(self) -> None:
        """Starts it, also after `stop`."""
        assert SSHD is not None
        command = [SSHD, "-D", "-e", "-f", os.devnull, *self._options]
        with self._log.open("a") as log:
            # A session of its own, so that `stop` ends its connections as well.
            self._process = subprocess.Popen(command, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _SECONDS
        while f"listening on 127.0.0.1 port {self.port}" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends it and its connections."""
        for pid in _children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait(_SECONDS)
        self._log.write_text("")


def _children(pid: int) -> list[int]:
    """Pids of the descendants of a process."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, todo = [], [pid]
    while todo:
        top = todo.pop()
        below = [child for child, parent in parents.items() if parent == top]
        found += below
        todo += below
    return found


@contextlib.contextmanager
def http_folder(folder: Path) -> Iterator[str]:
    """Serves a folder over HTTP, to read only; yields its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def s3_process() -> Iterator[S3]:
    """A server of S3's protocol, one for a module."""
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_process: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A server of S3's protocol with an empty bucket, which this process's tools find."""
    for name, value in s3_process.env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the port of another server
    s3_process.clear()
    return s3_process


@pytest.fixture(scope="module")
def sshd_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server of SFTP, one for a module."""
    if SSHD is None:
        pytest.skip("there is no sshd (Debian's package openssh-server)")
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def sshd(sshd_process: Sshd, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """A server of SFTP with an empty folder, which this process's tools know."""
    for name, value in sshd_process.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    shutil.rmtree(sshd_process.files)
    sshd_process.files.mkdir()
    return sshd_process
