"""ModelInfer computes what the RPCs of LatentService compute, and refuses what they refuse."""

import math
import time
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from latentserve.v1 import latent_service_pb2 as native
from service.api.inference import inference_service_pb2 as pb
from service.api.wire import serialized
from service.engine.call import Call
from service.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ModelNotFound,
    NotForThisModel,
    NotReady,
    ServiceError,
)
from service.models.routes import Route
from tests.service.api.inference.conftest import DIM, SHAPE
from tests.support import stubs
from tests.support.inference import Bfloat16, InProcess, arrays_of, infer_request

RNG = np.random.default_rng(3)
IMAGES = RNG.random((3, *SHAPE), np.float32)
BYTES = RNG.integers(0, 256, (3, *SHAPE), dtype=np.uint8)
LATENTS = RNG.standard_normal((3, DIM)).astype(np.float32)
PHOTOS = RNG.random((2, 3, 8, 16), np.float32)
LABELS = np.array([0, 3, 1])


async def ask(running: InProcess, method: str, request: Any) -> Any:
    """A reply of LatentService."""
    reply = await getattr(running.native, method)(request, Call())
    kind = getattr(native, type(request).__name__.replace("Request", "Response"))
    return kind.FromString(b"".join(serialized(reply)))


def assert_equal(got: dict[str, Any], **wanted: Any) -> None:
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, name)


# --------------------------------------------------------------------- the operations


@pytest.mark.parametrize(("name", "images"), [("one", IMAGES), ("one", BYTES), ("raw", PHOTOS)])
async def test_encode_returns_the_posterior_and_on_request_a_sample(running, name, images):
    request = native.EncodeRequest(images=stubs.images(images), draw=True, seed=7)
    request.model.name = name
    wanted = await ask(running, "encode", request)
    mean, log_var, z = (stubs.array(tensor) for tensor in (wanted.mean, wanted.log_var, wanted.z))
    got = await running.arrays(f"{name}.encode", {"image": images})
    assert_equal(got, mean=mean, log_var=log_var)
    drawn = await running.arrays(f"{name}.encode", {"image": images}, draw=True, seed=7)
    assert_equal(drawn, mean=mean, log_var=log_var, z=z)
    reply = await running.infer(infer_request(f"{name}.encode", {"image": images}, ("z",), seed=7))
    assert_equal(arrays_of(reply), z=z)
    assert reply.parameters["seed"].string_param == "7"


async def test_outputs_come_in_the_order_of_the_request(running):
    for names in (("log_var", "mean"), ("mean",), ("z", "log_var", "mean")):
        got = await running.arrays("one.encode", {"image": IMAGES}, names, seed=1)
        assert tuple(got) == names


@pytest.mark.parametrize(
    ("parameters", "dtype", "image_format"),
    [
        ({}, np.float32, "FLOAT32"),
        ({"format": "uint8"}, np.uint8, "UINT8"),
        ({"format": "FLOAT16"}, np.float16, "FLOAT16"),
        ({"format": "bfloat16"}, np.float32, "BFLOAT16"),
        ({"unclipped": True}, np.float32, "FLOAT32"),
    ],
)
async def test_decode_returns_images_in_the_format_of_the_parameter(
    running, parameters, dtype, image_format
):
    latents = RNG.standard_normal((2, 2, 2, 4)).astype(np.float32)
    request = native.DecodeRequest(latents=stubs.tensor(latents))
    request.model.name, request.unclipped = "raw", bool(parameters.get("unclipped"))
    request.format = native.ImageFormat.Value(f"IMAGE_FORMAT_{image_format}")
    wanted = await ask(running, "decode", request)
    got = await running.arrays("raw.decode", {"z": latents}, **parameters)
    assert got["image"].dtype == dtype
    assert_equal(got, image=stubs.array(wanted.images.tensor))


