"""Requests like one that came before are answered as the first one was, without protobuf."""

import asyncio
import gc
import weakref
from types import MappingProxyType

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle import open_bundle
from latentserve._client import codec
from latentserve.v1 import latent_service_pb2 as pb
from service.api.servicer import Servicer
from service.api.wire import key, locate
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.engine import Engine
from service.errors import InvalidArgument, Overloaded
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Models
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from tests.support.processes import Server
from tests.support.stubs import stub_of

DIM = 32
IMAGES_DATA = (2, 1, 3)  # EncodeRequest.images, Images.tensor, Tensor.data
RNG = np.random.default_rng(5)


class Bench:
    """A servicer and its engine, without a transport."""

    def __init__(self, model, max_rows: int = 10_000):
        self.models = Models("mnist", MappingProxyType({"mnist": {1: model}}))
        telemetry = Telemetry(Metrics(), None, lambda *_: None)
        self.engine = Engine(Admission(max_rows, 2**30), telemetry)
        self.servicer = Servicer(self.engine, lambda: self.models, Settings())

    def shortcut(self, request):
        return self.servicer.shortcuts["Encode" if is_encode(request) else "Decode"]

    async def ask(self, request):
        """The long way, which the shortcut learns from."""
        call = Call()
        answer = self.servicer.encode if is_encode(request) else self.servicer.decode
        reply = await answer(request, call)
        self.shortcut(request).learn(request.SerializeToString(), request, call)
        return reply if isinstance(reply, REPLIES) else read(request, reply.chunks())

    async def ask_again(self, request, raw=b""):
        """The short way."""
        raw = raw or request.SerializeToString()
        known = self.shortcut(request).find(raw)
        assert known is not None
        return read(request, await self.shortcut(request).answer(known, raw, Call()))


REPLIES = (pb.EncodeResponse, pb.DecodeResponse)


def is_encode(request) -> bool:
    return isinstance(request, pb.EncodeRequest)


def read(request, chunks):
    return REPLIES[not is_encode(request)].FromString(b"".join(chunks))


def untimed(reply):
    assert reply.timing.total_seconds > 0
    assert reply.timing.batch_rows > 0
    reply.ClearField("timing")
    return reply


def encode_request(array, **more) -> pb.EncodeRequest:
    request = pb.EncodeRequest(**more)
    request.images.tensor.CopyFrom(codec.to_tensor(array))
    return request


def decode_request(array, **more) -> pb.DecodeRequest:
    return pb.DecodeRequest(latents=codec.to_tensor(array), **more)


