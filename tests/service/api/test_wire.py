"""Large replies are put together from chunks: they must be what protobuf would have written."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.wire import Spliced

IMAGES = pb.SampleResponse.DESCRIPTOR.fields_by_name["images"].number
RESPONSE = pb.SampleStreamResponse.DESCRIPTOR.fields_by_name["response"].number


def spliced(rest: pb.SampleResponse, array: np.ndarray) -> Spliced:
    tensor, payload = codec.bare_tensor(array)
    return Spliced(rest, (IMAGES, *codec.TENSOR_OF_IMAGES), tensor, codec.DATA, payload)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 300),
    pixels=st.integers(1, 900),
    as_bytes=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    latents=st.booleans(),
)
def test_a_spliced_reply_is_the_reply(rows, pixels, as_bytes, seed, latents):
    array = np.zeros((rows, pixels), np.uint8 if as_bytes else np.float32)
    array.reshape(-1)[:: max(1, array.size // 7)] = 1
    rest = pb.SampleResponse(seed=seed, model=pb.ModelIdentity(name="mnist", version=3))
    if latents:
        codec.put_tensor(rest.latents, np.ones((rows, 2), np.float32))
    wanted = pb.SampleResponse()
    wanted.CopyFrom(rest)
    codec.put_tensor(wanted.images.tensor, array)

    chunks = spliced(rest, array).chunks()
    assert pb.SampleResponse.FromString(b"".join(chunks)) == wanted
    assert sum(map(len, chunks)) == wanted.ByteSize()

    message = pb.SampleStreamResponse.FromString(
        b"".join(spliced(rest, array).within(RESPONSE).chunks())
    )
    assert message == pb.SampleStreamResponse(response=wanted)


def test_the_array_is_not_copied():
    array = np.zeros((3, 4), np.float32)
    _, payload = spliced(pb.SampleResponse(), array).chunks()
    assert isinstance(payload, memoryview)
    assert np.shares_memory(np.frombuffer(payload, np.float32), array)


def test_rows_of_a_batch_are_a_whole():
    batch = np.arange(12, dtype=np.float32).reshape(6, 2)
    tensor, payload = codec.bare_tensor(batch[2:4])
    assert tensor == tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=(2, 2))
    assert np.frombuffer(payload, "<f4").tolist() == [4, 5, 6, 7]
