"""A caller of gateways that does what HTTP libraries do: keeps connections, repeats what failed."""

import base64
import io
import itertools
import json
import random
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from tests.support.http import npy

Arrays = tuple[NDArray[Any], ...]
Read = Callable[[HTTPResponse], Iterator[Arrays]]

#: Time without a byte after which it gives a request up: most HTTP libraries want one to be set.
TIMEOUT_SECONDS = 10.0
#: Time without an answer after which it no longer repeats a request, as in the Python client.
PATIENCE_SECONDS = 20.0
# Before a request is repeated that got no reply; a reply says itself how long to wait.
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)
# Between two parts of a body of several, so that a fault can hit its middle.
_PART_SECONDS = 0.02
_MODEL = "/v1/models/mnist2d:"
_NPY, _NPZ, _NDJSON = "application/x-npy", "application/x-npz", "application/x-ndjson"


class HttpFailed(Exception):
    """A call that has failed: a reply with an error, or none.

    Args:
        what: What went wrong.
        wait: Seconds after which it may be repeated; None if that is in vain.
    """

    def __init__(self, what: str, wait: float | None):
        super().__init__(what)
        self.wait = wait


class HttpClient:
    """Calls the gateways of several servers, as if they were the addresses of one name.

    It has the methods of `latentserve.client.Client` that `answers` calls. A request goes over the
    connection of the last one, unless the server has closed it or said that it will; a new
    connection goes to the next address that takes it. That is no retry: nothing has been sent.

    Args:
        addresses: Addresses of the gateways, host:port.
        retries: Whether a request is repeated, on the next address, that got no whole reply, or
            429 or 503: after their Retry-After.
    """

    def __init__(self, addresses: Sequence[str], *, retries: bool):
        self._addresses = itertools.cycle(addresses)
        for _ in range(random.randrange(len(addresses))):
            next(self._addresses)
        self._count = len(addresses)
        self._retries = retries
        # The name is that of the Host header alone.
        self._connection = HTTPConnection("localhost", timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> "HttpClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    # The calls.

    def encode(self, images: NDArray[Any], seed: int | None = None) -> SimpleNamespace:
        """Posteriors of images; with a seed, a draw of each."""
        query = {} if seed is None else {"draw": "true", "seed": seed}
        return self._npz("encode", query, npy(images))

    def decode(self, latents: NDArray[np.float32]) -> NDArray[Any]:
        """Images of latents."""
        return self._npy("decode", {}, npy(latents))

    def sample(self, count: int, *, seed: int) -> NDArray[Any]:
        """Images drawn from the prior."""
        return self._npy("sample", {"count": count, "seed": seed})

    def sample_with_latents(self, count: int, *, seed: int, dtype: str) -> SimpleNamespace:
        """Images drawn from the prior, and their latents."""
        query = {"count": count, "seed": seed, "format": dtype, "return_latents": "true"}
        return self._npz("sample", query)

    def reconstruct(self, images: NDArray[Any]) -> NDArray[Any]:
        """Images, encoded and decoded again."""
        return self._npy("reconstruct", {"format": "float32"}, npy(images))

    def score(self, images: NDArray[Any], *, draws: int, seed: int) -> SimpleNamespace:
        """Scores of images."""
        return self._npz("score", {"draws": draws, "seed": seed}, npy(images))

    def sample_stream(self, count: int, *, seed: int, chunk_rows: int) -> Iterator[SimpleNamespace]:
        """Images and latents in chunks: lines of JSON."""
        query = {"count": count, "seed": seed, "chunk_rows": chunk_rows, "return_latents": "true"}
        for images, latents in self._lines("sample_stream", query, (), ("images", "latents")):
            yield SimpleNamespace(images=images, latents=latents)

    def encode_stream(
        self, batches: Iterable[NDArray[Any]], *, seed: int
    ) -> Iterator[SimpleNamespace]:
        """Posteriors of batches of images, which go as an npy file, in lines of JSON."""
        parts = _parts(batches)
        query = {"seed": seed, "draw": "true", "chunk_rows": parts.chunk_rows}
        names = ("mean", "log_var", "z")
        for arrays in self._lines("encode_stream", query, parts.content, names):
            yield SimpleNamespace(**dict(zip(names, arrays, strict=True)))

    def decode_stream(
        self, batches: Iterable[NDArray[np.float32]], *, dtype: str
    ) -> Iterator[NDArray[Any]]:
        """Images of batches of latents, as an npy file that is read in chunks."""
        parts = _parts(batches)

        def read(reply: HTTPResponse) -> Iterator[Arrays]:
            np.lib.format.read_magic(reply)
            shape, _, kind = np.lib.format.read_array_header_1_0(reply)
            row = kind.itemsize * int(np.prod(shape[1:]))
            for _ in range(shape[0] // parts.chunk_rows):
                content = _exactly(reply, parts.chunk_rows * row)
                yield (np.frombuffer(content, kind).reshape(-1, *shape[1:]),)
            # The end tells that nothing is missing.
            _exactly(reply, 0)

        query = {"format": dtype, "chunk_rows": parts.chunk_rows}
        for (images,) in self._chunks("decode_stream", query, parts.content, _NPY, read):
            yield images

    # Requests and replies.

    def _npy(self, operation: str, query: dict[str, Any], body: bytes = b"") -> NDArray[Any]:
        def read(reply: HTTPResponse) -> Iterator[Arrays]:
            yield (np.load(io.BytesIO(reply.read())),)

        ((array,),) = self._chunks(operation, query, (body,), _NPY, read)
        return array

    def _npz(self, operation: str, query: dict[str, Any], body: bytes = b"") -> SimpleNamespace:
        found: dict[str, NDArray[Any]] = {}

        def read(reply: HTTPResponse) -> Iterator[Arrays]:
            found.update(np.load(io.BytesIO(reply.read())))
            yield tuple(found.values())

        list(self._chunks(operation, query, (body,), _NPZ, read))
        return SimpleNamespace(**found)

    def _lines(
        self, operation: str, query: dict[str, Any], body: Sequence[bytes], names: Sequence[str]
    ) -> Iterator[Arrays]:
        def read(reply: HTTPResponse) -> Iterator[Arrays]:
            for line in _lines_of(reply):
                told = json.loads(line)
                if "error" in told:
                    raise _refused(told["error"]["status"], told["error"]["detail"], "1")
                yield tuple(_array(told[_camel(name)]) for name in names)

        query = {**query, "tensors": "base64"}
        return self._chunks(operation, query, body, _NDJSON, read)

    def _chunks(
        self,
        operation: str,
        query: dict[str, Any],
        body: Sequence[bytes],
        accept: str,
        read: Read,
    ) -> Iterator[Arrays]:
        """The chunks of a reply; a request that is repeated goes on after those it had before.

        Raises:
            HttpFailed: The call has failed, and is not repeated.
        """
        path = f"{_MODEL}{operation}?{urlencode(query)}"
        pauses = itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1]))
        done, last = 0, time.monotonic()
        while True:
            try:
                for chunk in itertools.islice(self._once(path, body, accept, read), done, None):
                    done, last = done + 1, time.monotonic()
                    yield chunk
                return
            except (OSError, HTTPException) as error:
                failed = HttpFailed(f"{operation}: {error!r}", next(pauses))
            except HttpFailed as error:
                failed = error
            self._connection.close()
            late = time.monotonic() + (failed.wait or 0) > last + PATIENCE_SECONDS
            if not self._retries or failed.wait is None or late:
                raise failed
            time.sleep(failed.wait)

    def _once(self, path: str, body: Sequence[bytes], accept: str, read: Read) -> Iterator[Arrays]:
        self._connect()
        headers = {"accept": accept, "content-type": _NPY}
        if len(body) > 1:
            self._connection.request("POST", path, _paced(body), headers)
        else:
            self._connection.request("POST", path, b"".join(body), headers)
        with self._connection.getresponse() as reply:
            if reply.status != 200:
                detail = reply.read().decode()
                raise _refused(reply.status, detail, reply.getheader("retry-after"))
            yield from read(reply)

    def _connect(self) -> None:
        """Connects to the next address that takes it, unless there is a connection already."""
        sock = self._connection.sock
        if sock is not None and not _is_dropped(sock):
            return
        self._connection.close()
        refused: OSError | None = None
        for address in itertools.islice(self._addresses, self._count):
            host, port = address.split(":")
            try:
                sock = socket.create_connection((host, int(port)), TIMEOUT_SECONDS)
            except OSError as error:
                refused = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection.sock = sock
            return
        assert refused is not None
        raise refused


