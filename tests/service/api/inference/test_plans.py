"""ModelInfer by plan gives the replies and errors of ModelInfer at length."""

import asyncio
import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest

from bundle import open_bundle
from latentserve._client import codec
from latentserve.v1 import latent_service_pb2 as native_pb
from latentserve.v1 import tensor_pb2
from service.api.inference import inference_service_pb2 as pb
from service.engine.call import Call
from service.errors import InvalidArgument, Overloaded, ServiceError
from service.models.model import load_model
from service.models.onnx import Device
from tests.service.api.inference.conftest import DIM, SHAPE
from tests.support.inference import InProcess, infer_request, put_parameter
from tests.support.tiny import write_tiny

RNG = np.random.default_rng(4)


class Both:
    """The same models with plans and without.

    Args:
        *loaded: The models.
    """

    def __init__(self, *loaded: Any):
        self.fast, self.long = (InProcess(*loaded, fast_path=fast) for fast in (True, False))

    async def answers(self, request: pb.ModelInferRequest) -> tuple[Any, Any]:
        """The answers to a request: by plan if there is one, and at length."""
        return await self.ask(self.fast, request), await self.ask(self.long, request)

    async def ask(self, running: InProcess, request: pb.ModelInferRequest) -> Any:
        call = Call()
        try:
            reply = await running.infer(request, call)
        except ServiceError as error:
            assert running.engine.admission.rows == 0
            return type(error), str(error)
        assert f"{call.model}." in reply.model_name
        assert str(call.version) == reply.model_version
        if request.model_name.endswith("sample") and "seed" not in request.parameters:
            return set(reply.parameters)  # a fresh seed, and so another draw
        return reply, call.rows

    def has_plan(self, request: pb.ModelInferRequest) -> bool:
        """Whether a request is answered by plan; it is not run, and is left as it is."""
        before = request.SerializeToString(deterministic=True)
        copy = pb.ModelInferRequest.FromString(before)
        answer: Any = self.fast.servicer._plans.answer(copy, Call())
        if answer is None:
            assert copy.SerializeToString(deterministic=True) == before
            return False
        return True

    def close(self) -> None:
        self.fast.close()
        self.long.close()


@pytest.fixture
def both(loaded):
    made = Both(*loaded.values())
    yield made
    made.close()


def pixels(*shape: int, dtype: Any = np.float32) -> Any:
    if dtype == np.uint8:
        return RNG.integers(0, 256, shape, dtype=np.uint8)
    return RNG.random(shape).astype(dtype)