async def test_halves_and_bytes_are_read_as_the_numbers_that_they_are(running):
    exact = (BYTES // 16).astype(np.float32) / 16  # in both types of 16 bits
    wanted = await running.arrays("one.encode", {"image": exact})
    for given in (exact.astype(np.float16), Bfloat16(exact)):
        assert_equal(await running.arrays("one.encode", {"image": given}), **wanted)
    rounded = LATENTS.astype(np.float16)
    wanted = await running.arrays("one.decode", {"z": rounded.astype(np.float32)})
    assert_equal(await running.arrays("one.decode", {"z": rounded}), **wanted)


async def test_sample_takes_numbers_as_inputs_or_as_parameters(running):
    request = native.SampleRequest(
        count=4, seed=2**64 - 1, offset=2, temperature=0.5, truncation=1.0, return_latents=True
    )
    request.model.name = "one"
    reply = await ask(running, "sample", request)
    wanted = {
        "image": stubs.array(reply.images.tensor),
        "z": stubs.array(reply.latents),
    }
    inputs = {
        "count": np.array([4]),
        "seed": np.array([2**64 - 1], np.uint64),
        "offset": np.array([[2]], np.int32),
        "temperature": np.array([0.5]),
    }
    assert_equal(await running.arrays("one.sample", inputs, truncation=1.0), **wanted)
    more = {"seed": 2**64 - 1, "offset": 2, "temperature": 0.5, "truncation": 1}
    assert_equal(await running.arrays("one.sample", {"count": inputs["count"]}, **more), **wanted)
    text = {name: str(value) for name, value in more.items()} | {"count": "4"}
    assert_equal(await running.arrays("one.sample", {}, **text), **wanted)


async def test_a_drawn_seed_is_told_and_draws_the_same_again(running):
    first = await running.infer(infer_request("one.sample", {"count": np.array([3])}))
    seed = first.parameters["seed"].string_param
    again = await running.infer(infer_request("one.sample", {}, count=3, seed=seed))
    assert again == first
    assert (await running.infer(infer_request("one.sample", {}, count=3))) != first


async def test_reconstruct_and_score_return_what_the_native_calls_do(running):
    request = native.ReconstructRequest(images=stubs.images(IMAGES), draw=True, seed=5)
    request.model.name = "one"
    wanted = await ask(running, "reconstruct", request)
    got = await running.arrays("one.reconstruct", {"image": IMAGES}, draw="true", seed=5)
    assert_equal(got, image=stubs.array(wanted.images.tensor))
    score = native.ScoreRequest(images=stubs.images(IMAGES), draws=4, seed=5, labels=[2])
    score.model.name = "classes"
    scored = await ask(running, "score", score)
    names = ("reconstruction", "kl", "elbo", "nll", "percentile")
    scores = {name: stubs.array(getattr(scored, name)) for name in names}
    got = await running.arrays("classes.score", {"image": IMAGES}, draws=4, seed=5, label=2)
    assert_equal(got, **scores)
    del scores["nll"]
    got = await running.arrays("classes.score", {"image": IMAGES}, label=2)
    assert_equal(got, **scores)


async def test_the_bound_that_is_named_without_a_number_of_draws_takes_sixteen(running):
    named = await running.arrays("one.score", {"image": IMAGES}, ("nll",), seed=5)
    wanted = await running.arrays("one.score", {"image": IMAGES}, ("nll",), seed=5, draws=16)
    assert_equal(named, **wanted)


async def test_labels_of_a_conditional_model_are_an_input_or_one_for_all(running):
    one = await running.arrays("classes.decode", {"z": LATENTS}, label=1)
    other = await running.arrays("classes.decode", {"z": LATENTS}, label=3)
    assert not np.array_equal(one["image"], other["image"])
    for labels in (
        np.array([1]),
        np.array([1, 1, 1]),
        np.array([[1]] * 3),
        np.full(3, 1, np.int32),
    ):
        assert_equal(await running.arrays("classes.decode", {"z": LATENTS, "label": labels}), **one)
        # In any order.
        assert_equal(await running.arrays("classes.decode", {"label": labels, "z": LATENTS}), **one)
    each = await running.arrays("classes.encode", {"image": IMAGES, "label": LABELS})
    for row, label in enumerate(LABELS):
        alone = await running.arrays(
            "classes.encode", {"image": IMAGES[row][None]}, label=int(label)
        )
        np.testing.assert_array_equal(each["mean"][row], alone["mean"][0])
    sampled = await running.arrays("classes.sample", {"label": np.array([2])}, count=3, seed=1)
    assert sampled["label"].tolist() == [2, 2, 2]


async def test_scaled_latents_and_their_type_are_parameters(running):
    plain = await running.arrays("raw.encode", {"image": PHOTOS}, ("mean",))
    scaled = await running.arrays("raw.encode", {"image": PHOTOS}, ("mean",), scaled=True)
    np.testing.assert_allclose(scaled["mean"], (plain["mean"] - 0.25) * 0.5, rtol=1e-5)
    half = await running.arrays("raw.encode", {"image": PHOTOS}, ("mean",), latent_dtype="float16")
    assert_equal(half, mean=plain["mean"].astype(np.float16))


# -------------------------------------------------------------------------- contents


@pytest.mark.parametrize(
    ("model", "inputs", "parameters"),
    [
        ("one.encode", {"image": IMAGES}, {}),
        ("one.encode", {"image": BYTES}, {}),
        ("one.decode", {"z": LATENTS}, {"format": "uint8"}),
        ("classes.encode", {"image": IMAGES, "label": LABELS}, {}),
        ("classes.sample", {"count": np.array([3]), "temperature": np.array([0.5])}, {"seed": 1}),
        ("one.score", {"image": IMAGES}, {}),
    ],
)
async def test_typed_contents_give_the_same_numbers_as_raw_ones(running, model, inputs, parameters):
    raw = await running.infer(infer_request(model, inputs, **parameters))
    typed = await running.infer(infer_request(model, inputs, typed=True, **parameters))
    assert raw.raw_output_contents
    assert all(output.HasField("contents") for output in typed.outputs)
    assert_equal(arrays_of(typed), **arrays_of(raw))


async def test_outputs_without_a_typed_field_are_raw_also_for_typed_inputs(running):
    request = infer_request("one.decode", {"z": LATENTS}, typed=True, format="float16")
    reply = await running.infer(request)
    assert len(reply.raw_output_contents) == 1
    assert arrays_of(reply)["image"].dtype == np.float16


@pytest.mark.parametrize("rows", [1, 150])
async def test_the_reply_repeats_id_and_name_and_tells_the_version(running, rows):
    for request_id in ("", "a", "ä" * 100):
        for draw in (False, True):  # by plan, and at length
            images = np.zeros((rows, *SHAPE), np.uint8)
            request = infer_request(
                "one.encode", {"image": images}, request_id=request_id, draw=draw
            )
            if not draw:
                del request.parameters["draw"]
            reply = await running.infer(request)
            assert reply.id == request_id
            assert (reply.model_name, reply.model_version) == ("one.encode", "2")


# ---------------------------------------------------------------------------- errors

WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("one.encode", {}, {}, "inputs.image: got no such input"),
    ("one.encode", {"z": LATENTS}, {}, "inputs: got 'z', wanted one of image, label"),
    ("one.encode", {"image": IMAGES.astype(np.float64)}, {}, "inputs.image.datatype: got 'FP64'"),
    ("one.decode", {"z": BYTES}, {}, "inputs.z.datatype: got 'UINT8', wanted one of FP32"),
    ("one.encode", {"image": IMAGES[:, :, :2]}, {}, r"inputs.image.shape: got \[3, 1, 2, 4\]"),
    ("one.encode", {"image": IMAGES[:0]}, {}, "inputs.image.shape: got 0 rows"),
    ("one.encode", {"image": IMAGES + 1}, {}, "inputs.image.data: got values from 1"),
    ("one.encode", {"image": IMAGES * math.nan}, {"seed": 1}, "inputs.image.data: got NaN"),
    ("one.decode", {"z": LATENTS * math.inf}, {}, "inputs.z.data: got "),
    ("one.decode", {"z": LATENTS[:, :2]}, {}, r"inputs.z.shape: got \[3, 2\]"),
    ("raw.encode", {"image": PHOTOS[..., :6]}, {}, r"inputs.image.shape: got \[2, 3, 8, 6\]"),
    ("one.encode", {"image": IMAGES}, {"sed": 1}, "parameters.sed: got 1, wanted one of draw, "),
    ("one.encode", {"image": IMAGES}, {"seed": -1}, "parameters.seed: got -1, wanted a whole"),
    ("one.encode", {"image": IMAGES}, {"seed": 2**64 * 10}, "parameters.seed: got "),
    ("one.encode", {"image": IMAGES}, {"seed": True}, "parameters.seed: got True"),
    ("one.encode", {"image": IMAGES}, {"draw": 1}, "parameters.draw: got 1, wanted true or false"),
    ("one.encode", {"image": IMAGES}, {"timeout": -1}, "parameters.timeout: got -1"),
    ("one.encode", {"image": IMAGES}, {"timeout": "soon"}, "parameters.timeout: got 'soon'"),
    ("one.decode", {"z": LATENTS}, {"format": "png"}, "parameters.format: got 'png', wanted"),
    ("one.decode", {"z": LATENTS}, {"format": 2}, "parameters.format: got 2"),
    ("one.decode", {"z": LATENTS}, {"format": "uint8", "unclipped": 1 > 0}, "parameters.format: "),
    ("one.sample", {}, {}, "inputs.count: got 0, wanted 1 to"),
    ("one.sample", {"count": np.array([0])}, {}, "inputs.count: got 0"),
    ("one.sample", {"count": np.array([1, 2])}, {}, r"inputs.count.shape: got \[2\], wanted \[1\]"),
    ("one.sample", {"count": np.float32([1])}, {}, "inputs.count.datatype: got 'FP32'"),
    ("one.sample", {}, {"count": 1.5}, "parameters.count: got 1.5, wanted a whole number"),
    ("one.sample", {}, {"count": 10**6}, "parameters.count: got 1000000, wanted 1 to"),
    ("one.sample", {"seed": np.array([-1])}, {"count": 1}, "inputs.seed: got -1"),
    ("one.sample", {"seed": np.array([1])}, {"count": 1, "seed": 1}, "inputs.seed: got an input"),
    ("one.sample", {"temperature": np.float32([-1])}, {"count": 1}, "inputs.temperature: got -1"),
    ("one.sample", {}, {"count": 1, "temperature": "hot"}, "parameters.temperature: got 'hot'"),
    ("one.sample", {}, {"count": 1, "truncation": 0.0}, "parameters.truncation: got 0"),
    ("raw.sample", {}, {"count": 1, "height": 9, "width": 9}, "parameters.height: got height 9"),
    ("one.score", {"image": IMAGES}, {"draws": 10**6}, "parameters.draws: got 1000000"),
    ("classes.encode", {"image": IMAGES, "label": np.array([0, 1])}, {}, "inputs.label: got 2 lab"),
    ("classes.encode", {"image": IMAGES, "label": LABELS * 4}, {}, r"inputs.label\[1\]: got 12"),
    ("classes.encode", {"image": IMAGES, "label": np.array([2**40])}, {}, "inputs.label: got "),
    ("classes.encode", {"image": IMAGES, "label": LABELS / 2}, {}, "inputs.label.datatype: got"),
    ("classes.encode", {"image": IMAGES, "label": LABELS[None, None]}, {}, "inputs.label.shape: "),
    ("classes.encode", {"image": IMAGES}, {"label": 9}, r"parameters.label\[0\]: got 9"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "parameters", "said"), WRONG)
