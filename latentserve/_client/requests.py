"""Plans of the unary calls, and the requests and replies that they share with the streams."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec
from latentserve._client.codec import ArrayFormat, Format, Images, Method, Point
from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.values import (
    Interpolation,
    ModelInfo,
    Posterior,
    Reloaded,
    Samples,
    Scores,
    ServerInfo,
    Traversal,
)
from latentserve.errors import InvalidArgument, Violation
from latentserve.v1 import admin_service_pb2 as admin
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

# Room in a message for everything that is not rows.
_OVERHEAD_BYTES = 1024


@dataclass
class Limits:
    """What is known so far of how much fits into a message."""

    rows: dict[tuple[str, int], int] = field(default_factory=dict)
    message_bytes: int = 0


class Where(TypedDict, total=False):
    """Which model is asked.

    Attributes:
        model: Its name; empty, the default, for the server's default model.
        version: Its version; 0, the default, for the highest that is served.
    """

    model: str
    version: int


class Drawing(Where, total=False):
    """How images go in and whether something is drawn from their posteriors.

    Attributes:
        draw: Draw from each posterior; a given seed implies it.
        seed: 0 to 2^64 - 1; a fresh one by default, told in the result.
        offset: Index of the first row in the seed's sequence; 0 by default.
        resize: Make image files of another size or colour mode fit; they are refused by
            default.
    """

    draw: bool
    seed: int | None
    offset: int
    resize: bool


class Sampling(Where, total=False):
    """What is drawn from the prior.

    Image i depends on (seed, offset + i) alone: a job may be cut, spread over servers
    and put together again.

    Attributes:
        seed: 0 to 2^64 - 1; a fresh one by default, told in the result.
        offset: Index of the first image in the seed's sequence; 0 by default.
        label: Index of the class wanted, in `ModelInfo.labels`; None or -1 for any.
        temperature: Factor on the noise's standard deviation, 1 by default; below 1 the
            images are more typical and less varied.
        truncation: Bound on the noise in standard deviations; none by default.
    """

    seed: int | None
    offset: int
    label: int | None
    temperature: float | None
    truncation: float | None


def info() -> Plan[ServerInfo]:
    """Asks what the server is."""
    return codec.read_server_info((yield UnaryCall("GetServerInfo", pb.GetServerInfoRequest())))


def models() -> Plan[tuple[ModelInfo, ...]]:
    """Asks for every model."""
    reply = yield UnaryCall("ListModels", pb.ListModelsRequest())
    return tuple(codec.read_model_info(each) for each in reply.models)


def model_info(limits: Limits, model: str = "", version: int = 0) -> Plan[ModelInfo]:
    """Asks for one model, and remembers how many rows it takes."""
    request = pb.GetModelRequest(model=codec.selector(model, version))
    described = codec.read_model_info((yield UnaryCall("GetModel", request)).model)
    limits.rows[model, version] = described.max_rows
    return described


def reload() -> Plan[Reloaded]:
    """Asks for a reload."""
    return codec.read_reloaded((yield UnaryCall("Reload", admin.ReloadRequest())))


def encode(
    limits: Limits,
    images: Images,
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Posterior]:
    """Encodes images, in as many pieces as it takes."""
    source = codec.image_source(images, resize=resize)
    seed = drawn_seed(draw, seed, offset, len(source))
    chosen = codec.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        return UnaryCall("Encode", encode_request(source, rows, chosen, seed, offset))

    replies = yield from _image_pieces(limits, source, call, model, version)
    return posterior_of(replies, seed)


def decode(
    limits: Limits, z: ArrayLike, *, dtype: Format = "float32", model: str = "", version: int = 0
) -> Plan[NDArray[Any] | list[bytes]]:
    """Decodes latents, in as many pieces as it takes."""
    array = codec.latent_array(z)
    wanted = codec.format_message(dtype)
    chosen = codec.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        return UnaryCall("Decode", decode_request(array[rows], chosen, wanted))

    replies = yield from _row_pieces(limits, len(array), call, model, version)
    return codec.joined_images([reply.images for reply in replies], dtype)


def sample(
    limits: Limits,
    n: int,
    *,
    latents: bool,
    seed: int | None = None,
    offset: int = 0,
    label: int | None = None,
    temperature: float | None = None,
    truncation: float | None = None,
    dtype: Format = "float32",
    model: str = "",
    version: int = 0,
) -> Plan[tuple[NDArray[Any] | list[bytes], NDArray[Any] | None, int]]:
    """Draws new images; returns them, their latents where wanted, and the seed."""
    seed = sample_seed(n, seed, offset)
    request = pb.SampleRequest(
        model=codec.selector(model, version),
        seed=seed,
        label=label,
        temperature=temperature,
        truncation=truncation,
        format=codec.format_message(dtype),
        return_latents=latents,
    )

    def call(rows: slice) -> UnaryCall:
        piece = pb.SampleRequest()
        piece.CopyFrom(request)
        piece.count, piece.offset = rows.stop - rows.start, offset + rows.start
        return UnaryCall("Sample", piece)

    replies = yield from _row_pieces(limits, n, call, model, version)
    images = codec.joined_images([reply.images for reply in replies], dtype)
    z = codec.joined([reply.latents for reply in replies]) if latents else None
    return images, z, seed


def reconstruct(
    limits: Limits,
    images: Images,
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: bool = False,
    dtype: Format = "float32",
    model: str = "",
    version: int = 0,
) -> Plan[NDArray[Any] | list[bytes]]:
    """Encodes and decodes images, in as many pieces as it takes."""
    source = codec.image_source(images, resize=resize)
    seed = drawn_seed(draw, seed, offset, len(source))
    wanted = codec.format_message(dtype)
    chosen = codec.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        request = pb.ReconstructRequest(
            model=chosen,
            draw=seed is not None,
            seed=seed,
            offset=offset + rows.start,
            format=wanted,
        )
        source.fill(request.images, rows)
        return UnaryCall("Reconstruct", request)

    replies = yield from _image_pieces(limits, source, call, model, version)
    return codec.joined_images([reply.images for reply in replies], dtype)


def interpolate(
    start: Point,
    stop: Point,
    steps: int = 10,
    *,
    method: Method = "linear",
    dtype: ArrayFormat = "float32",
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Interpolation]:
    """Decodes a path from one image or latent to another."""
    request = pb.InterpolateRequest(
        model=codec.selector(model, version),
        steps=steps,
        method=codec.method_message(method),
        format=array_format(dtype),
        return_latents=True,
    )
    first = codec.point_message(start, "start", resize=resize)
    second = codec.point_message(stop, "stop", resize=resize)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.shape != second.shape:
            raise ValueError(f"stop: got shape {list(second.shape)}, wanted {list(first.shape)}")
        request.latents.CopyFrom(codec.to_tensor(codec.latent_array(np.stack([first, second]))))
    elif isinstance(first, tensor_pb2.Images) and isinstance(second, tensor_pb2.Images):
        request.images.CopyFrom(_both(first, second))
    else:
        raise ValueError("stop: got a latent and an image, wanted two latents or two images")
    reply = yield UnaryCall("Interpolate", request)
    return Interpolation(
        images=codec.joined([reply.images.tensor]), latents=codec.joined([reply.latents])
    )


def traverse(
    axes: int | Iterable[int] | None = None,
    *,
    steps: int = 11,
    range: float = 3.0,  # noqa: A002 - the field's own word
    middle: Point | None = None,
    dtype: ArrayFormat = "float32",
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Traversal]:
    """Decodes a line or a grid along latent axes."""
    request = pb.TraverseRequest(
        model=codec.selector(model, version),
        axes=[axes] if isinstance(axes, int) else axes,
        steps=steps,
        range=range,
        format=array_format(dtype),
        return_latents=True,
    )
    if middle is not None:
        point = codec.point_message(middle, "middle", resize=resize)
        if isinstance(point, np.ndarray):
            request.latent.CopyFrom(codec.to_tensor(codec.latent_array(point[None])))
        else:
            request.image.CopyFrom(point)
    reply = yield UnaryCall("Traverse", request)
    grid = reply.rows, reply.columns
    images = codec.joined([reply.images.tensor])
    latents = codec.joined([reply.latents])
    return Traversal(
        images=images.reshape(*grid, *images.shape[1:]),
        latents=latents.reshape(*grid, *latents.shape[1:]),
    )


def score(
    limits: Limits,
    images: Images,
    *,
    draws: int = 0,
    seed: int | None = None,
    offset: int = 0,
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Scores]:
    """Scores images, in as many pieces as it takes."""
    source = codec.image_source(images, resize=resize)
    seed = drawn_seed(bool(draws), seed if draws else None, offset, len(source))
    chosen = codec.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        request = pb.ScoreRequest(model=chosen, draws=draws, seed=seed, offset=offset + rows.start)
        source.fill(request.images, rows)
        return UnaryCall("Score", request)

    replies = yield from _image_pieces(limits, source, call, model, version)
    return Scores(
        reconstruction=codec.joined([reply.reconstruction for reply in replies]),
        kl=codec.joined([reply.kl for reply in replies]),
        elbo=codec.joined([reply.elbo for reply in replies]),
        nll=codec.joined_where_sent(replies, "nll"),
        percentile=codec.joined_where_sent(replies, "percentile"),
        seed=seed,
    )


def limits_of(limits: Limits, model: str, version: int, *, files: bool) -> Plan[tuple[int, int]]:
    """The most rows and bytes of a message, asked for where they are not known yet.

    Bytes matter to files alone; arrays are cut by their rows.
    """
    rows = limits.rows.get((model, version))
    if rows is None:
        rows = (yield from model_info(limits, model, version)).max_rows
    if files and not limits.message_bytes:
        limits.message_bytes = (yield from info()).max_message_bytes
    return rows, max(1, limits.message_bytes - _OVERHEAD_BYTES)


def encode_request(
    source: codec.ImageSource,
    rows: slice,
    model: pb.ModelSelector,
    seed: int | None,
    offset: int,
) -> pb.EncodeRequest:
    """Asks for posteriors and, where a seed is given, for a draw from each."""
    request = pb.EncodeRequest(
        model=model, draw=seed is not None, seed=seed, offset=offset + rows.start
    )
    source.fill(request.images, rows)
    return request


def decode_request(
    z: NDArray[Any], model: pb.ModelSelector, image_format: pb.ImageFormat
) -> pb.DecodeRequest:
    """Asks for the images of latents."""
    request = pb.DecodeRequest(model=model, format=image_format)
    codec.fill_tensor(request.latents, z)
    return request


def posterior_of(replies: list[Any], seed: int | None) -> Posterior:
    """Puts the posteriors of replies together."""
    return Posterior(
        mean=codec.joined([reply.mean for reply in replies]),
        log_var=codec.joined_where_sent(replies, "log_var"),
        z=None if seed is None else codec.joined([reply.z for reply in replies]),
        seed=seed,
    )


def samples_with(
    images: NDArray[Any] | list[bytes], latents: NDArray[Any] | None, seed: int, offset: int
) -> Samples:
    """Makes a value of what `sample` returns, with its latents."""
    assert not isinstance(images, list)  # as the formats of arrays are
    assert latents is not None
    return Samples(images=images, latents=latents, seed=seed, offset=offset)


def stream_request(
    n: int,
    dtype: ArrayFormat,
    *,
    seed: int | None = None,
    offset: int = 0,
    label: int | None = None,
    temperature: float | None = None,
    truncation: float | None = None,
    model: str = "",
    version: int = 0,
) -> pb.SampleRequest:
    """Asks for a stream of samples with their latents, under a seed that is settled."""
    return pb.SampleRequest(
        model=codec.selector(model, version),
        count=n,
        seed=sample_seed(n, seed, offset),
        offset=offset,
        label=label,
        temperature=temperature,
        truncation=truncation,
        format=array_format(dtype),
        return_latents=True,
    )


def samples_of(reply: pb.SampleResponse) -> Samples:
    """Reads one reply with its latents."""
    return Samples(
        images=codec.joined([reply.images.tensor]),
        latents=codec.joined([reply.latents]),
        seed=reply.seed,
        offset=reply.offset,
    )


def array_format(dtype: ArrayFormat) -> pb.ImageFormat:
    """How images are to come back, where they come as one array.

    Raises:
        ValueError: It is no such format.
    """
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"dtype: got {dtype!r}, wanted 'float32' or 'uint8'")
    return codec.format_message(dtype)


def drawn_seed(draw: bool, seed: int | None, offset: int, rows: int) -> int | None:
    """The seed of a draw, resolved before the rows are cut; None where nothing is drawn."""
    codec.check_draw(seed, offset, rows)
    return codec.fresh_seed() if draw and seed is None else seed


def sample_seed(n: int, seed: int | None, offset: int) -> int:
    """The seed of samples, resolved before the job is cut.

    Raises:
        ValueError: n is below 1, or a seed or offset is no uint64.
    """
    if n < 1:
        raise ValueError(f"n: got {n}, wanted at least 1")
    codec.check_draw(seed, offset, n)
    return codec.fresh_seed() if seed is None else seed


def count_from(error: InvalidArgument, start: int) -> None:
    """Makes an error count the rows of a whole call, and not those of one message.

    Args:
        error: Of a message; changed in place. Without an index it stays as it is.
        start: The message's first row.
    """
    if error.index is None:
        return
    old, new = f"[{error.index}]", f"[{error.index + start}]"
    error.index += start
    violations = []
    for violation in error.violations:
        field = violation.field
        if field.endswith(old):
            field = field.removesuffix(old) + new
            error.args = (error.args[0].replace(violation.field, field, 1),)
        violations.append(Violation(field, violation.description))
    error.violations = tuple(violations)


def _row_pieces(
    limits: Limits, rows: int, call: Callable[[slice], UnaryCall], model: str, version: int
) -> Plan[list[Any]]:
    def piece(start: int, most_rows: int, _most_bytes: int) -> slice:
        return slice(start, min(start + most_rows, rows))

    return _in_pieces(limits, rows, piece, call, model, version, files=False)


def _image_pieces(
    limits: Limits,
    source: codec.ImageSource,
    call: Callable[[slice], UnaryCall],
    model: str,
    version: int,
) -> Plan[list[Any]]:
    files = not isinstance(source.content, np.ndarray)
    return _in_pieces(limits, len(source), source.piece, call, model, version, files=files)


def _in_pieces(
    limits: Limits,
    rows: int,
    piece: Callable[[int, int, int], slice],
    call: Callable[[slice], UnaryCall],
    model: str,
    version: int,
    *,
    files: bool,
) -> Plan[list[Any]]:
    """Sends rows in pieces of the size that the server takes."""
    most = yield from limits_of(limits, model, version, files=files)
    replies: list[Any] = []
    start = 0
    while start < rows:
        now = piece(start, *most)
        try:
            replies.append((yield call(now)))
        except InvalidArgument as error:
            # Another server, or a new version, may take fewer than was known.
            limits.rows.pop((model, version), None)
            most = yield from limits_of(limits, model, version, files=files)
            if most[0] >= now.stop - now.start:
                count_from(error, now.start)
                raise
            continue
        start = now.stop
    return replies


def _both(first: tensor_pb2.Images, second: tensor_pb2.Images) -> tensor_pb2.Images:
    """Two messages of one image as one message of two."""
    kinds = {each.WhichOneof("source") for each in (first, second)}
    if kinds == {"encoded"}:
        encoded = tensor_pb2.EncodedImages(
            files=[*first.encoded.files, *second.encoded.files], resize=first.encoded.resize
        )
        return tensor_pb2.Images(encoded=encoded)
    if kinds == {"tensor"}:
        arrays = [codec.to_array(each.tensor) for each in (first, second)]
        if arrays[0].shape == arrays[1].shape and arrays[0].dtype == arrays[1].dtype:
            return tensor_pb2.Images(tensor=codec.to_tensor(np.concatenate(arrays)))
    raise ValueError("stop: wanted an image of the same kind, shape and dtype as start")
