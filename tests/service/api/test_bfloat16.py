"""float32 to bfloat16 and back: rounded half to even, NaN and infinity kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.api.bfloat16 import from_bfloat16, to_bfloat16

ALL = np.arange(2**16, dtype=np.uint32).astype(np.uint16)


def test_every_bfloat16_is_unchanged_by_float32_and_back():
    values = from_bfloat16(ALL)
    back = to_bfloat16(values)
    nan = np.isnan(values)
    np.testing.assert_array_equal(back[~nan], ALL[~nan])
    assert np.isnan(from_bfloat16(back[nan])).all()


@given(hnp.arrays(np.float32, 20, elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_a_value_is_rounded_to_the_nearest_bfloat16(values):
    rounded = from_bfloat16(to_bfloat16(values)).astype(np.float64)
    bits = np.abs(values).view(np.uint32) & np.uint32(0xFFFF_0000)
    below = bits.view(np.float32).astype(np.float64)
    above = (bits + np.uint32(0x1_0000)).view(np.float32).astype(np.float64)
    exact, middle = np.abs(values).astype(np.float64), (below + above) / 2
    even = (bits >> 16) % 2 == 0
    down = (exact < middle) | ((exact == middle) & even)
    np.testing.assert_array_equal(rounded, np.copysign(np.where(down, below, above), values))


def test_values_beyond_the_largest_bfloat16_are_infinite():
    values = np.float32([np.inf, -np.inf, 3.4e38, -3.4e38, 3.38e38])
    wanted = [np.inf, -np.inf, np.inf, -np.inf, 3.3762384e38]
    np.testing.assert_allclose(from_bfloat16(to_bfloat16(values)), wanted, rtol=1e-6)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF])
def test_nan_stays_nan_whatever_its_bits(bits):
    values = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(to_bfloat16(values))).all()


def test_shapes_and_strided_arrays_are_kept():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::2, ::-1]
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), values)
