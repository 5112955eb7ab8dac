"""Replies of a server of 0.1.0, in the messages of that version, computed with NumPy.

Imported by `old_server.py`, which makes sure that `latentserve` is of that version.
"""

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from PIL import Image

from latentserve.v1 import admin_service_pb2 as admin
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

MAX_ROWS = 16
SHAPE = (1, 8, 8)
#: Rows that the busy server admits at a time, and seconds that it holds them: longer than the
#: deadline after which a test gives up.
ROOM, SECONDS = 4, 0.5

DTYPES = {
    tensor_pb2.DATA_TYPE_FLOAT32: "<f4",
    tensor_pb2.DATA_TYPE_FLOAT16: "<f2",
    tensor_pb2.DATA_TYPE_UINT8: "u1",
}


class Refused(Exception):
    """An error for the caller: status, reason, field violation, retry delay."""

    def __init__(
        self, code: Any, reason: str, message: str, field: str = "", pushback_ms: int | None = None
    ):
        super().__init__(f"{field}: {message}" if field else message)
        self.code, self.reason, self.pushback_ms = code, reason, pushback_ms
        self.violation = (field, message) if field else None


def invalid(field: str, got: object, wanted: str) -> Refused:
    code = grpc.StatusCode.INVALID_ARGUMENT
    return Refused(code, "INVALID_ARGUMENT", f"got {got}, wanted {wanted}", field)


def not_for_this_model(message: str) -> Refused:
    return Refused(grpc.StatusCode.FAILED_PRECONDITION, "NOT_FOR_THIS_MODEL", message)


class Model:
    """A linear autoencoder. A row of a result depends on that row of the input alone."""

    def __init__(self, name: str, dim: int, posterior: str, prior: str, labels: tuple[str, ...]):
        self.name, self.dim, self.labels = name, dim, labels
        self.is_delta, self.posterior, self.prior = posterior == "delta", posterior, prior
        rng = np.random.default_rng(dim)
        self._into = rng.standard_normal((np.prod(SHAPE), dim)) / 8
        self._out_of = rng.standard_normal((dim, np.prod(SHAPE)))
        self.identity = pb.ModelIdentity(name=name, version=1)

    def encode(self, images: Any) -> Any:
        return np.stack([row.ravel() @ self._into for row in images]).astype(np.float32)

    def log_var(self, mean: Any) -> Any:
        return (0.1 * mean - 1).astype(np.float32)

    def logits(self, z: Any) -> Any:
        return np.stack([row @ self._out_of for row in z])

    def decode(self, z: Any) -> Any:
        if self.name == "fragile" and np.max(z) > 100:
            message = "internal error; its id in the log is 0badcafe"
            raise Refused(grpc.StatusCode.INTERNAL, "INTERNAL", message)
        return (1 / (1 + np.exp(-self.logits(z)))).reshape(-1, *SHAPE).astype(np.float32)

    def draw(self, images: Any, seed: int, offset: int) -> Any:
        mean = self.encode(images)
        z = mean + np.exp(self.log_var(mean) / 2) * noise(seed, offset, len(mean), self.dim)
        return z.astype(np.float32)

    def info(self) -> pb.ModelInfo:
        info = pb.ModelInfo(
            name=self.name, version=1, latent_dim=self.dim, posterior=self.posterior,
            image_shape=pb.ImageShape(channels=SHAPE[0], height=SHAPE[1], width=SHAPE[2]),
            prior=self.prior, likelihood="bernoulli", labels=self.labels, max_rows=MAX_ROWS,
            metrics={"elbo": 1.5}, dataset="random", noise="philox4x64-10/as241/1",
            precision="fp32", prior_mean=[0.0] * self.dim, prior_std=[1.0] * self.dim,
            has_percentiles=not self.is_delta,
        )  # fmt: skip
        info.created_at.FromSeconds(1_700_000_000)
        for name in ("encoder", "decoder"):
            graph = info.graphs.add()
            graph.name, graph.sha256, graph.size_bytes = name, "0" * 64, 1
            graph.opset, graph.device = 18, "cpu"
        return info


def noise(seed: int, offset: int, rows: int, dim: int) -> Any:
    return np.stack(
        [np.random.default_rng([seed, offset + row]).standard_normal(dim) for row in range(rows)]
    )


# -------------------------------------------------------------------- arrays on the wire


def array(tensor: tensor_pb2.Tensor) -> Any:
    return np.frombuffer(tensor.data, DTYPES[tensor.dtype]).reshape(tensor.shape)


def tensor(values: Any) -> tensor_pb2.Tensor:
    wire = {"float32": tensor_pb2.DATA_TYPE_FLOAT32, "uint8": tensor_pb2.DATA_TYPE_UINT8}
    values = np.ascontiguousarray(values)
    return tensor_pb2.Tensor(
        dtype=wire[str(values.dtype)], shape=values.shape, data=values.tobytes()
    )