async def test_an_invalid_request_is_refused_by_the_name_of_its_field(
    running, model, inputs, parameters, said
):
    parameters = {
        name: str(value) if isinstance(value, int) and value >= 2**64 else value
        for name, value in parameters.items()
    }
    with pytest.raises(InvalidArgument, match=f"^{said}") as caught:
        await running.infer(infer_request(model, inputs, **parameters))
    assert str(caught.value).startswith(f"{caught.value.field}: got ")
    assert running.engine.admission.rows == 0


@pytest.mark.parametrize(
    ("model", "inputs", "parameters", "said"),
    [
        ("classes.encode", {"image": IMAGES}, {}, "inputs.label: got none, but classes is"),
        ("one.encode", {"image": IMAGES, "label": LABELS}, {}, "inputs.label: got 3 labels, but"),
        ("one.encode", {"image": IMAGES}, {"label": 1}, "parameters.label: got 1 label, but one"),
        (
            "one.sample",
            {"label": np.array([1])},
            {"count": 1},
            "inputs.label: got 1, but the",
        ),
        ("one.decode", {"z": LATENTS}, {"scaled": True}, "parameters.scaled: "),
        (
            "plain.encode",
            {"image": IMAGES},
            {"draw": True, "label": 0},
            "parameters.draw: plain is",
        ),
    ],
)
async def test_what_a_model_does_not_support_is_a_failed_precondition(
    running, model, inputs, parameters, said
):
    with pytest.raises(NotForThisModel, match=f"^{said}"):
        await running.infer(infer_request(model, inputs, **parameters))


