"""The fast path of Encode and Decode gives the replies and errors of the long way."""

import asyncio
import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError

from bundle import open_bundle
from latentserve._client import codec
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import fast_path
from service.api.pictures import write_files
from service.api.servicer import Servicer
from service.api.wire import serialized, tag, varint
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.engine import Engine
from service.errors import InvalidArgument, NotForThisModel, Overloaded, ServiceError
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Models
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from tests.service.models.test_reload import reload
from tests.support.conditional import Conditional, write_conditional
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial
from tests.support.stubs import files, stub_of
from tests.support.tiny import write_tiny

SHAPE, DIM = (1, 4, 4), 3
# Images of each size that models of free size are sent, and their latents; 18 is no multiple of 4.
FREE = {(3, 8, 8): (2, 2, 2), (3, 16, 16): (2, 4, 4), (3, 8, 20): (2, 2, 5), (3, 18, 8): (2, 4, 2)}
RNG = np.random.default_rng(5)
REPLIES = {pb.EncodeRequest: pb.EncodeResponse, pb.DecodeRequest: pb.DecodeResponse}


class Bench:
    """Two servicers of the same models, with and without the fast path; no transport."""

    def __init__(self, *loaded: Any, max_rows: int = 10_000):
        self.serve(*loaded)
        self.engine = Engine(
            Admission(max_rows, 2**30), Telemetry(Metrics(), None, lambda *_: None)
        )
        self.fast, self.long = (
            Servicer(self.engine, lambda: self.models, Settings(max_rows=300), fast_path=fast)
            for fast in (True, False)
        )

    def serve(self, *loaded: Any) -> None:
        """What a reload does: one reference is swapped."""
        found: dict[str, dict[int, Any]] = {}
        for model in loaded:
            found.setdefault(model.manifest.name, {})[model.manifest.version] = model
        newest_first = {name: dict(sorted(found[name].items(), reverse=True)) for name in found}
        names = sorted(newest_first)
        self.models = Models(
            names[0], MappingProxyType({name: newest_first[name] for name in names})
        )

    async def ask(self, servicer: Servicer, kind: Any, raw: bytes) -> Any:
        """A reply without its timing, or an error as a caller sees it."""
        call = Call()
        try:
            request = kind.FromString(raw)
            answer = servicer.encode if kind is pb.EncodeRequest else servicer.decode
            reply = REPLIES[kind].FromString(b"".join(serialized(await answer(request, call))))
        except DecodeError:
            return "no message"
        except ServiceError as error:
            return type(error), str(error)
        assert reply.timing.total_seconds > 0
        assert min(reply.timing.batch_rows, call.rows) > 0
        assert (call.model, call.version) == (reply.model.name, reply.model.version)
        reply.ClearField("timing")
        if kind is pb.EncodeRequest and not request.HasField("seed"):
            reply.ClearField("seed")  # a fresh one, and so another draw
            reply.ClearField("z")
        return reply

    async def both(self, request: Any, raw: bytes = b"") -> tuple[Any, Any]:
        raw = raw or request.SerializeToString()
        kind = type(request)
        return await self.ask(self.fast, kind, raw), await self.ask(self.long, kind, raw)

    def has_plan(self, request: Any) -> bool:
        """Whether a request is answered by the fast path; it is not, and is not run."""
        kind = "encode" if isinstance(request, pb.EncodeRequest) else "decode"
        model = self.models.find(request.model.name, request.model.version)
        return getattr(self.fast.fast_path, kind)(model, request, Call()) is not None


def encode_request(array: Any, **more: Any) -> pb.EncodeRequest:
    request = pb.EncodeRequest(**more)
    request.images.tensor.CopyFrom(codec.to_tensor(array))
    return request


def decode_request(array: Any, **more: Any) -> pb.DecodeRequest:
    return pb.DecodeRequest(latents=codec.to_tensor(array), **more)


