"""Checks that exported graphs give the same results as torch; a failure ends the export."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from bundle import GraphName
from export.errors import ExportError
from export.graphs import OPSET, ExportedGraph
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]

#: Batch sizes that are checked.
BATCHES = (1, 2, 3, 64)

#: Operators that a graph may have: deterministic, row-wise, in the standard domain. Excluded are
#: random operators, operators across rows, and Elu, Log, Selu, Mish and Softplus, whose bits
#: depend on a row's position in the batch. So do those of a ReduceSum of floats, which is
#: therefore allowed for integers only.
ALLOWED_OPERATORS = frozenset(
    """
    Abs Add Cast Clip Concat Constant Conv DepthToSpace Div Erf Exp Expand Flatten Gather Gemm
    Greater GreaterOrEqual Identity LeakyRelu MatMul Max Min Mul Neg Pad Pow Reciprocal ReduceMax
    ReduceSum Relu Reshape Shape Sigmoid Slice SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh
    Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 - a column of quoted words reads worse
)


def verify_graphs(
    graphs: Mapping[GraphName, ExportedGraph], inputs: Inputs, tolerance: float
) -> dict[str, float]:
    """Runs every check on every graph of a model.

    Args:
        graphs: The graphs by name.
        inputs: Inputs of all graphs by name, each with as many rows as the largest batch.
        tolerance: Largest allowed difference between torch and onnxruntime.

    Returns:
        The result of `measure_parity` for all graphs together.

    Raises:
        ExportError: A graph does not pass a check.
    """
    differences: dict[str, float] = {}
    for name, graph in graphs.items():
        rows = {tensor: inputs[tensor] for tensor in graph.inputs}
        check_structure(graph)
        differences |= measure_parity(graph, rows)
        check_batch_invariance(name, graph.content, rows)
    check_parity(differences, tolerance)
    return differences


def check_structure(graph: ExportedGraph, allowed: Set[str] = ALLOWED_OPERATORS) -> None:
    """Checks a graph statically.

    Args:
        graph: The graph.
        allowed: The operators that it may have.

    Raises:
        ExportError: The ONNX checker or strict shape inference fails, an operator is not
            allowed, the opset, tensor names or dtypes differ from the contract, or the batch
            axis is not the only dynamic one.
    """
    model = onnx.load_from_string(graph.content)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(f"{graph.name}: the ONNX checker refuses it: {error}") from error
    domains = {opset.domain: opset.version for opset in model.opset_import}
    if domains != {"": OPSET}:
        raise ExportError(f"{graph.name}: opsets {domains}, wanted {{'': {OPSET}}}")
    if foreign := sorted({node.op_type for node in model.graph.node} - allowed):
        raise ExportError(f"{graph.name}: operators {foreign} are not on the list of allowed ones")
    integers = {
        value.name
        for value in (*inferred.graph.input, *inferred.graph.value_info)
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    }
    for node in model.graph.node:
        if node.op_type == "ReduceSum" and node.input[0] not in integers:
            raise ExportError(
                f"{graph.name}: ReduceSum of {node.input[0]}, wanted whole numbers: the bits of a "
                "sum of floats depend on a row's position in memory"
            )
    names = (
        tuple(value.name for value in model.graph.input),
        tuple(value.name for value in model.graph.output),
    )
    if names != (graph.inputs, graph.outputs):
        raise ExportError(f"{graph.name}: tensors {names}, wanted {graph.inputs, graph.outputs}")
    for value in (*model.graph.input, *model.graph.output):
        wanted = onnx.TensorProto.INT64 if value.name == "label" else onnx.TensorProto.FLOAT
        if value.type.tensor_type.elem_type != wanted:
            kind = onnx.TensorProto.DataType.Name(wanted)
            raise ExportError(f"{graph.name}: {value.name}: wanted {kind}")
        axes = value.type.tensor_type.shape.dim
        if not axes or not axes[0].dim_param or any(axis.dim_param for axis in axes[1:]):
            raise ExportError(f"{graph.name}: {value.name}: wanted only the first axis dynamic")


def measure_parity(graph: ExportedGraph, inputs: Inputs) -> dict[str, float]:
    """Compares the outputs of torch and onnxruntime at every batch size of `BATCHES`.

    Args:
        graph: The graph.
        inputs: Inputs by name, each with at least as many rows as the largest batch.

    Returns:
        The largest absolute difference of each output, by "graph.output"; that of a
        log-density is divided by the number of latent dimensions it sums over.

    Raises:
        ExportError: onnxruntime cannot run a batch, or an output has another shape.
    """
    session = Graph(graph.content, Device("cpu"))
    worst = {f"{graph.name}.{output}": 0.0 for output in graph.outputs}
    for batch in BATCHES:
        rows = _rows(inputs, slice(0, batch))
        wanted = torch_answers(graph, rows)
        try:
            answers = session.run(rows)
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"{graph.name}: cannot run a batch of {batch}: {error}") from error
        for output, reference in wanted.items():
            if answers[output].shape != reference.shape:
                raise ExportError(
                    f"{graph.name}.{output}: onnxruntime answers {list(answers[output].shape)}, "
                    f"torch {list(reference.shape)}"
                )
            terms = rows["z"].shape[1] if output == "log_prob" else 1
            difference = np.max(np.abs(answers[output] - reference)) / terms
            key = f"{graph.name}.{output}"
            # np.maximum keeps a NaN; max() might drop it.
            worst[key] = float(np.maximum(worst[key], difference))
    return worst


def check_parity(differences: Mapping[str, float], tolerance: float) -> None:
    """Fails if torch and onnxruntime differ by more than the tolerance.

    Raises:
        ExportError: A difference is above the tolerance, or NaN.
    """
    for key, difference in differences.items():
        if not difference <= tolerance:
            raise ExportError(
                f"{key}: torch and onnxruntime differ by {difference:.3g}, wanted at most "
                f"{tolerance:g}"
            )


def torch_answers(graph: ExportedGraph, inputs: Inputs) -> dict[str, Array]:
    """Runs the torch module of a graph on inputs by name; returns its outputs by name."""
    with torch.inference_mode():
        answers = graph.module(*(torch.from_numpy(inputs[name]) for name in graph.inputs))
    return {name: answer.numpy() for name, answer in zip(graph.outputs, answers, strict=True)}


def check_batch_invariance(name: str, content: bytes, inputs: Inputs) -> None:
    """Checks on the CPU that a row's bits do not depend on its batch or the number of threads.

    Seeded sampling relies on this.

    Args:
        name: Name of the graph, for the error.
        content: Content of the ONNX file.
        inputs: Inputs by name, with equal numbers of rows.

    Raises:
        ExportError: The bits of a row differ.
    """
    count = len(next(iter(inputs.values())))
    whole = Graph(content, Device("cpu"), rows=count).run(inputs)
    for threads in (0, 1):
        session = Graph(content, Device("cpu"), threads)
        for batch in BATCHES:
            for chunk in _chunks(count, batch):
                part = session.run(_rows(inputs, chunk))
                for output, rows in whole.items():
                    if part[output].tobytes() != rows[chunk].tobytes():
                        raise ExportError(
                            f"{name}.{output}: rows differ between batches of {batch} and "
                            f"of {count}"
                        )


def _rows(inputs: Inputs, chunk: slice) -> dict[str, NDArray[Any]]:
    # Copied, since a view has the alignment of the whole array, which can hide a difference.
    return {name: array[chunk].copy() for name, array in inputs.items()}


def _chunks(rows: int, size: int) -> Iterable[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))