def pixels(images: tensor_pb2.Images) -> Any:
    """Images of a request, float [N, C, H, W] in [0, 1]."""
    if images.WhichOneof("source") == "encoded":
        read = []
        for number, file in enumerate(images.encoded.files):
            try:
                with Image.open(io.BytesIO(file)) as picture:
                    read.append(np.asarray(picture.convert("L"))[None])
            except OSError:
                field = f"images.encoded.files[{number}]"
                raise invalid(field, f"{len(file)} bytes", "a PNG or JPEG file") from None
        return np.stack(read) / 255
    values = array(images.tensor)
    if np.prod(values.shape[1:]) != np.prod(SHAPE):
        raise invalid("images.tensor.shape", list(values.shape), f"[N, {', '.join('CHW')}]")
    scale = 255 if values.dtype == np.uint8 else 1
    return checked(values).reshape(-1, *SHAPE) / scale


def checked(rows: Any) -> Any:
    if not 1 <= len(rows) <= MAX_ROWS:
        raise invalid("rows", len(rows), f"1 to {MAX_ROWS}")
    return rows


def pictures(images: Any, wanted: int) -> tensor_pb2.Images:
    if wanted in (pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_FLOAT32):
        return tensor_pb2.Images(tensor=tensor(images))
    rounded = np.rint(255 * images).astype(np.uint8)
    if wanted == pb.IMAGE_FORMAT_UINT8:
        return tensor_pb2.Images(tensor=tensor(rounded))
    files = []
    for image in rounded:
        Image.fromarray(image[0]).save(buffer := io.BytesIO(), "PNG")
        files.append(buffer.getvalue())
    return tensor_pb2.Images(encoded=tensor_pb2.EncodedImages(files=files))


# ----------------------------------------------------------------------------- the calls


