"""Random requests: none is a fault of the server, and its memory stays where it was."""

import contextlib
import http.client
import json
from urllib.parse import urlencode

import numpy as np
import pytest

from tests.support.conditional import write_conditional
from tests.support.http import Caller, npy, png
from tests.support.processes import Server
from tests.support.tiny import write_tiny

OPERATIONS = (
    "encode", "decode", "sample", "reconstruct", "restyle", "interpolate", "traverse", "score",
    "encode_stream", "decode_stream", "sample_stream",
)  # fmt: skip
MEDIA = (
    "application/json", "application/x-npy", "application/x-ndjson", "image/png", "image/webp",
    "multipart/form-data; boundary=b", "text/plain", "",
)  # fmt: skip
ACCEPT = ("*/*", "application/json", "application/x-npy", "application/x-npz", "image/jpeg")
NAMES = (
    "count", "seed", "offset", "label", "labels", "to", "steps", "draws", "format", "axes", "range",
    "shape", "dtype", "output_type", "do_scaling", "height", "output", "tensors", "zoom", "columns",
    "chunk_rows", "resize", "quality", "return_latents",
)  # fmt: skip
VALUES = ("1", "2", "0", "-1", "x", "1,2", "1e9", "99999999999999999999", "true", "png", "nan", "")


class Requests:
    """Requests that are drawn from a seed: well formed, or changed in a few places."""

    def __init__(self, seed: int):
        self._random = random = np.random.default_rng(seed)
        image = random.integers(0, 256, (4, 4), np.uint8)
        rows, latents = random.random((2, 1, 4, 4), np.float32), random.random((2, 3), np.float32)
        head = b'--b\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'
        images = {
            "application/x-npy": npy(rows),
            "image/png": png(image),
            "multipart/form-data; boundary=b": head + png(image) + b"\r\n--b--\r\n",
            "application/json": json.dumps({"images": rows.tolist()}).encode(),
        }
        listed = json.dumps({"latents": latents.tolist()}).encode()
        ends = {"application/x-npy": npy(latents), "application/json": listed}
        lines = {"application/x-npy": npy(latents), "application/x-ndjson": listed + b"\n" + listed}
        asked = {"": b"", "application/json": b"{}"}
        z = {"name": "z", "shape": [2, 3], "datatype": "FP32", "data": latents.tolist()}
        inferred = {"application/json": json.dumps({"inputs": [z]}).encode()}
        drawn, raw = {"shape": ("1", "3")}, {"tensor/binary": latents[:1].tobytes()}
        # Well-formed requests: operation, query, and bodies by media type.
        self._good = (
            ("encode", {}, images), ("reconstruct", {}, images), ("score", {"draws": "2"}, images),
            ("decode", {}, ends), ("interpolate", {"steps": "3"}, ends),
            ("sample", {"count": "2"}, asked), ("traverse", {"steps": "3"}, asked),
            ("decode_stream", {}, lines), ("sample_stream", {"count": "3"}, asked),
            ("/v2/models/one.decode/infer", {}, inferred),
            ("/v2/repository/index", {}, asked),
            ("/diffusers/one/decode", {**drawn, "output_type": "pt", "dtype": "float32"}, raw),
            ("/diffusers/one/decode", {**drawn, "output_type": "pil", "dtype": "float32"}, raw),
        )  # fmt: skip

    def draw(self) -> tuple[str, str, bytes, dict[str, str]]:
        """Method, path, body and headers of a request."""
        operation, query, bodies = self._of(self._good)
        media = self._of(tuple(bodies))
        method, model, body, accept = "POST", "one", bytearray(bodies[media]), "*/*"
        query = dict(query)
        for _ in range(self._of((0, 1, 1, 2, 4))):
            change = self._of(("method", "model", "operation", "media", "accept", "query", "body"))
            if change == "method":
                method = "GET"
            elif change == "model":
                model = self._of(("styles", "nope"))
            elif change == "operation":
                operation = self._of(OPERATIONS)
            elif change == "media":
                media = self._of(MEDIA)
            elif change == "accept":
                accept = self._of(ACCEPT)
            elif change == "query":
                query[self._of(NAMES)] = self._of(VALUES)
            elif body:
                body[int(self._random.integers(len(body)))] = int(self._random.integers(256))
                del body[self._of((len(body), int(self._random.integers(len(body))))) :]
        path = operation if operation[0] == "/" else f"/v1/models/{model}:{operation}"
        path += f"?{urlencode(query, doseq=True)}"
        return method, path, bytes(body), {"accept": accept, "content-type": media}

    def _of(self, choices):
        return choices[int(self._random.integers(len(choices)))]


@pytest.mark.slow
def test_ten_thousand_random_requests(tmp_path):
    write_tiny(tmp_path / "models" / "one")
    write_conditional(tmp_path / "models" / "styles")
    options = ("--gateway-port", "0", "--http-port", "0")
    with Server(tmp_path / "models", tmp_path / "log", *options) as server:
        caller, requests = Caller(server.wait_until_serving().gateway), Requests(0)
        statuses: dict[int, int] = {}
        before = 0.0
        connection = caller.connect()
        for number in range(10_000):
            if number == 2_000:
                before = server.metric("process_resident_memory_bytes")
            method, path, body, headers = requests.draw()
            try:
                connection.request(method, path, body, headers)
                reply = connection.getresponse()
                with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
                    reply.read()
                statuses[reply.status] = statuses.get(reply.status, 0) + 1
                assert reply.status < 500, (method, path, body, headers)
            except (ConnectionError, http.client.HTTPException):
                connection.close()
                connection = caller.connect()
        connection.close()
        after = server.metric("process_resident_memory_bytes")
        assert server.metric("latentserve_requests_total", code="INTERNAL") == 0
        assert server.metric("latentserve_queue_bytes") == 0
        assert caller.get("/v1/models").status == 200
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert statuses[200] > 2000, statuses
    assert statuses[400] > 1000, statuses
    assert after < before + 32 * 2**20, (before, after)