@pytest.mark.parametrize(
    "name",
    [
        *("nope.encode", "one", "", "encode", ".encode", "one.", "one.fly"),
        *("half.encode", "half.score", "half.sample", "half.reconstruct", "plain.score"),
    ],
)
async def test_an_unknown_model_or_operation_is_not_found(running, name):
    with pytest.raises(ModelNotFound, match=f"^model_name: got '{name}', wanted "):
        await running.infer(infer_request(name, {"wrong": IMAGES}, nor="right"))
    for method, kind in (
        ("model_ready", pb.ModelReadyRequest),
        ("model_metadata", pb.ModelMetadataRequest),
        ("model_config", pb.ModelConfigRequest),
    ):
        with pytest.raises(ModelNotFound, match=f"^name: got '{name}', wanted "):
            await getattr(running.servicer, method)(kind(name=name), Call())


@pytest.mark.parametrize("version", ["3", "0", "-1", "x", "1.0", "٣", "9" * 30])
async def test_an_unknown_version_is_not_found(running, version):
    with pytest.raises(ModelNotFound, match=r"^model_version: got '"):
        await running.infer(infer_request("one.encode", {"image": IMAGES}, version=version))


async def test_a_version_that_is_named_answers(running, loaded):
    for version in ("1", "2"):
        request = infer_request("one.encode", {"image": IMAGES}, ("mean",), version=version)
        reply = await running.infer(request)
        assert reply.model_version == version
        alone = InProcess(loaded[f"one/{version}"])
        got = arrays_of(reply)
        assert_equal(got, **await alone.arrays("one.encode", {"image": IMAGES}, ("mean",)))
        alone.close()


