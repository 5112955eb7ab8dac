"""A server of S3's protocol, moto's, on a port of this host."""

from tests.support.processes import lasting_port


class ObjectStorage:
    """A server of S3's protocol, whose objects stay where they are while it is stopped.

    Attributes:
        url: Its endpoint, http://host:port.
        requests: Method and path, with the bucket, of each request since it was last cleared.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self._port = lasting_port()
        self.start()

    def start(self) -> None:
        """Starts it, again on the port that it had before."""
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        host, self._port = self._server.get_host_and_port()
        self.url = f"http://{host}:{self._port}"
        server = self._server._server
        assert server is not None
        application = server.app

        def counted(environment: dict[str, str], respond: object) -> object:
            self.requests.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
            return application(environment, respond)

        server.app = counted

    def stop(self) -> None:
        """Stops it: connections are refused until `start`."""
        self._server.stop()

    def reads(self, bucket: str) -> list[str]:
        """Names of the objects of a bucket that have been read since `requests` was cleared."""
        prefix = f"/{bucket.removeprefix('s3://')}/"
        return [
            path.removeprefix(prefix)
            for method, path in self.requests
            if method == "GET" and path.startswith(prefix) and path != prefix
        ]
