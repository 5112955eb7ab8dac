"""Weights of about half as many bytes: rounded to fp16 and stored so, while graphs compute in fp32.

A runtime turns the weights back into fp32 as it loads a graph, so that a call is as fast as
before. This differs from a decoder in fp16, which rounds what it computes, too. The Cholesky
factors of a prior's mixture, which are computed from weights, stay in fp32 without their zeros.
"""

import copy
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from training.model.vae import Vae

# Smaller tensors are left as they are: the nodes would take as many bytes as are saved.
_LEAST_VALUES = 256
_LEAST_ROWS = 32


def round_weights(model: Vae) -> Vae:
    """Copies a model with all weights rounded to the nearest fp16; they stay float32 in torch.

    A weight beyond the range of fp16 becomes infinite.
    """
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*rounded.parameters(), *rounded.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())
    return rounded


def shrink(content: bytes) -> bytes:
    """Stores the weights of a graph in fewer bytes.

    Those that are the same numbers in fp16 are stored in fp16, and lower triangular matrices
    without their zeros.

    Args:
        content: Content of an ONNX file in fp32.

    Returns:
        The content of a file whose graph gives the same outputs, to the bit.
    """
    model = onnx.load_from_string(content)
    added: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < _LEAST_VALUES:
            continue
        name = tensor.name
        half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_fp16"))
            added.append(_node("Cast", [tensor.name], name, to=onnx.TensorProto.FLOAT))
        elif (triangles := _triangles(values)) is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array(_packed(triangles), f"{name}_packed"))
            nodes, needed = _unpacking(name, triangles.shape, values.ndim)
            added += nodes
            constants += needed
    nodes = [*added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    return model.SerializeToString()


def _triangles(values: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Lower triangular matrices [K, D, D] that a weight holds; None if it holds others.

    They are the weight itself, or, of a weight [D, K * D], its transposed parts.
    """
    rows = values.shape[-1 if values.ndim == 3 else 0]
    if values.ndim not in (2, 3) or rows < _LEAST_ROWS or values.size % rows**2:
        return None
    matrices = (values if values.ndim == 3 else values.T).reshape(-1, rows, rows)
    return None if np.triu(matrices, 1).any() else matrices


def _packed(triangles: NDArray[np.float32]) -> NDArray[np.float32]:
    """The triangles of matrices [K, D, D], row by row, and a zero: [K, D * (D + 1) / 2 + 1]."""
    rows, columns = np.tril_indices(triangles.shape[-1])
    return np.pad(triangles[:, rows, columns], ((0, 0), (0, 1)))


def _unpacking(
    name: str, shape: tuple[int, ...], axes: int
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that compute a weight from its packed triangles, and the constants that they read."""
    dim = shape[-1]
    row = np.arange(dim)
    constants = {
        "row": row[:, None],
        "start": (row * (row + 1) // 2)[:, None],
        "column": row[None],
        "zero": np.array(dim * (dim + 1) // 2),
        "flat": np.array([-1, dim]),
    }
    if axes == 3:
        del constants["flat"]
    of = {key: f"{name}_{key}" for key in (*constants, "index", "above", "place", "blocks", "rows")}
    matrices = of["blocks"] if axes == 2 else name
    nodes = [
        _node("Add", [of["start"], of["column"]], of["index"]),
        _node("Greater", [of["column"], of["row"]], of["above"]),
        _node("Where", [of["above"], of["zero"], of["index"]], of["place"]),
        _node(
            "Gather", [f"{name}_packed", of["place"]], of["blocks"] if axes == 2 else name, axis=1
        ),
    ]
    if axes == 2:
        nodes += [
            _node("Reshape", [matrices, of["flat"]], of["rows"]),
            _node("Transpose", [of["rows"]], name, perm=[1, 0]),
        ]
    return nodes, [onnx.numpy_helper.from_array(value, of[key]) for key, value in constants.items()]


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return onnx.helper.make_node(operator, inputs, [output], **attributes)
