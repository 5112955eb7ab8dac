import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latentserve._client import codec as client_codec
from latentserve.errors import ProtocolError
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.errors import InvalidArgument

SHAPE = (1, 4, 6)
dtypes = st.sampled_from([np.float32, np.float16, np.uint8])
shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)
units = st.floats(0, 1, width=16)


@given(dtypes.flatmap(lambda dtype: hnp.arrays(dtype, shapes)))
def test_the_client_reads_back_what_it_writes(array):
    back = client_codec.to_array(client_codec.to_tensor(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(st.sampled_from([np.float32, np.uint8]), shapes))
def test_the_client_reads_back_what_the_server_writes(array):
    tensor = tensor_pb2.Tensor()
    codec.put_tensor(tensor, array)
    back = client_codec.to_array(tensor)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape


@given(
    st.integers(1, 5),
    st.sampled_from([SHAPE, SHAPE[1:], (24,)]),
    st.sampled_from([np.float32, np.float16, np.float64]),
    st.data(),
)
def test_float_images_of_every_accepted_shape_arrive_as_they_are(rows, shape, dtype, data):
    images = data.draw(hnp.arrays(dtype, (rows, *shape), elements=units))
    sent = client_codec.image_source(images).message(slice(0, rows))
    read = codec.read_images(sent, "images", SHAPE, 10)
    assert read.dtype == np.float32
    assert (read == images.reshape(rows, *SHAPE).astype(np.float32)).all()


@given(hnp.arrays(np.uint8, (3, 4, 6)))
def test_uint8_images_arrive_as_they_are(images):
    read = codec.read_images(_images(images), "images", SHAPE, 10)
    assert read.dtype == np.uint8
    assert (read == images.reshape(3, *SHAPE)).all()


def test_big_endian_and_strided_arrays_are_sent_as_their_values():
    array = np.arange(24, dtype=">f4").reshape(4, 6)[:, ::2]
    assert (client_codec.to_array(client_codec.to_tensor(array)) == array).all()


@given(st.binary(max_size=64), st.lists(st.integers(-3, 9), max_size=5), st.integers(-1, 9))
def test_whatever_tensor_comes_the_answer_is_an_array_or_invalid_argument(data, shape, dtype):
    tensor = tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)
    images = tensor_pb2.Images(tensor=tensor)
    for read in (
        lambda: codec.read_images(images, "images", SHAPE, 10),
        lambda: codec.read_latents(tensor, "latents", 3, 10),
    ):
        try:
            rows = len(read())
        except InvalidArgument:
            continue
        assert 1 <= rows <= 10


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (tensor_pb2.Tensor(dtype=9, shape=[2], data=b"12"), "dtype 9"),
        (tensor_pb2.Tensor(dtype=3, shape=[2], data=b"123"), "3 bytes"),
    ],
)
def test_a_reply_that_makes_no_sense_is_a_protocol_error(tensor, message):
    with pytest.raises(ProtocolError, match=message):
        client_codec.to_array(tensor)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 4, 6), np.int64), TypeError, "int64"),
        (np.zeros((2, 4, 6), bool), TypeError, "bool"),
        (np.zeros(24, np.float32), ValueError, r"shape \[24\]"),
        (np.zeros((0, 4, 6), np.float32), ValueError, "no rows"),
        (np.array(["a"]), ValueError, "shape"),
    ],
)
def test_arrays_that_cannot_be_sent_are_refused_before_they_are(images, error, message):
    with pytest.raises(error, match=message):
        client_codec.image_source(images)


def _images(array):
    return tensor_pb2.Images(tensor=client_codec.to_tensor(array))
