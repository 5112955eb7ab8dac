"""The IDX parser, on whole, cut, damaged and arbitrary files."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.training.data.tiny_source import GZIPPED, idx
from training.data.idx import open_idx, parse_idx, unpack
from training.errors import DataError, DataMissing


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=7)))
def test_idx_round_trip(array: NDArray[np.uint8]) -> None:
    parsed = parse_idx(idx(array), "file")
    assert parsed.dtype == np.uint8
    assert parsed.shape == array.shape
    assert parsed.tobytes() == array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=5)), st.data())
def test_any_truncation_of_an_idx_file_is_refused_and_names_the_file(
    array: NDArray[np.uint8], data: st.DataObject
) -> None:
    raw = idx(array)
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(DataError, match=r"somewhere/images"):
        parse_idx(raw[:cut], "somewhere/images")


@settings(max_examples=300)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=3)),
    st.none() | st.tuples(st.integers(0, 20), st.integers(0, 2), st.binary(max_size=2)),
)
def test_an_edited_file_is_read_where_its_size_is_that_of_its_header_and_else_refused(
    array: NDArray[np.uint8], edit: tuple[int, int, bytes] | None
) -> None:
    raw = idx(array)
    if edit is not None:
        at, removed, text = edit
        raw = raw[:at] + text + raw[at + removed :]
    header = 4 + 4 * raw[3] if len(raw) > 3 else 4
    axes = struct.unpack(f">{raw[3]}I", raw[4:header]) if 4 < header <= len(raw) else ()
    if axes and raw[:3] == b"\0\0\x08" and len(raw) == header + math.prod(axes):
        assert idx(parse_idx(raw, "file")) == raw
    else:
        assert edit is not None
        with pytest.raises(DataError, match="file: "):
            parse_idx(raw, "file")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x01\x00\x08\x01\x00\x00\x00\x01a", "not an IDX file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", "element type 0x0d, wanted 0x08"),
        (b"\x00\x00\x08\x02\x00\x00\x00\x01", "header is cut short"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02a", r"9 bytes, wanted 10 for shape \[2\]"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02abc", r"11 bytes, wanted 10 for shape \[2\]"),
    ],
    ids=["magic", "type", "header", "short", "long"],
)
def test_damaged_idx_is_refused_with_file_got_and_wanted(
    raw: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "images-idx"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        open_idx(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "shape",
    [(1,) * 70, (0, 2**32 - 1, 2**32 - 1, 2**32 - 1)],
    ids=["more axes than NumPy has", "larger than memory"],
)
def test_a_header_that_numpy_cannot_hold_is_a_data_error(shape: tuple[int, ...]) -> None:
    raw = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + b"a" * (0 not in shape)
    with pytest.raises(DataError, match="somewhere/images"):
        parse_idx(raw, "somewhere/images")


def test_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=f"{tmp_path}/nothing"):
        open_idx(tmp_path / "nothing")


def test_idx_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}: Is a directory") as caught:
        open_idx(tmp_path)
    assert not isinstance(caught.value, DataMissing)


@given(st.data())
def test_damaged_gzip_is_refused_and_names_the_file(data: st.DataObject) -> None:
    raw = GZIPPED["t10k-images-idx3-ubyte.gz"]
    cut = data.draw(st.integers(2, len(raw) - 1))
    with pytest.raises(DataError, match=r"somewhere\.gz: damaged gzip"):
        unpack(raw[:cut], "somewhere.gz")
    # A wrong byte in the compressed data or in the checksum after it.
    at = data.draw(st.integers(20, len(raw) - 1))
    with pytest.raises(DataError, match=r"somewhere\.gz: damaged gzip"):
        unpack(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :], "somewhere.gz")
