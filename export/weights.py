"""Weights of half as many bytes: rounded to fp16 and stored so, while graphs compute in fp32.

A runtime turns the weights back into fp32 as it loads a graph, so that a call is as fast as
before. This differs from a decoder in fp16, which rounds what it computes, too.
"""

import copy
from typing import Literal, get_args

import numpy as np
import onnx
import torch

from training.model.vae import Vae

Weights = Literal["fp32", "fp16"]

WEIGHTS: tuple[Weights, ...] = get_args(Weights)

# Smaller tensors stay in fp32: a node for each would take as many bytes as are saved.
_LEAST_VALUES = 256


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


def halve(content: bytes) -> bytes:
    """Stores those weights of a graph in fp16 that are the same numbers in fp16.

    Args:
        content: Content of an ONNX file in fp32.

    Returns:
        The content of a file whose graph gives the same outputs, to the bit.
    """
    model = onnx.load_from_string(content)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        half = values.astype(np.float16)
        if values.size < _LEAST_VALUES or not np.array_equal(half.astype(np.float32), values):
            continue
        name, stored = tensor.name, f"{tensor.name}_fp16"
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()