def _is_dropped(sock: socket.socket) -> bool:
    """Whether the server has closed a connection between two requests."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _refused(status: int, detail: str, retry_after: str | None) -> HttpFailed:
    wait = float(retry_after) if status in (429, 503) and retry_after else None
    return HttpFailed(f"{status}: {detail[:300]}", wait)


def _paced(parts: Sequence[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield part
        time.sleep(_PART_SECONDS)


def _parts(batches: Iterable[NDArray[Any]]) -> SimpleNamespace:
    """An npy file of all batches in about as many parts, and the rows of each."""
    listed = list(batches)
    whole = npy(np.concatenate(listed))
    size = -(-len(whole) // len(listed))
    content = [whole[at : at + size] for at in range(0, len(whole), size)]
    return SimpleNamespace(content=content, chunk_rows=len(listed[0]))


def _lines_of(reply: HTTPResponse) -> Iterator[bytes]:
    # Not by `readline`, to which a reply that breaks off between two chunks seems whole.
    held = b""
    while part := reply.read1():
        *lines, held = (held + part).split(b"\n")
        yield from lines
    if held:
        raise HTTPException("a line without its end")


def _exactly(reply: HTTPResponse, size: int) -> bytes:
    """Reads that number of bytes; if it is 0, checks that the reply ends here."""
    content = reply.read(size) if size else reply.read()
    if len(content) != size:
        raise HTTPException(f"{len(content)} bytes, wanted {size}")
    return content


def _array(tensor: dict[str, Any]) -> NDArray[Any]:
    """An array of protobuf's JSON: of an image's tensor, or a tensor."""
    tensor = tensor.get("tensor", tensor)
    dtype = {"DATA_TYPE_FLOAT32": "<f4", "DATA_TYPE_UINT8": "u1"}[tensor["dtype"]]
    content = base64.b64decode(tensor["data"])
    return np.frombuffer(content, dtype).reshape([int(size) for size in tensor["shape"]])


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))