def pixels(rows: int, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> np.ndarray:
    if dtype == np.uint8:
        return RNG.integers(0, 256, (rows, *shape), dtype=np.uint8)
    return RNG.random((rows, *shape)).astype(dtype)


def latents(rows: int) -> np.ndarray:
    return RNG.standard_normal((rows, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> dict[str, Any]:
    """Loaded models by their identity.

    Two versions of `one`, a second name before it, a third version that is conditional, another
    conditional model, and two models of free size.
    """
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 1), ("one", 2), ("early", 3)):
        write_tiny(root / name, shape=SHAPE, dim=DIM, seed=seed)
    write_conditional(root / "one", Conditional(shape=SHAPE, dim=DIM))
    kind = Conditional(posterior="delta", likelihood="none", shape=SHAPE, dim=DIM)
    write_conditional(root / "letters", kind)
    write_spatial(root / "raw", Spatial(likelihood="none", most_pixels=256))
    write_spatial(root / "soft", Spatial(scaling=None, posterior="delta", prior="none"))
    return {
        f"{path.parent.name}/{path.name}": load_model(open_bundle(path), Device("cpu"), threads=1)
        for path in root.glob("*/*")
    }


@pytest.fixture
def bench(loaded):
    made = Bench(loaded["one/1"])
    yield made
    made.engine.close()


# ------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("shape", [SHAPE, SHAPE[1:], (16,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
async def test_an_encode_by_plan_gives_the_reply_of_the_long_way(bench, rows, shape, dtype):
    request = encode_request(pixels(rows, shape, dtype))
    assert bench.has_plan(request)
    by_plan, by_hand = await bench.both(request)
    assert by_plan == by_hand
    assert by_plan.mean.shape == [rows, DIM]


@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("wanted", [pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_UINT8])
async def test_a_decode_by_plan_gives_the_reply_of_the_long_way(bench, rows, wanted):
    request = decode_request(latents(rows), format=wanted)
    assert bench.has_plan(request)
    by_plan, by_hand = await bench.both(request)
    assert by_plan == by_hand
    assert by_plan.images.tensor.shape == [rows, *SHAPE]


async def test_values_out_of_range_are_refused_in_the_same_words(bench):
    for request, value in (
        (encode_request(pixels(3)), 1.5),
        (encode_request(pixels(3)), np.nan),
        (encode_request(pixels(3)), -1.0),
        # Computed in several batches: the one that holds the value fails.
        (encode_request(pixels(290)), np.nan),
        (decode_request(latents(3)), np.inf),
    ):
        tensor = request.images.tensor if hasattr(request, "images") else request.latents
        numbers = np.frombuffer(tensor.data, np.float32).copy()
        numbers[-1] = value
        tensor.data = numbers.tobytes()
        assert bench.has_plan(request)
        by_plan, by_hand = await bench.both(request)
        assert by_plan == by_hand
        assert by_plan[0] is InvalidArgument
        assert bench.engine.admission.rows == 0


async def test_a_full_server_refuses_a_call_that_has_a_plan(loaded):
    bench = Bench(loaded["one/1"], max_rows=5)

    request = encode_request(pixels(3, dtype=np.uint8))
    assert bench.has_plan(request)
    async with bench.engine.admission.admitted(4, 1):
        refused, _ = await bench.both(request)
        assert refused[0] is Overloaded
        assert bench.engine.admission.rows == 4
    assert bench.engine.admission.rows == 0
    bench.engine.close()


# ------------------------------------------------------------------------- the plans


async def test_requests_that_need_more_than_a_graph_have_no_plan(bench):
    picture = write_files(pixels(1, dtype=np.uint8))
    for request in (
        encode_request(pixels(1), draw=True, seed=7),
        encode_request(pixels(1, dtype=np.float16)),
        pb.EncodeRequest(images=files(*picture)),
        decode_request(latents(1), format=pb.IMAGE_FORMAT_PNG),
        decode_request(latents(1).astype(np.float16)),
        decode_request(latents(1), quality=50),
        decode_request(latents(1), unclipped=True),
        decode_request(latents(1), format=pb.IMAGE_FORMAT_BFLOAT16),
        encode_request(pixels(1), latent_dtype=tensor_pb2.DATA_TYPE_FLOAT16),
    ):
        assert not bench.has_plan(request)
        without, by_hand = await bench.both(request)
        assert without == by_hand
        assert not isinstance(without, tuple)


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("name", ["one/3", "letters/1"])
async def test_labels_by_plan_give_the_reply_of_the_long_way(loaded, rows, name):
    bench = Bench(loaded[name])
    for labels in ([3], (np.arange(rows) % 4).tolist()):
        for request in (
            encode_request(pixels(rows), labels=labels),
            encode_request(pixels(rows, dtype=np.uint8), labels=labels),
            decode_request(latents(rows), labels=labels),
            decode_request(latents(rows), format=pb.IMAGE_FORMAT_UINT8, labels=labels),
        ):
            assert bench.has_plan(request)
            by_plan, by_hand = await bench.both(request)
            assert by_plan == by_hand
            assert not isinstance(by_plan, tuple)
    bench.engine.close()


async def test_wrong_labels_are_refused_in_the_same_words(loaded):
    for name, wrong, reason in (
        ("one/1", [[0], [0, 1, 2]], NotForThisModel),
        ("one/3", [[]], NotForThisModel),
        ("one/3", [[0, 1], [0, 1, 2, 3], [4], [0, -1, 0], [2**31 - 1]], InvalidArgument),
    ):
        bench = Bench(loaded[name])
        for labels in wrong:
            for request in (
                encode_request(pixels(3), labels=labels),
                decode_request(latents(3), labels=labels),
            ):
                assert not bench.has_plan(request)
                by_plan, by_hand = await bench.both(request)
                assert by_plan == by_hand
                assert by_plan[0] is reason
                assert bench.engine.admission.rows == 0
        bench.engine.close()


async def test_values_out_of_range_are_found_among_labelled_rows(loaded):
    bench = Bench(loaded["one/3"])
    for request in (
        encode_request(np.full((3, *SHAPE), 1.5, np.float32), labels=[3, 2, 3]),
        decode_request(np.full((3, DIM), np.nan, np.float32), labels=[3]),
    ):
        assert bench.has_plan(request)
        by_plan, by_hand = await bench.both(request)
        assert by_plan == by_hand
        assert by_plan[0] is InvalidArgument
    bench.engine.close()


@pytest.mark.parametrize(("shape", "latent"), [*list(FREE.items())[:3], ((768,), (32,))], ids=str)
async def test_a_model_of_free_size_has_plans_for_every_size(loaded, shape, latent):
    bench = Bench(loaded["raw/1"])
    for request in (
        encode_request(pixels(2, shape)),
        encode_request(pixels(2, shape, np.uint8)),
        decode_request(RNG.standard_normal((2, *latent)).astype(np.float32)),
        decode_request(np.zeros((2, *latent), np.float32), format=pb.IMAGE_FORMAT_UINT8),
    ):
        assert bench.has_plan(request)
        by_plan, by_hand = await bench.both(request)
        assert by_plan == by_hand
        assert not isinstance(by_plan, tuple)
    bench.engine.close()


async def test_scaled_latents_have_no_plan(loaded):
    bench = Bench(loaded["raw/1"])
    for request in (
        encode_request(pixels(1, (3, 8, 8)), scaled=True),
        decode_request(np.zeros((1, 2, 2, 2), np.float32), scaled=True),
    ):
        assert not bench.has_plan(request)
        without, by_hand = await bench.both(request)
        assert without == by_hand
        assert not isinstance(without, tuple)
    bench.engine.close()


async def test_the_number_of_plans_of_a_model_is_bounded(bench):
    for rows in range(1, 290):
        assert bench.has_plan(decode_request(latents(rows)))
    (plans,) = bench.fast.fast_path._decode_plans.values()
    assert 0 < len(plans) <= fast_path._MAX_PLANS < 289


async def test_plans_do_not_keep_a_model_that_is_no_longer_served(loaded, tmp_path):
    path = write_tiny(tmp_path / "gone", shape=SHAPE, dim=DIM)
    bench = Bench(load_model(open_bundle(path), Device("cpu"), threads=1))

    await bench.both(encode_request(pixels(1)))
    (model,) = bench.models
    gone = weakref.ref(model)
    del model
    bench.serve(loaded["one/1"])
    gc.collect()
    assert gone() is None
    bench.engine.close()


@pytest.mark.parametrize(("newcomer", "wanted"), [("one/2", ("one", 2)), ("early/1", ("early", 1))])
@pytest.mark.parametrize("make", [decode_request, encode_request])
async def test_a_reload_during_a_call_changes_the_model_of_the_next_call(
    bench, loaded, newcomer, wanted, make
):
    request = make(latents(1) if make is decode_request else pixels(1))
    raw = request.SerializeToString()
    calls = [
        asyncio.create_task(bench.ask(servicer, type(request), raw))
        for servicer in (bench.fast, bench.fast, bench.long)
    ]
    await asyncio.sleep(0)
    assert bench.engine.admission.rows == 3
    bench.serve(loaded["one/1"], loaded[newcomer])
    for reply in await asyncio.gather(*calls):
        assert (reply.model.name, reply.model.version) == ("one", 1)
    by_plan, by_hand = await bench.both(request)
    assert by_plan == by_hand
    assert (by_plan.model.name, by_plan.model.version) == wanted


# ------------------------------------------------------- random requests, and reloads

UNKNOWN = (
    lambda draw: tag(99, 3) + draw.randbytes(3),
    lambda draw: varint(98 << 3) + varint(draw.randrange(2**40)),
    lambda draw: varint(97 << 3 | 5) + draw.randbytes(4),
    lambda draw: varint(96 << 3 | 1) + draw.randbytes(8),
)


def field(number: int, content: bytes) -> bytes:
    return tag(number, len(content)) + content


def some_tensor(
    draw: random.Random, rows: int, wanted: tuple[int, ...], low: float, high: float
) -> bytes:
    """A tensor, every second one sound; a field may stand twice."""
    sound = draw.random() < 0.75
    if not sound:
        rows = draw.choice((0, 1, rows, rows, 301))
    inner = draw.choice((wanted, wanted, (int(np.prod(wanted)),)) if sound else (wanted, (2, 2)))
    shape = [rows, *inner]
    dtype = draw.choice((1, 1, 1, 2, 3 if high == 1.0 else 4) if sound else (0, 1, 1, 2, 3, 4, 9))
    numbers = np.random.default_rng(draw.randrange(2**32)).uniform(low, high, int(np.prod(shape)))
    if not sound:
        if draw.random() < 0.2:
            shape = draw.choice(([-1, *inner], [2**62, *inner], []))
        if draw.random() < 0.3 and numbers.size:
            numbers[draw.randrange(numbers.size)] = draw.choice((np.nan, np.inf, -2.0, 1e7))
    kind = {2: np.float16, 3: np.uint8}.get(dtype, np.float32)
    with np.errstate(all="ignore"):
        sent = (numbers * 255 if kind is np.uint8 else numbers).astype(kind)
    # Cut off and not rounded, which the test does not depend on.
    data = (sent.view(np.uint16)[1::2] if dtype == 4 else sent).tobytes()
    if not sound and draw.random() < 0.2:
        data = draw.choice((data[:-1], data + b"\0"))
    parts = [varint(1 << 3) + varint(dtype), *(_dimension(draw, size) for size in shape)]
    parts.append(field(3, data))
    if draw.random() < 0.15:
        # The last one wins, but for a dimension, which is one more.
        parts.append(draw.choice(parts))
    if draw.random() < 0.15:
        draw.shuffle(parts)
    return b"".join(parts)


def _dimension(draw: random.Random, size: int) -> bytes:
    number = varint(size % 2**64)
    return field(2, number) if draw.random() < 0.5 else varint(2 << 3) + number


def some_images(draw: random.Random, rows: int, shape: tuple[int, ...]) -> bytes:
    """A oneof: the last member on the wire wins."""
    without_channel = shape[1:] if shape[0] == 1 else shape
    tensor = field(
        1, some_tensor(draw, rows, draw.choice((shape, shape, without_channel)), 0.0, 1.0)
    )
    shape = draw.choice((shape, shape, (1, 5, 4)))
    kind = draw.choice(("PNG", "PNG", "JPEG", "WEBP"))
    content = write_files(np.full((1, *shape), draw.randrange(256), np.uint8), kind)[0]
    encoded = field(2, field(1, draw.choice((content, content, b"no picture"))))
    return b"".join(
        draw.choice(([tensor],) * 8 + ([encoded], [encoded, tensor], [tensor, encoded], []))
    )


def some_labels(draw: random.Random, field_number: int, rows: int) -> list[bytes]:
    """Labels, packed or not: mostly one for all or one for each row, and mostly in range."""
    count = draw.choice((1, rows, rows, rows) if draw.random() < 0.9 else (0, 2, 3))
    values = (0, 1, 2, 3) if draw.random() < 0.9 else (0, 4, 2**31 - 1, 2**64 - 1)
    labels = [varint(draw.choice(values)) for _ in range(count)]
    if draw.random() < 0.7:
        return [field(field_number, b"".join(labels))]
    return [varint(field_number << 3) + label for label in labels]


def some_request(draw: random.Random, models: Models) -> tuple[Any, bytes]:
    """A request to Encode or Decode as bytes that protobuf would not always write.

    Args:
        draw: Where all choices come from.
        models: The models that are served; the default one is the first by name.
    """
    served = models.names
    name = draw.choice((*(name.encode() for name in served), b"") * 6 + (b"none", b"early"))
    version = draw.choice((0,) * 20 + (1, 1, 2, 3, 3))
    selector = field(1, field(1, name) + varint(2 << 3) + varint(version))
    parts = [selector]
    if draw.random() < 0.3:
        name, version, parts = b"", 0, []
    versions = models.loaded.get(name.decode() or served[0], {})
    model = versions.get(version or max(versions, default=0))
    conditional = model is not None and model.manifest.conditional
    free = (name.decode() or served[0]) in ("raw", "soft")
    if draw.random() < 0.02:
        free = not free
    shape, latent = draw.choice([*FREE.items()]) if free else (SHAPE, (DIM,))
    rows = draw.choice((1, 1, 1, 2, 3, 70))
    if draw.random() < 0.6:
        kind: Any = pb.EncodeRequest
        parts.append(field(2, some_images(draw, rows, shape)))
        fields = {"draw": 2, "seed": 9, "scaled": 2, "latent_dtype": 6}
    else:
        kind = pb.DecodeRequest
        parts.append(field(2, some_tensor(draw, rows, latent, -2.0, 2.0)))
        if draw.random() < 0.5:
            number = pb.DecodeRequest.DESCRIPTOR.fields_by_name["format"].number
            parts.append(
                varint(number << 3) + varint(draw.choice((*range(9), 1, 2, 2, 2, 2, 2, 2)))
            )
        fields = {"scaled": 2, "unclipped": 2, "quality": 130}
    if draw.random() < (0.95 if conditional else 0.05):
        number = kind.DESCRIPTOR.fields_by_name["labels"].number
        parts += some_labels(draw, number, rows)
    for name_of_field, values in fields.items():
        if draw.random() < 0.05:
            number = kind.DESCRIPTOR.fields_by_name[name_of_field].number
            parts.append(varint(number << 3) + varint(draw.randrange(values)))
    if draw.random() < 0.15:
        parts.append(draw.choice(parts))
    if draw.random() < 0.15:
        parts.append(draw.choice(UNKNOWN)(draw))
    if draw.random() < 0.3:
        draw.shuffle(parts)
    raw = b"".join(parts)
    return kind, raw[:-1] if draw.random() < 0.02 else raw


def differential(loaded: dict[str, Any], count: int, seed: int) -> None:
    """Random requests by the fast path and the long way, with reloads in between."""
    draw = random.Random(seed)
    sets = (
        ("one/1",),
        ("one/1", "one/2", "raw/1"),
        ("early/1", "one/1", "soft/1"),
        ("one/2", "raw/1", "soft/1"),
        ("one/3",),
        ("letters/1", "one/2", "one/3", "raw/1"),
        tuple(loaded),
    )
    bench = Bench(loaded["one/1"])
    outcomes = {"reply": 0, "error": 0}
    by_plan = 0

    async def scene() -> None:
        nonlocal by_plan
        for index in range(count):
            if index % 50 == 0:
                bench.serve(*(loaded[name] for name in draw.choice(sets)))
            kind, raw = some_request(draw, bench.models)
            fast = await bench.ask(bench.fast, kind, raw)
            assert fast == await bench.ask(bench.long, kind, raw), (seed, index, kind, raw)
            outcomes["error" if isinstance(fast, tuple) else "reply"] += 1
            with suppress(DecodeError, ServiceError):
                by_plan += bench.has_plan(kind.FromString(raw))
        assert bench.engine.admission.rows == 0

    asyncio.run(scene())
    bench.engine.close()
    # Neither side of the comparison may be small.
    assert min(*outcomes.values(), by_plan) > count // 5, (outcomes, by_plan)


def test_random_requests_get_the_same_reply_by_the_fast_path_and_the_long_way(loaded):
    differential(loaded, 2_000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_random_requests_get_the_same_reply_by_both(loaded, seed):
    differential(loaded, 5_000, seed)


# ----------------------------------------------------------------------- over a real port


@pytest.mark.parametrize("newcomer", ["one", "early"])
def test_a_call_in_flight_across_a_reload_does_not_change_the_model_of_later_calls(
    tmp_path, newcomer
):
    """A new version of the model, or a model that becomes the default one."""
    request = decode_request(latents(1))
    for attempt in range(5):
        models = tmp_path / str(attempt)
        write_tiny(models / "one", shape=SHAPE, dim=DIM, seed=1)
        window = ("--batch-window-seconds", "0.5")
        arguments = ("--admin", "--versions", "all", "--http-port", "0", *window)
        with (
            Server(models, tmp_path / "log", *arguments) as server,
            ThreadPoolExecutor(1) as pool,
            stub_of(server.target) as stub,
        ):
            server.wait_until_serving()
            write_tiny(models / newcomer, shape=SHAPE, dim=DIM, seed=2)
            first = pool.submit(stub.Decode, request)
            while not (first.done() or server.metric("latentserve_queue_rows")):
                pass  # until the call waits in its batch window
            reload(server)
            in_flight = not first.done()
            before, after = first.result(), stub.Decode(request)
        if in_flight:  # else the reload took longer than the batch window
            break
    assert in_flight
    assert (before.model.name, before.model.version) == ("one", 1)
    wanted = {"one": ("one", 2), "early": ("early", 1)}[newcomer]
    assert (after.model.name, after.model.version) == wanted
    assert after.images != before.images


def test_the_last_member_of_a_oneof_counts_as_protobuf_says(each_server: Server):
    """A tensor and then picture files: the files are what is encoded."""
    tensor = tensor_pb2.Images(tensor=codec.to_tensor(np.ones((1, 784), np.float32)))
    encoded = files(*write_files(np.zeros((1, 1, 28, 28), np.uint8)))
    with stub_of(each_server.target) as stub, grpc.insecure_channel(each_server.target) as channel:
        encode = channel.unary_unary(
            "/latentserve.v1.LatentService/Encode",
            request_serializer=lambda raw: raw,
            response_deserializer=pb.EncodeResponse.FromString,
        )
        means = {
            source: stub.Encode(pb.EncodeRequest(images=images)).mean
            for source, images in (("tensor", tensor), ("encoded", encoded))
        }
        assert means["tensor"] != means["encoded"]
        for first, last in ((tensor, encoded), (encoded, tensor)):
            both = first.SerializeToString() + last.SerializeToString()
            for _ in range(2):
                reply = encode(field(2, both))
                assert reply.mean == means[last.WhichOneof("source")]


def test_calls_by_plan_over_both_transports(each_server: Server):
    with stub_of(each_server.target) as stub:
        dim = 32
        for rows in (1, 70):
            images = [pixels(rows, (784,)) for _ in range(3)]
            replies = [stub.Encode(encode_request(batch)) for batch in images]
            for batch, reply in zip(images, replies, strict=True):
                drawn = stub.Encode(encode_request(batch, draw=True, seed=1))  # the long way
                assert drawn.mean == reply.mean
                assert drawn.log_var == reply.log_var
                assert reply.mean.shape == [rows, dim]
        bad = images[0].copy()
        bad[-1, -1] = 2
        with pytest.raises(grpc.RpcError) as caught:
            stub.Encode(encode_request(bad))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "images.tensor.data" in caught.value.details()
