"""Rows that are computed one at a time have the same bits wherever their inputs lie in memory."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.models.alignment import copy_at
from service.models.onnx import Device, Graph
from service.models.speed import Speed

_SHAPE = (1, 3, 7, 9)


@pytest.fixture(scope="module")
def content() -> bytes:
    """An InstanceNormalization of the input itself, whose bits depend on the input's address."""
    values = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *_SHAPE[1:]])
        for name in ("x", "y")
    )
    weights = [
        numpy_helper.from_array(np.full(3, value, np.float32), name)
        for name, value in (("scale", 1.1), ("bias", 0.3))
    ]
    node = helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["y"])
    x, y = values
    graph = helper.make_graph([node], "normalization", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_inputs_at_any_address_give_the_same_bits(content: bytes) -> None:
    row = np.random.default_rng(0).random(_SHAPE, np.float32)
    graph = Graph(content, Device("cpu"), threads=1, speed=Speed("cpu", rows_at_once=1))
    answers = {graph.run({"x": copy_at(offset, row)})["y"].tobytes() for offset in range(0, 64, 4)}
    assert len(answers) == 1


def test_a_row_of_several_is_equal_to_the_row_alone(content: bytes) -> None:
    rows = np.random.default_rng(1).random((5, *_SHAPE[1:]), np.float32)
    graph = Graph(content, Device("cpu"), threads=1, speed=Speed("cpu", rows_at_once=1))
    together = graph.run({"x": rows})["y"]
    for index in range(5):
        alone = graph.run({"x": rows[index : index + 1].copy()})["y"]
        assert alone.tobytes() == together[index].tobytes()
