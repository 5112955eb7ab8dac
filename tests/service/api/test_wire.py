"""Replies assembled from chunks: the bytes are those that protobuf would have written."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.wire import Chunks, nested, tag, varint, with_payload

IMAGES = pb.SampleResponse.DESCRIPTOR.fields_by_name["images"].number
RESPONSE = pb.SampleStreamResponse.DESCRIPTOR.fields_by_name["response"].number


def assembled(rest: pb.SampleResponse, array: np.ndarray) -> Chunks:
    tensor, payload = codec.bare_tensor(array)
    return with_payload(rest, (IMAGES, *codec.TENSOR_OF_IMAGES), tensor, codec.DATA, payload)


@settings(max_examples=60)
@given(
    rows=st.integers(1, 300),
    pixels=st.integers(1, 900),
    as_bytes=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    latents=st.booleans(),
)
def test_an_assembled_reply_parses_to_the_whole_reply(rows, pixels, as_bytes, seed, latents):
    array = np.zeros((rows, pixels), np.uint8 if as_bytes else np.float32)
    array.reshape(-1)[:: max(1, array.size // 7)] = 1
    rest = pb.SampleResponse(seed=seed, model=pb.ModelIdentity(name="mnist", version=3))
    if latents:
        codec.put_tensor(rest.latents, np.ones((rows, 2), np.float32))
    wanted = pb.SampleResponse()
    wanted.CopyFrom(rest)
    codec.put_tensor(wanted.images.tensor, array)

    chunks = assembled(rest, array)
    assert pb.SampleResponse.FromString(b"".join(chunks)) == wanted
    assert sum(map(len, chunks)) == wanted.ByteSize()

    message = pb.SampleStreamResponse.FromString(b"".join(nested(RESPONSE, chunks)))
    assert message == pb.SampleStreamResponse(response=wanted)


def test_the_payload_is_a_view_of_the_array():
    array = np.zeros((3, 4), np.float32)
    _, payload = assembled(pb.SampleResponse(), array)
    assert isinstance(payload, memoryview)
    assert np.shares_memory(np.frombuffer(payload, np.float32), array)


def test_rows_of_a_batch_are_sent_as_a_tensor_of_their_own():
    batch = np.arange(12, dtype=np.float32).reshape(6, 2)
    tensor, payload = codec.bare_tensor(batch[2:4])
    assert tensor == tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=(2, 2))
    assert np.frombuffer(payload, "<f4").tolist() == [4, 5, 6, 7]


@given(field=st.integers(1, 2**29 - 1), content=st.binary(max_size=300))
def test_a_tag_with_its_length_makes_the_bytes_after_it_a_field(field, content):
    parsed = pb.EncodeRequest.FromString(tag(field, len(content)) + content if field > 9 else b"")
    assert parsed.ByteSize() == (len(tag(field, len(content)) + content) if field > 9 else 0)


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_what_protobuf_writes(value):
    written = pb.EncodeRequest(seed=value).SerializeToString()
    assert written[-len(varint(value)) :] == varint(value)
    assert len(written) == 1 + len(varint(value))