def some(rows: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    if dtype == np.uint8:
        return RNG.integers(0, 256, (rows, *shape), dtype=np.uint8)
    return RNG.random((rows, *shape), np.float32)


@pytest.fixture(scope="module")
def model(models):
    return load_model(open_bundle(models / "mnist" / "1"), Device("cpu"), threads=1)


@pytest.fixture
def bench(model):
    made = Bench(model)
    yield made
    made.engine.close()


# ------------------------------------------------------------------- the answers


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("shape", [(1, 28, 28), (28, 28), (784,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_second_encode_of_a_form_is_answered_as_the_long_way_would(bench, rows, shape, dtype):
    async def scene() -> None:
        first, second = (encode_request(some(rows, shape, dtype)) for _ in range(2))
        await bench.ask(first)
        short = untimed(await bench.ask_again(second))
        assert short == untimed(await bench.ask(second))
        assert short.model.name == "mnist"

    asyncio.run(scene())


@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("wanted", [pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_UINT8])
def test_the_second_decode_of_a_form_is_answered_as_the_long_way_would(bench, rows, wanted):
    async def scene() -> None:
        first, second = (
            decode_request(some(rows, (DIM,), np.float32), format=wanted) for _ in range(2)
        )
        await bench.ask(first)
        assert untimed(await bench.ask_again(second)) == untimed(await bench.ask(second))

    asyncio.run(scene())


def test_numbers_may_stand_anywhere_in_a_request(bench):
    async def scene() -> None:
        images = some(2, (784,), np.float32)
        request = encode_request(images, model=pb.ModelSelector(name="mnist", version=1))
        # Field 1 after field 2, and an unknown one before: protobuf reads that too.
        selector = request.model.SerializeToString()
        body = encode_request(images).SerializeToString()
        for before in (b"", key(99, 1) + b"x", key(99, 2) + b"xy", key(99, 3) + b"xyz"):
            raw = before + body + key(1, len(selector)) + selector
            call = Call()
            await bench.servicer.encode(pb.EncodeRequest.FromString(raw), call)
            bench.shortcut(request).learn(raw, request, call)
            assert untimed(await bench.ask_again(request, raw)) == untimed(await bench.ask(request))

    asyncio.run(scene())


def test_bad_numbers_are_refused_in_the_same_words(bench):
    async def scene() -> None:
        for request, value in (
            (encode_request(some(3, (784,), np.float32)), 1.5),
            (encode_request(some(3, (784,), np.float32)), np.nan),
            (encode_request(some(3, (784,), np.float32)), -1.0),
            # Of one that is computed in several batches, the one that is not sound is told of.
            (encode_request(some(400, (784,), np.float32)), np.nan),
            (decode_request(some(3, (DIM,), np.float32)), np.inf),
        ):
            await bench.ask(request)
            bad = type(request).FromString(request.SerializeToString())
            tensor = bad.images.tensor if is_encode(bad) else bad.latents
            numbers = np.frombuffer(tensor.data, np.float32).copy()
            numbers[-1] = value
            tensor.data = numbers.tobytes()
            texts = []
            for way in (bench.ask, bench.ask_again):
                with pytest.raises(InvalidArgument) as caught:
                    await way(bad)
                texts.append(str(caught.value))
            assert texts[0] == texts[1]
            assert bench.engine.admission.rows == 0

    asyncio.run(scene())


def test_a_full_server_refuses_known_requests_too(model):
    bench = Bench(model, max_rows=5)

    async def scene() -> None:
        request = encode_request(some(3, (784,), np.uint8))
        await bench.ask(request)
        async with bench.engine.admission.admitted(4, 1):
            with pytest.raises(Overloaded):
                await bench.ask_again(request)
            assert bench.engine.admission.rows == 4

    asyncio.run(scene())
    bench.engine.close()


# ------------------------------------------------------------- what is remembered


def test_what_the_next_request_has_otherwise_is_not_remembered(bench):
    async def scene() -> None:
        images = some(1, (784,), np.float32)
        for request in (
            encode_request(images, draw=True, seed=7),
            encode_request(images.astype(np.float16)),
            decode_request(some(1, (DIM,), np.float32), format=pb.IMAGE_FORMAT_PNG),
        ):
            await bench.ask(request)
            assert bench.shortcut(request).find(request.SerializeToString()) is None

    asyncio.run(scene())


def test_another_form_of_the_same_length_is_not_taken_for_it(bench):
    async def scene() -> None:
        images = some(1, (784,), np.uint8)
        request = encode_request(images, model=pb.ModelSelector(name="mnist"))
        await bench.ask(request)
        other = encode_request(images, model=pb.ModelSelector(name="mnisT"))
        assert bench.shortcut(other).find(other.SerializeToString()) is None
        drawn = encode_request(images, model=pb.ModelSelector(name="mni"), draw=True)
        assert len(drawn.SerializeToString()) == len(request.SerializeToString())
        assert bench.shortcut(drawn).find(drawn.SerializeToString()) is None

    asyncio.run(scene())


def test_what_is_remembered_is_bounded_and_goes_with_the_models(bench):
    async def scene() -> None:
        for rows in range(1, 300):
            await bench.ask(decode_request(some(rows, (DIM,), np.float32)))
        assert len(bench.models.known) <= 256
        request = decode_request(some(299, (DIM,), np.float32))
        await bench.ask_again(request)
        gone = weakref.ref(bench.models)
        bench.models = Models(bench.models.default, bench.models.loaded)
        assert bench.shortcut(request).find(request.SerializeToString()) is None
        gc.collect()
        assert gone() is None

    asyncio.run(scene())


def test_forms_of_one_length_are_bounded_and_the_newest_are_kept(bench):
    async def scene() -> None:
        images = some(1, (784,), np.uint8)
        requests = [encode_request(images, seed=seed) for seed in range(100, 120)]
        for request in requests:
            await bench.ask(request)
        (alike,) = bench.models.known.values()
        assert len(alike) == 8
        await bench.ask_again(requests[-1])
        long = encode_request(images).SerializeToString() + key(99, 5000) + bytes(5000)
        request = pb.EncodeRequest.FromString(long)
        await bench.ask(request)
        assert bench.shortcut(request).find(long) is None

    asyncio.run(scene())


# ---------------------------------------------------------------- where bytes stand


@given(
    data=st.binary(max_size=300),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    name=st.text(max_size=200),
    seed=st.none() | st.integers(0, 2**64 - 1),
)
def test_bytes_are_found_where_they_stand(data, shape, name, seed):
    request = pb.EncodeRequest(model=pb.ModelSelector(name=name), seed=seed)
    request.images.tensor.data = data
    request.images.tensor.shape.extend(shape)
    raw = request.SerializeToString()
    where = locate(raw, IMAGES_DATA)
    # An empty field is not written at all.
    assert (raw[where] if where is not None else b"") == data
    assert where is not None or not data


def test_bytes_that_stand_twice_or_nowhere_are_not_found():
    raw = encode_request(some(1, (4,), np.uint8)).SerializeToString()
    assert locate(raw, IMAGES_DATA) is not None
    assert locate(raw + raw, IMAGES_DATA) is None  # protobuf merges them
    assert locate(b"", IMAGES_DATA) is None
    assert locate(pb.EncodeRequest(draw=True).SerializeToString(), IMAGES_DATA) is None


# ------------------------------------------------------------------- over the wire


def test_known_requests_over_both_transports(each_server: Server):
    with stub_of(each_server.target) as stub:
        for rows in (1, 70):
            images = [some(rows, (784,), np.float32) for _ in range(3)]
            alike = [stub.Encode(encode_request(each)) for each in images]
            for number, (each, reply) in enumerate(zip(images, alike, strict=True)):
                # A seed that nothing is drawn with makes each the first of its form.
                other = stub.Encode(encode_request(each, seed=number))
                assert other.mean.data == reply.mean.data
                assert other.log_var.data == reply.log_var.data
                assert reply.mean.shape == [rows, DIM]
        bad = images[0].copy()
        bad[-1, -1] = 2
        with pytest.raises(grpc.RpcError) as caught:
            stub.Encode(encode_request(bad))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "images.tensor.data" in caught.value.details()
