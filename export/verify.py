"""Proves that the graphs are what the torch model is, or fails the export."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from export.errors import ExportError
from export.graphs import OPSET, ExportedGraph
from service.runtime import Device, Graph

Array = NDArray[np.float32]

BATCHES = (1, 2, 3, 64)

#: Operators a graph may hold: deterministic, row by row, in the standard domain.
#: Absent on purpose: random operators, what mixes rows, and Elu, Log, Selu, Mish and
#: Softplus, whose bits depend on a row's place in the batch.
ALLOWED_OPERATORS = frozenset(
    """
    Abs Add Cast Clip Concat Constant Conv Div Erf Exp Expand Flatten Gemm Greater Identity
    LeakyRelu MatMul Max Min Mul Neg Pow Reciprocal Relu Reshape Shape Sigmoid Slice Split Sqrt
    Squeeze Sub Sum Tanh Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - a column of quoted words reads worse
)


def check_structure(graph: ExportedGraph) -> None:
    """Checks a graph as ONNX, without running it.

    Raises:
        ExportError: The checker or shape inference complains, an operator is not on
            the list, the opset is another, or the batch axis is not dynamic.
    """
    model = onnx.load_from_string(graph.content)
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(f"{graph.name}: the ONNX checker refuses it: {error}") from error
    domains = {opset.domain: opset.version for opset in model.opset_import}
    if domains != {"": OPSET}:
        raise ExportError(f"{graph.name}: opsets {domains}, wanted {{'': {OPSET}}}")
    if foreign := sorted({node.op_type for node in model.graph.node} - ALLOWED_OPERATORS):
        raise ExportError(f"{graph.name}: operators {foreign} are not on the list of allowed ones")
    names = (
        tuple(value.name for value in model.graph.input),
        tuple(value.name for value in model.graph.output),
    )
    if names != (graph.inputs, graph.outputs):
        raise ExportError(f"{graph.name}: tensors {names}, wanted {graph.inputs, graph.outputs}")
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ExportError(f"{graph.name}: {value.name}: wanted float32")
        axes = value.type.tensor_type.shape.dim
        if not axes or not axes[0].dim_param or any(axis.dim_param for axis in axes[1:]):
            raise ExportError(f"{graph.name}: {value.name}: wanted the first axis alone dynamic")


def measure_parity(graph: ExportedGraph, inputs: Array) -> dict[str, float]:
    """Compares torch and onnxruntime at every size of `BATCHES`.

    Args:
        graph: The graph.
        inputs: At least as many rows as the largest batch.

    Returns:
        The largest absolute difference of each output, as "graph.output".

    Raises:
        ExportError: onnxruntime cannot run a batch, or answers in another shape.
    """
    session = Graph(graph.content, Device("cpu"))
    worst = {f"{graph.name}.{output}": 0.0 for output in graph.outputs}
    for batch in BATCHES:
        rows = inputs[:batch]
        with torch.inference_mode():
            wanted = graph.module(torch.from_numpy(rows))
        try:
            answers = session.run({graph.inputs[0]: rows})
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"{graph.name}: cannot run a batch of {batch}: {error}") from error
        for output, reference in zip(graph.outputs, wanted, strict=True):
            if answers[output].shape != tuple(reference.shape):
                raise ExportError(
                    f"{graph.name}.{output}: onnxruntime answers {list(answers[output].shape)}, "
                    f"torch {list(reference.shape)}"
                )
            difference = np.max(np.abs(answers[output] - reference.numpy()))
            key = f"{graph.name}.{output}"
            # np.maximum keeps a NaN; max() might drop it.
            worst[key] = float(np.maximum(worst[key], difference))
    return worst


def check_parity(differences: Mapping[str, float], tolerance: float) -> None:
    """Fails where torch and onnxruntime are too far apart.

    Raises:
        ExportError: A difference is above the tolerance, or NaN.
    """
    for key, difference in differences.items():
        if not difference <= tolerance:
            raise ExportError(
                f"{key}: torch and onnxruntime differ by {difference:.3g}, wanted at most "
                f"{tolerance:g}"
            )


def check_batch_invariance(graph: ExportedGraph, inputs: Array) -> None:
    """Fails where a row's bits depend on the batch it ran in or on the threads, on CPU.

    Seeded sampling promises that they do not.

    Raises:
        ExportError: They do.
    """
    whole = Graph(graph.content, Device("cpu")).run({graph.inputs[0]: inputs})
    for threads in (0, 1):
        session = Graph(graph.content, Device("cpu"), threads)
        for batch in BATCHES:
            for chunk in _chunks(len(inputs), batch):
                part = session.run({graph.inputs[0]: inputs[chunk]})
                for output in graph.outputs:
                    if part[output].tobytes() != whole[output][chunk].tobytes():
                        raise ExportError(
                            f"{graph.name}.{output}: rows differ between batches of {batch} and "
                            f"of {len(inputs)}"
                        )


def _chunks(rows: int, size: int) -> Iterable[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))