def latents(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("request_id", ["", "a"])
async def test_a_request_of_an_ordinary_form_is_answered_by_plan(both, rows, request_id):
    given = {"request_id": request_id}
    labels = np.arange(rows) % 4
    for request in (
        infer_request("one.encode", {"image": pixels(rows, *SHAPE)}, **given),
        infer_request("one.encode", {"image": pixels(rows, *SHAPE)}, ("log_var",), **given),
        infer_request("one.encode", {"image": pixels(rows, 16, dtype=np.uint8)}, version="1"),
        infer_request("one.decode", {"z": latents(rows, DIM)}, ("image",), **given),
        infer_request("one.decode", {"z": latents(rows, DIM)}, format="uint8", **given),
        infer_request("one.decode", {"z": latents(rows, DIM)}, format="float32", **given),
        infer_request("raw.encode", {"image": pixels(rows, 3, 8, 8)}, ("mean", "log_var")),
        infer_request("raw.decode", {"z": latents(rows, 2, 2, 4)}, **given),
        infer_request("half.decode", {"z": latents(rows, 2, 2, 4)}, **given),
        infer_request("classes.encode", {"image": pixels(rows, *SHAPE), "label": labels}),
        infer_request("classes.decode", {"label": labels[:1], "z": latents(rows, DIM)}, **given),
        infer_request("plain.encode", {"image": pixels(rows, *SHAPE), "label": labels[:, None]}),
    ):
        assert both.has_plan(request), request.model_name
        for _ in range(2):
            by_plan, at_length = await both.answers(request)
            assert by_plan == at_length
            assert by_plan[0].id == request.id


async def test_other_requests_have_no_plan(both):
    image = {"image": pixels(1, *SHAPE)}
    for request in (
        infer_request("one.encode", image, draw=True, seed=1),
        infer_request("one.encode", image, ("z",), seed=1),
        infer_request("one.encode", image, latent_dtype="float16"),
        infer_request("one.encode", {"image": pixels(1, *SHAPE, dtype=np.float16)}),
        infer_request("one.encode", image, typed=True),
        infer_request("one.encode", image, timeout=10**9),
        infer_request("one.decode", {"z": latents(1, DIM)}, timeout=10**9),
        infer_request("one.decode", {"z": latents(1, DIM)}, format="float16"),
        infer_request("one.decode", {"z": latents(1, DIM)}, unclipped=True),
        infer_request("classes.decode", {"z": latents(1, DIM)}, label=1),
        infer_request("one.reconstruct", image),
        infer_request("one.score", image),
    ):
        assert not both.has_plan(request)
        by_plan, at_length = await both.answers(request)
        assert by_plan == at_length
        assert isinstance(by_plan[0], pb.ModelInferResponse)


@pytest.mark.parametrize("value", [1.5, np.nan, -1.0])
async def test_values_out_of_range_are_refused_in_the_same_words(both, value):
    images, z = pixels(3, *SHAPE), latents(3, DIM)
    images[-1, -1, -1, -1], z[-1, -1] = value, value * 1e9
    for request in (
        infer_request("one.encode", {"image": images}),
        infer_request("one.decode", {"z": z}),
        infer_request("classes.encode", {"image": images, "label": np.array([1])}),
    ):
        assert both.has_plan(request)
        by_plan, at_length = await both.answers(request)
        assert by_plan == at_length
        assert by_plan[0] is InvalidArgument
        assert by_plan[1].startswith("inputs.")


async def test_what_a_cached_plan_cannot_answer_is_refused_at_length(both):
    good = infer_request("classes.encode", {"image": pixels(3, *SHAPE), "label": np.arange(3)})
    assert both.has_plan(good)
    for change in (
        lambda request: request.raw_input_contents.__setitem__(0, b"short"),
        lambda request: request.raw_input_contents.__setitem__(1, b"short"),
        lambda request: request.raw_input_contents.__setitem__(1, np.full(3, 9).tobytes()),
        lambda request: request.raw_input_contents.append(b""),
        lambda request: request.raw_input_contents.pop(),
        lambda request: request.ClearField("raw_input_contents"),
    ):
        wrong = pb.ModelInferRequest.FromString(good.SerializeToString())
        change(wrong)
        assert not both.has_plan(wrong)
        by_plan, at_length = await both.answers(wrong)
        assert by_plan == at_length
        assert by_plan[0] is InvalidArgument


@pytest.mark.parametrize("wrong", [4, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_label_beyond_every_range_is_refused_at_length(both, count, wrong):
    labels = np.zeros(count, np.uint64)
    image = pixels(3, *SHAPE)
    assert both.has_plan(infer_request("classes.encode", {"image": image, "label": labels}))
    labels[-1] = wrong
    request = infer_request("classes.encode", {"image": image, "label": labels})
    assert not both.has_plan(request)
    by_plan, at_length = await both.answers(request)
    assert by_plan == at_length
    assert by_plan[0] is InvalidArgument
    assert by_plan[1].startswith("inputs.label")


async def test_a_full_server_refuses_a_call_that_has_a_plan(both):
    request = infer_request("one.encode", {"image": pixels(3, *SHAPE)})
    assert both.has_plan(request)
    admission = both.fast.engine.admission
    async with admission.admitted(9_999, 1):
        with pytest.raises(Overloaded):
            await both.fast.infer(request)
    assert admission.rows == 0


@pytest.mark.parametrize("operation", ["encode", "decode"])
async def test_calls_by_plan_share_a_batch_whatever_their_form_and_protocol(both, operation):
    """A plan stands for one number of rows and one shape; those of a batch may have any."""
    running = both.fast
    array = pixels(3, *SHAPE) if operation == "encode" else latents(3, DIM)

    async def native(rows: Any) -> int:
        tensor, model = codec.to_tensor(rows), native_pb.ModelSelector(name="one", version=1)
        request = (
            native_pb.EncodeRequest(model=model, images=tensor_pb2.Images(tensor=tensor))
            if operation == "encode"
            else native_pb.DecodeRequest(model=model, latents=tensor)
        )
        assert getattr(running.native.fast_path, operation)(
            running.models.find("one", 1), request, Call()
        )
        call = Call()
        await getattr(running.native, operation)(request, call)
        return call.timing.batch_rows

    async def inferred(rows: Any) -> int:
        name = "image" if operation == "encode" else "z"
        request = infer_request(f"one.{operation}", {name: rows}, version="1")
        assert both.has_plan(request)
        call = Call()
        await running.infer(request, call)
        return call.timing.batch_rows

    calls = [ask(array[:rows]) for rows in (1, 2, 3) for ask in (native, inferred)]
    calls.append(native(array[:2].reshape(2, -1)))
    assert await asyncio.gather(*calls) == [14] * 7


async def test_a_long_form_has_no_plan(both):
    """Unknown fields are part of the form: they must not fill the memory."""
    request = infer_request("one.encode", {"image": pixels(1, *SHAPE)})
    request.inputs[0].parameters["x"].string_param = "x" * 2000
    assert not both.has_plan(request)
    assert (await both.answers(request))[0][0].outputs


async def test_the_number_of_plans_is_bounded_and_a_model_that_is_gone_has_none(loaded, tmp_path):
    path = write_tiny(tmp_path / "gone", shape=SHAPE, dim=DIM)
    both = Both(load_model(open_bundle(path), Device("cpu"), threads=1))
    for rows in range(1, 290):
        assert both.has_plan(infer_request("gone.decode", {"z": latents(rows, DIM)}))
    (plans,) = both.fast.servicer._plans._plans.values()
    assert 0 < len(plans) <= 256
    del plans
    (model,) = both.fast.models
    gone = weakref.ref(model)
    del model
    for running in (both.fast, both.long):
        running.serve(loaded["one/1"])
    gc.collect()
    assert gone() is None
    both.close()


async def test_a_reload_changes_the_model_of_the_next_call(loaded):
    both = Both(loaded["one/1"])
    request = infer_request("one.decode", {"z": latents(1, DIM)})
    first, _ = await both.answers(request)
    for running in (both.fast, both.long):
        running.serve(loaded["one/1"], loaded["one/2"])
    by_plan, at_length = await both.answers(request)
    assert by_plan == at_length
    assert (first[0].model_version, by_plan[0].model_version) == ("1", "2")
    both.close()


def some_request(draw: random.Random) -> pb.ModelInferRequest:
    """A random request, mostly of a valid form."""
    model = draw.choice(["one", "classes", "plain", "raw", "half"] * 3 + ["nope"])
    operation = draw.choice(["encode", "decode"] * 6 + ["score", "fly"])
    rows = draw.choice([1, 2, 3, 5] * 4 + [0])
    free = model in ("raw", "half")
    if operation == "decode":
        shape = draw.choice([(2, 2, 2), (2, 2, 4), (8,)] if free else [(3,), (3,), (3,), (4,)])
        inputs = {"z": latents(rows, *shape)}
    else:
        image = (3, 8, draw.choice([8, 16, 8, 16, 18]))
        shape = image if free else draw.choice([SHAPE, SHAPE, SHAPE[1:], (16,), (4,)])
        dtype = draw.choice([np.float32, np.uint8, np.float32, np.float16])
        inputs = {"image": pixels(rows, *shape, dtype=dtype)}
    if draw.random() < (0.95 if model in ("classes", "plain") else 0.03):
        count = draw.choice([1, rows] * 4 + [2])
        dtype = draw.choice([np.int64, np.int32, np.uint64] * 3 + [np.float32])
        inputs["label"] = RNG.integers(0, draw.choice([4] * 8 + [6]), count).astype(dtype)
        if dtype in (np.int64, np.uint64) and draw.random() < 0.2:
            inputs["label"][-1:] = draw.choice([2**31, 2**63 - 1, np.iinfo(dtype).max])
    names = ["mean", "log_var", "z"] if operation == "encode" else ["image"]
    outputs = draw.sample([*names, *(["other"] * (draw.random() < 0.05))], 1)
    request = infer_request(
        f"{model}.{operation}",
        dict(draw.sample(list(inputs.items()), len(inputs))),
        () if draw.random() < 0.5 else outputs,
        typed=draw.random() < 0.1 and all(v.dtype != np.float16 for v in inputs.values()),
        version=draw.choice([""] * 20 + ["1", "1", "2", "7", "x"]),
        request_id=draw.choice(["", "a"]),
    )
    choices: dict[str, list[Any]] = {
        "format": ["uint8", "float32", "float16", "gif", 1],
        "seed": [1, 2**63, "7", -1],
        "draw": [True, False],
        "label": [0, 9],
        "unclipped": [True],
        "count": [2],
    }
    for name in draw.sample(sorted(choices), draw.choice([0] * 8 + [1, 1, 2])):
        put_parameter(request.parameters[name], draw.choice(choices[name]))
    if "z" in [output.name for output in request.outputs]:
        put_parameter(request.parameters["seed"], 3)
    damage = draw.random()
    if damage < 0.05 and request.raw_input_contents:
        request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    elif damage < 0.1:
        request.raw_input_contents.append(b"")
    elif damage < 0.15:
        request.inputs[0].name = draw.choice(["x", "", "z", "image"])
    return request


async def test_random_requests_have_the_same_answer_with_plans_and_without(both):
    draw = random.Random(5)
    plans = answered = 0
    for _ in range(1500):
        request = some_request(draw)
        if request.parameters.get("draw") is not None and "seed" not in request.parameters:
            put_parameter(request.parameters["seed"], 3)
        plans += both.has_plan(request)
        by_plan, at_length = await both.answers(request)
        assert by_plan == at_length, request
        answered += isinstance(by_plan, set) or isinstance(by_plan[0], pb.ModelInferResponse)
    assert plans > 50
    assert 300 < answered < 1400
