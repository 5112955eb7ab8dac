"""Tensors between the client's and the server's codec: what is sent, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
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


FAULTS = ("dtype", "rows", "too many rows", "axes", "bytes", "range", "NaN")


@st.composite
def tensors(draw, row_shapes, dtypes, least: float, most: float):
    """A tensor of 1 to 10 rows, its array, and the fault it has; half have none."""
    array = draw(
        st.tuples(st.sampled_from(dtypes), st.integers(1, 10), st.sampled_from(row_shapes)).flatmap(
            lambda drawn: hnp.arrays(
                drawn[0],
                (drawn[1], *drawn[2]),
                elements=None if drawn[0] is np.uint8 else st.floats(least, most, width=16),
            )
        )
    )
    fault = draw(st.none() | st.sampled_from(FAULTS))
    if fault in ("range", "NaN") and array.dtype == np.uint8:
        fault = None  # every value is valid
    if fault == "too many rows":
        array = np.zeros((11, *array.shape[1:]), array.dtype)
    elif fault in ("range", "NaN"):
        wrong = np.nan if fault == "NaN" else draw(st.sampled_from([np.inf, -np.inf]))
        array.flat[draw(st.integers(0, array.size - 1))] = wrong
    tensor = client_codec.to_tensor(array)
    if fault == "dtype":
        # The bytes of a tensor may be read as another dtype of the same width: that is no fault.
        same_width = {2, 4} if array.dtype == np.float16 else {tensor.dtype}
        others = {-1, 0, 1, 2, 3, 4, 9} - same_width
        tensor.dtype = draw(st.sampled_from(sorted(others)))
    elif fault == "rows":
        others = {-1, 0, 1, array.shape[0] + 1, 2**40} - {array.shape[0]}
        tensor.shape[0] = draw(st.sampled_from(sorted(others)))
    elif fault == "axes":
        tensor.shape[:] = draw(
            st.sampled_from([[], array.shape[:-1], [*array.shape, 1], [2, *array.shape]])
        )
    elif fault == "bytes":
        data = tensor.data
        tensor.data = draw(st.sampled_from([b"", data[:-1], data + b"?", data * 2]))
    return tensor, array, fault


@settings(max_examples=300)
@given(tensors([SHAPE, SHAPE[1:], (24,)], [np.float32, np.float16, np.uint8], 0.0, 1.0))
def test_valid_images_are_read_as_sent_and_any_fault_is_refused(sent):
    tensor, array, fault = sent
    images = tensor_pb2.Images(tensor=tensor)
    if fault is None:
        read = codec.read_images(images, "images", SHAPE, 10)
        assert (read == array.reshape(-1, *SHAPE)).all()
        assert read.dtype == (np.uint8 if array.dtype == np.uint8 else np.float32)
    else:
        with pytest.raises(InvalidArgument, match=r"images\.tensor\."):
            codec.read_images(images, "images", SHAPE, 10)


@settings(max_examples=300)
@given(tensors([(3,)], [np.float32, np.float16], -60_000, 60_000))
def test_valid_latents_are_read_as_sent_and_any_fault_is_refused(sent):
    tensor, array, fault = sent
    if fault is None:
        assert (codec.read_latents(tensor, "latents", (3,), 10) == array).all()
    else:
        with pytest.raises(InvalidArgument, match=r"latents\."):
            codec.read_latents(tensor, "latents", (3,), 10)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (tensor_pb2.Tensor(dtype=9, shape=[2], data=b"12"), "dtype 9"),
        (tensor_pb2.Tensor(dtype=3, shape=[2], data=b"123"), "3 bytes"),
    ],
)
def test_a_malformed_tensor_of_a_reply_is_a_protocol_error(tensor, message):
    with pytest.raises(ProtocolError, match=message):
        client_codec.to_array(tensor)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 4, 6), np.int64), TypeError, "int64"),
        (np.zeros((2, 4, 6), bool), TypeError, "bool"),
        (np.zeros(24, np.float32), ValueError, r"shape \[24\]"),
        (np.zeros((0, 4, 6), np.float32), ValueError, "no rows"),
        (np.array(["a"]), TypeError, "text"),
    ],
)
def test_invalid_images_are_refused_before_a_call(images, error, message):
    with pytest.raises(error, match=message):
        client_codec.image_source(images)


def _images(array):
    return tensor_pb2.Images(tensor=client_codec.to_tensor(array))