def changed(change: Any) -> pb.ModelInferRequest:
    request = infer_request("one.encode", {"image": IMAGES})
    change(request)
    return request


def _twice(request: pb.ModelInferRequest) -> None:
    request.inputs.add(name="image", datatype="FP32", shape=[3, *SHAPE])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _shared_memory(request: pb.ModelInferRequest) -> None:
    request.inputs[0].parameters["shared_memory_region"].string_param = "x"


def _classification(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="mean").parameters["classification"].int64_param = 3


def _typed(**contents: Any) -> Any:
    def change(request: pb.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        request.inputs[0].datatype = contents.pop("datatype", "FP32")
        request.inputs[0].contents.CopyFrom(pb.InferTensorContents(**contents))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.raw_input_contents.append(b""), "raw_input_contents: got 2 of them, wanted 1"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"abc"), "inputs.image.data: got 3 bytes"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1), "inputs.image.contents: got "),
        (_twice, "inputs.image: got two inputs"),
        (lambda r: r.inputs[0].ClearField("name"), r"inputs\[0\].name: got no name"),
        (lambda r: r.inputs[0].ClearField("datatype"), "inputs.image.datatype: got ''"),
        (lambda r: r.inputs[0].ClearField("shape"), r"inputs.image.shape: got \[\]"),
        (lambda r: r.outputs.add(name="nope"), "outputs: got 'nope', wanted one of mean"),
        (lambda r: [r.outputs.add(name="mean") for _ in "12"], "outputs: got mean, mean"),
        (lambda r: r.parameters["seed"], "parameters.seed: got no value"),
        (_shared_memory, "inputs.image.parameters.shared_memory_region: got"),
        (_classification, "outputs.mean.parameters.classification: got"),
        (_typed(fp32_contents=[0.5]), "inputs.image.contents.fp32_contents: got 1 elements"),
        (_typed(int_contents=[1] * 48), "inputs.image.contents: got int_contents, wanted"),
        (_typed(), "inputs.image.contents.fp32_contents: got 0 elements, wanted 48"),
        (_typed(datatype="UINT8", uint_contents=[256] * 48), "inputs.image.contents.uint_con"),
        (_typed(datatype="FP16"), "inputs.image.contents: got no field for FP16"),
        (_typed(datatype="BYTES"), "inputs.image.datatype: got 'BYTES', wanted one of"),
    ],
)  # fmt: skip
async def test_an_invalid_message_is_refused_by_the_name_of_its_field(running, change, said):
    with pytest.raises(InvalidArgument, match=f"^{said}"):
        await running.infer(changed(change))


