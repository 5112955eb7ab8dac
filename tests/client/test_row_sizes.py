"""What fits into a message of a model of free size, and servers that are too old for an option."""

import io
from datetime import UTC, datetime

import grpc
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from latentserve._client import chunks, codec, describe, unary, ways
from latentserve._client.describe import Limits, Maxima
from latentserve.client import FailedPrecondition, ModelInfo, NotFound, ProtocolError, Sizes
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

#: Of 16 x 16 pixels: 4 * (3 * 256 + 3 * 32) bytes.
GOLDEN_BYTES = 3456


def model(**changes):
    """A model of free size: images of 3 channels, latents of 2 at a quarter of the size."""
    fields = dict.fromkeys(ModelInfo.__dataclass_fields__, "")
    fields |= {
        "image_shape": (3, 16, 16), "latent_dim": 32, "latent_shape": (2, 4, 4),
        "sizes": Sizes(4, 8, 16, 2**16), "max_rows": 100, "created_at": datetime.now(UTC),
    }  # fmt: skip
    return ModelInfo(**(fields | changes))


def file_of(height, width, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, kind)
    return buffer.getvalue()


def fitting(rows, message_bytes, served=None, **options):
    served = served or model()
    pixels = describe.message_pixels(served, message_bytes)
    return chunks.chunk(rows, 0, Maxima(100, message_bytes, served, pixels), **options).stop


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_larger_image_takes_more_bytes(factor):
    height, width = 16 * factor, 16
    images = np.zeros((50, 3, height, width), np.uint8)
    latents = np.zeros((50, 2, height // 4, width // 4), np.float32)
    row = factor * GOLDEN_BYTES
    for count in (1, 7):
        for message_bytes in (count * row, (count + 1) * row - 1):
            assert fitting(images, message_bytes) == count
            assert fitting(images[:, 0], message_bytes) == count
            assert fitting(latents, message_bytes, latents=True) == count
            assert fitting(range(50), message_bytes, size=(height, width)) == count
            for kind in ("PNG", "JPEG", "WEBP"):
                assert fitting([file_of(height, width, kind)] * 50, message_bytes) == count


def test_rows_without_a_size_have_the_stated_one():
    for rows in (np.zeros((50, 768)), np.zeros((50, 32)), range(50), [b"no picture"] * 50):
        assert fitting(rows, 7 * GOLDEN_BYTES) == 7


def test_a_file_counts_with_the_size_that_it_may_be_resized_to():
    assert fitting([file_of(3, 3)] * 50, 7 * GOLDEN_BYTES) == 7
    assert fitting([file_of(10, 17)] * 50, 7 * GOLDEN_BYTES) == 7 * 256 // (16 * 24)
    assert fitting([file_of(2000, 100)] * 3, 256 * GOLDEN_BYTES) == 1
    assert fitting([file_of(2000, 100)] * 50, 7 * GOLDEN_BYTES, size=(16, 16)) == 7


def test_one_row_is_always_sent_and_the_rows_of_a_message_are_bounded():
    assert fitting(np.zeros((50, 3, 64, 64), np.uint8), 10) == 1
    assert fitting(np.zeros((200, 3, 16, 16), np.uint8), 10**9) == 100


def test_a_message_has_no_more_pixels_than_a_deadline_permits():
    assert fitting(np.zeros((9, 3, 512, 512), np.uint8), 10**9) == 2
    assert fitting(np.zeros((9, 3, 1024, 1024), np.uint8), 10**9) == 1
    fixed = model(
        sizes=None, image_shape=(3, 512, 512), latent_shape=(2, 64, 64), latent_dim=2 * 64 * 64
    )
    for rows in (np.zeros((9, 3, 512, 512), np.uint8), range(9), [file_of(512, 512)] * 9):
        assert fitting(rows, 10**9, fixed) == 2
    latents = np.zeros((9, 2, 64, 64), np.float32)
    assert fitting(latents, 10**9, fixed, latents=True) == 2


def outcome(plan, *replies):
    """Runs a plan with replies; returns the requests that it made and its result."""
    requests, answers = [], iter(replies)
    try:
        step = next(plan)
        while True:
            requests.append(step.request)
            step = plan.send(next(answers))
    except StopIteration as end:
        return requests, end.value


def described(**fields):
    return pb.GetModelResponse(model=pb.ModelInfo(latent_dim=3, max_rows=5, **fields))


Z = np.zeros((1, 3), np.float32)


@pytest.mark.parametrize(
    ("plan", "option"),
    [
        (lambda limits: unary.encode(limits, Z, scaled=True), "scaled"),
        (lambda limits: unary.encode(limits, Z, latent_dtype="float16"), "latent_dtype"),
        (lambda limits: unary.encode(limits, [b"file"], resize=(8, 8)), "resize"),
        (lambda limits: unary.decode(limits, Z, scaled=True), "scaled"),
        (lambda limits: unary.decode(limits, Z, unclipped=True), "unclipped"),
        (lambda limits: unary.reconstruct(limits, Z, unclipped=True), "unclipped"),
        (lambda limits: unary.sample(limits, 1, size=(8, 8)), "size"),
        (lambda limits: ways.interpolate(limits, Z[0], Z[0], scaled=True), "scaled"),
        (lambda limits: ways.traverse(limits, 0, latent_dtype="bfloat16"), "latent_dtype"),
    ],
)
def test_an_old_server_is_not_sent_options_that_it_would_ignore(plan, option):
    with pytest.raises(FailedPrecondition, match=f"^{option}: the server is older than 0.2.0"):
        outcome(plan(Limits()), described())


def test_a_new_server_is_sent_them():
    limits = Limits()
    reply = pb.DecodeResponse()
    reply.images.tensor.CopyFrom(codec.to_tensor(np.zeros((1, 1, 2, 2), np.float32)))
    plan = unary.decode(limits, Z, scaled=True, unclipped=True, quality=7)
    (_, request), images = outcome(plan, described(latent_shape=[3]), reply)
    assert (request.scaled, request.unclipped, request.quality) == (True, True, 7)
    assert images.shape == (1, 1, 2, 2)
    # Its description is cached.
    requests, _ = outcome(unary.decode(limits, Z, scaled=True), reply)
    assert len(requests) == 1


def test_an_old_server_describes_flat_latents():
    info = describe.read_model_info(described(labels=["a", "b"], prior_mean=[1, 2, 3]).model)
    assert (info.latent_shape, info.sizes, info.latent_scaling) == ((3,), None, None)
    assert (info.prior_mean, info.prior_std) == ((1, 2, 3), (1, 1, 1))
    assert info.class_names == ("a", "b")


def test_a_new_server_describes_sizes_scaling_and_origin():
    message = described(latent_shape=[1, 1, 3], class_names=["a"]).model
    message.sizes.factor = 8
    message.latent_scaling.mean.extend([1, 2])
    message.latent_scaling.std.extend([3, 4])
    message.origin.kind = "diffusers"
    message.origin.sha256["a"] = "f" * 64
    info = describe.read_model_info(message)
    assert info.sizes.factor == 8
    scaling = info.latent_scaling
    assert (scaling.scale, scaling.mean, scaling.std) == (None, (1, 2), (3, 4))
    assert (info.origin.kind, info.origin.sha256) == ("diffusers", {"a": "f" * 64})


def decoded(rows, version):
    reply = pb.DecodeResponse(model=pb.ModelIdentity(name="m", version=version))
    reply.images.tensor.CopyFrom(codec.to_tensor(np.full((rows, 1, 2, 2), version, np.float32)))
    return reply


def test_all_chunks_of_a_decoding_are_answered_by_the_version_of_the_first():
    plan = unary.decode(Limits(), np.zeros((12, 3), np.float32))
    requests, images = outcome(plan, described(), decoded(5, 2), decoded(5, 2), decoded(2, 2))
    assert [request.model.version for request in requests[1:]] == [0, 2, 2]
    assert len(images) == 12


def test_a_version_that_is_replaced_between_two_chunks_is_not_insisted_on():
    plan = unary.decode(Limits(), np.zeros((12, 3), np.float32))
    next(plan)
    assert plan.send(described()).request.model.version == 0
    assert plan.send(decoded(5, 2)).request.model.version == 2
    gone = NotFound("m/2 is not served", grpc.StatusCode.NOT_FOUND)
    assert plan.throw(gone).request.model.version == 0
    assert plan.send(decoded(5, 3)).request.model.version == 0
    with pytest.raises(StopIteration):
        plan.send(decoded(2, 3))
    plan = unary.decode(Limits(), np.zeros((12, 3), np.float32), version=2)
    next(plan)
    plan.send(described())
    with pytest.raises(NotFound):
        plan.throw(gone)


def test_bfloat16_is_the_upper_half_of_a_float32():
    values = np.array([[0, -0.0, 1, -2.5, 3e38, 1e-40, np.inf]], np.float32)
    array = values.astype(ml_dtypes.bfloat16)
    tensor = codec.to_tensor(array[:, ::-1])
    assert (tensor.dtype, len(tensor.data)) == (tensor_pb2.DATA_TYPE_BFLOAT16, 14)
    back = codec.to_array(tensor)
    assert back.dtype == np.float32
    assert back.tobytes() == array[:, ::-1].astype(np.float32).tobytes()
    tensor.data = tensor.data[:-1]
    with pytest.raises(ProtocolError, match="do not match shape"):
        codec.to_array(tensor)