class Answers:
    """The RPCs, by their names in snake case.

    Args:
        busy: Whether Decode holds its rows for `SECONDS` and has room for `ROOM` of them.
    """

    def __init__(self, busy: bool):
        gmm = Model("gmm", 3, "gaussian", "gmm", ("class 0", "class 1", "class 2"))
        fragile = Model("fragile", 3, "gaussian", "standard", ())
        delta = Model("delta", 2, "delta", "none", ())
        self.models = {model.name: model for model in (delta, fragile, gmm)}
        self._lock = threading.Lock()
        self._busy, self._rows = busy, 0

    def find(self, selector: pb.ModelSelector) -> Model:
        model = self.models.get(selector.name or "gmm")
        if model is None or selector.version not in (0, 1):
            message = f"no model {selector.name!r}, version {selector.version}"
            raise Refused(grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", message)
        return model

    def get_server_info(self, _request: Any) -> Any:
        limits = pb.Limits(
            max_rows=MAX_ROWS, max_message_bytes=4_000_000, max_queue_rows=1000,
            max_queue_bytes=10**9, max_score_draws=100,
        )  # fmt: skip
        return pb.GetServerInfoResponse(
            version="0.1.0", onnxruntime_version="1.32.0", limits=limits, default_model="gmm",
            models=self.list_models(None).models, device="auto",
        )  # fmt: skip

    def list_models(self, _request: Any) -> Any:
        return pb.ListModelsResponse(models=[model.info() for model in self.models.values()])

    def get_model(self, request: Any) -> Any:
        return pb.GetModelResponse(model=self.find(request.model).info())

    def encode(self, request: Any) -> Any:
        model, images = self.find(request.model), pixels(request.images)
        mean = model.encode(images)
        reply = pb.EncodeResponse(mean=tensor(mean), model=model.identity)
        if not model.is_delta:
            reply.log_var.CopyFrom(tensor(model.log_var(mean)))
        if self.draws(request, model):
            reply.z.CopyFrom(tensor(model.draw(images, request.seed, request.offset)))
            reply.seed = request.seed
        return reply

    def draws(self, request: Any, model: Model) -> bool:
        if request.draw and model.is_delta:
            raise not_for_this_model("draw: wanted a posterior to draw from")
        return bool(request.draw)

    def decode(self, request: Any) -> Any:
        model, z = self.find(request.model), checked(array(request.latents))
        with self.room(len(z)):
            images = pictures(model.decode(z), request.format)
        return pb.DecodeResponse(images=images, model=model.identity)

    @contextmanager
    def room(self, rows: int) -> Iterator[None]:
        """Admits rows; the busy server holds `ROOM` of them for `SECONDS`, and refuses more."""
        with self._lock:
            if self._busy and self._rows + rows > ROOM:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                raise Refused(code, "OVERLOADED", "full", pushback_ms=100)
            self._rows += rows
        try:
            yield
            if self._busy:
                time.sleep(SECONDS)
        finally:
            with self._lock:
                self._rows -= rows

    def sample(self, request: Any) -> Any:
        if request.count > MAX_ROWS:
            raise invalid("count", request.count, f"1 to {MAX_ROWS}")
        return self.sampled(request, request.offset, request.count)

    def sampled(self, request: Any, offset: int, count: int) -> Any:
        model = self.find(request.model)
        if model.prior == "none":
            raise not_for_this_model("it has no prior")
        temperature = request.temperature if request.HasField("temperature") else 1.0
        if not 0 <= temperature <= 100:
            raise invalid("temperature", f"{temperature:g}", "0 to 100")
        eps = noise(request.seed, offset, count, model.dim)
        if request.HasField("truncation"):
            eps = eps.clip(-request.truncation, request.truncation)
        z = temperature * eps
        if request.HasField("label") and request.label >= 0:
            z = z + 1 + request.label
        z = z.astype(np.float32)
        reply = pb.SampleResponse(
            images=pictures(model.decode(z), request.format), seed=request.seed, offset=offset,
            model=model.identity,
        )  # fmt: skip
        if request.return_latents:
            reply.latents.CopyFrom(tensor(z))
        return reply

    def reconstruct(self, request: Any) -> Any:
        model, images = self.find(request.model), pixels(request.images)
        reply = pb.ReconstructResponse(model=model.identity)
        z = model.encode(images)
        if self.draws(request, model):
            z = model.draw(images, request.seed, request.offset)
            reply.seed = request.seed
        reply.images.CopyFrom(pictures(model.decode(z), request.format))
        return reply

    def interpolate(self, request: Any) -> Any:
        model = self.find(request.model)
        is_latents = request.WhichOneof("ends") == "latents"
        ends = array(request.latents) if is_latents else model.encode(pixels(request.images))
        first, last = ends
        ts = np.linspace(0, 1, request.steps)[:, None]
        z = ((1 - ts) * first + ts * last).astype(np.float32)
        reply = pb.InterpolateResponse(
            images=pictures(model.decode(z), request.format), model=model.identity
        )
        if request.return_latents:
            reply.latents.CopyFrom(tensor(z))
        return reply

    def traverse(self, request: Any) -> Any:
        model = self.find(request.model)
        middle = np.zeros(model.dim)
        if request.WhichOneof("middle") == "latent":
            (middle,) = array(request.latent)
        elif request.WhichOneof("middle") == "image":
            (middle,) = model.encode(pixels(request.image))
        axes = list(request.axes) or [0, 1]
        reach = request.range if request.HasField("range") else 3.0
        along = np.linspace(-reach, reach, request.steps)
        rows = 1 if len(axes) == 1 else request.steps
        z = np.tile(middle, (rows, request.steps, 1))
        z[:, :, axes[0]] += along
        if rows > 1:
            z[:, :, axes[1]] += along[::-1, None]
        z = z.reshape(-1, model.dim).astype(np.float32)
        reply = pb.TraverseResponse(
            images=pictures(model.decode(z), request.format), rows=rows, columns=request.steps,
            model=model.identity,
        )  # fmt: skip
        if request.return_latents:
            reply.latents.CopyFrom(tensor(z))
        return reply

    def score(self, request: Any) -> Any:
        model, images = self.find(request.model), pixels(request.images)
        if model.is_delta:
            raise not_for_this_model("it has no likelihood")
        mean = model.encode(images)
        flat, logits = images.reshape(len(images), -1), model.logits(mean)
        reconstruction = (np.logaddexp(0, logits) - flat * logits).sum(1).astype(np.float32)
        kl = (mean**2).sum(1).astype(np.float32)
        reply = pb.ScoreResponse(
            reconstruction=tensor(reconstruction), kl=tensor(kl),
            elbo=tensor(reconstruction + kl), model=model.identity,
            percentile=tensor(np.full(len(mean), 50, np.float32)),
        )  # fmt: skip
        if request.draws:
            eps = noise(request.seed, request.offset, len(mean), request.draws)
            reply.nll.CopyFrom(tensor((reconstruction + eps.mean(1)).astype(np.float32)))
            reply.seed = request.seed
        return reply

    def encode_stream(self, requests: Any) -> Iterator[Any]:
        for message in requests:
            yield pb.EncodeStreamResponse(response=self.encode(message.request))

    def decode_stream(self, requests: Any) -> Iterator[Any]:
        for message in requests:
            yield pb.DecodeStreamResponse(response=self.decode(message.request))

    def sample_stream(self, message: Any) -> Iterator[Any]:
        request, rows = message.request, message.chunk_rows or MAX_ROWS
        for start in range(0, request.count, rows):
            count = min(rows, request.count - start)
            reply = self.sampled(request, request.offset + start, count)
            yield pb.SampleStreamResponse(response=reply)

    def reload(self, _request: Any) -> Any:
        return admin.ReloadResponse(serving=[model.identity for model in self.models.values()])