async def test_other_parameters_of_tensors_are_ignored(running):
    """The size of raw contents, for one, which the client of kserve states."""

    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].parameters["binary_data_size"].int64_param = 192
        request.outputs.add(name="mean").parameters["binary_data"].bool_param = True

    wanted = await running.arrays("one.encode", {"image": IMAGES}, ("mean",))
    assert_equal(arrays_of(await running.infer(changed(change))), **wanted)


@pytest.mark.parametrize(
    ("outputs", "parameters", "said"),
    [
        (("z",), {"draw": False}, "parameters.draw: got False, wanted true for the output z"),
        (("nll",), {"draws": 0}, "parameters.draws: got 0, wanted above 0 for the output nll"),
    ],
)
async def test_an_output_that_a_parameter_leaves_out_is_refused(running, outputs, parameters, said):
    name = "one.encode" if outputs == ("z",) else "one.score"
    with pytest.raises(InvalidArgument, match=said):
        await running.infer(infer_request(name, {"image": IMAGES}, outputs, **parameters))


# ------------------------------------------------------------ deadlines, routes, reloads


async def test_the_parameter_timeout_shortens_the_deadline(running):
    call = Call(deadline=time.monotonic() + 100)
    request = infer_request("one.encode", {"image": IMAGES}, timeout=5_000_000)
    await running.infer(request, call)
    assert call.deadline == pytest.approx(call.arrived + 5, abs=1e-3)
    late = Call(arrived=time.monotonic() - 1)
    with pytest.raises(DeadlineExceeded):
        await running.infer(infer_request("one.encode", {"image": IMAGES}, timeout=1000), late)
    sooner = Call(deadline=time.monotonic() + 1)
    before = sooner.deadline
    await running.infer(request, sooner)
    await running.infer(infer_request("one.encode", {"image": IMAGES}, timeout=0), sooner)
    assert sooner.deadline == before
    assert running.engine.admission.rows == 0


async def test_a_route_chooses_the_version_by_the_seed(running, loaded):
    both = (loaded["one/1"], loaded["one/2"])
    running.serve(*both, routes=MappingProxyType({"one": Route(((1, 50), (2, 50)))}))
    versions = set()
    for seed in range(30):
        call = Call()
        reply = await running.infer(
            infer_request("one.encode", {"image": IMAGES}, ("z",), seed=seed), call
        )
        assert call.routed
        assert str(call.version) == reply.model_version
        versions.add(reply.model_version)
        request = native.EncodeRequest(images=stubs.images(IMAGES), draw=True, seed=seed)
        assert str((await ask(running, "encode", request)).model.version) == reply.model_version
    assert versions == {"1", "2"}
    # Without a seed, by chance: also by plan.
    by_plan = infer_request("one.encode", {"image": IMAGES})
    assert {(await running.infer(by_plan)).model_version for _ in range(40)} == {"1", "2"}


async def test_a_call_tells_metrics_the_name_of_the_native_model_and_its_rows(running):
    for request in (
        infer_request("one.encode", {"image": IMAGES}),
        infer_request("one.encode", {"image": IMAGES}, draw=True),
        infer_request("one.sample", {}, count=3),
    ):
        call = Call()
        await running.infer(request, call)
        assert (call.model, call.version, call.rows) == ("one", 2, 3)
        assert call.timing.batch_rows == 3
    call = Call()
    with pytest.raises(ServiceError):
        await running.infer(infer_request("one.encode", {}), call)
    assert call.model == "one"


async def test_without_a_model_calls_are_unavailable(running):
    running.serve()
    with pytest.raises(NotReady):
        await running.infer(infer_request("one.encode", {"image": IMAGES}))
