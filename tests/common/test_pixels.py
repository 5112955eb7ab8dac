"""Conversion of pixels between bytes and floats."""

import numpy as np

from common.pixels import to_bytes, to_unit

EVERY_BYTE = np.arange(256, dtype=np.uint8)


def test_every_byte_survives_a_round_trip_through_float():
    unit = to_unit(EVERY_BYTE)
    assert unit.dtype == np.float32
    assert unit[0] == 0.0
    assert unit[-1] == 1.0
    assert (np.diff(unit) > 0).all()
    assert to_bytes(unit).tolist() == EVERY_BYTE.tolist()


def test_floats_become_the_nearest_byte():
    given = np.float32([[0.0, 0.499 / 255, 0.501 / 255], [254.4 / 255, 254.6 / 255, 1.0]])
    assert to_bytes(given).tolist() == [[0, 0, 1], [254, 255, 255]]


def test_to_bytes_keeps_its_input_unless_it_may_overwrite_it():
    given = np.float32([0.25, 0.5])
    to_bytes(given)
    assert given.tolist() == [0.25, 0.5]
    assert to_bytes(given, overwrite=True).tolist() == to_bytes(np.float32([0.25, 0.5])).tolist()
    assert given.tolist() != [0.25, 0.5]
