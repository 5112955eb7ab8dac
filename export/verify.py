"""Checks that exported graphs give the same results as torch; a failure ends the export."""

from collections.abc import Collection, Mapping, Sequence, Set
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

#: Opsets of graphs that others have exported; this exporter writes `OPSET`.
ADOPTED_OPSETS = range(13, 24)

#: Operators that are worth a try: deterministic, row-wise, in the standard domain. What decides is
#: the measurement (`export.invariance`). Excluded are random operators, operators across rows, and
#: Elu, Log, Selu, Mish and Softplus, whose bits depend on a row's position in the batch. So do
#: those of a ReduceSum of floats, which is therefore allowed for integers only.
ALLOWED_OPERATORS = frozenset(
    """
    Abs Add ArgMin Attention AveragePool BatchNormalization Cast Clip Concat Constant
    ConstantOfShape Conv ConvTranspose DepthToSpace Div Equal Erf Exp Expand Flatten Gather Gelu
    Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid
    HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less MatMul Max MaxPool
    Min Mul Neg PRelu Pad Pow RMSNormalization Range Reciprocal ReduceMax ReduceSum Relu Reshape
    Resize Shape Sigmoid Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Transpose
    Unsqueeze Where
    """.split()  # noqa: SIM905 - a column of quoted words reads worse
)


def verify_graphs(
    graphs: Mapping[GraphName, ExportedGraph],
    cases: Mapping[GraphName, Sequence[Inputs]],
    tolerance: float,
    opsets: Collection[int] = (OPSET,),
) -> dict[str, float]:
    """Checks the structure of every graph of a model, and that it answers what torch does.

    Args:
        graphs: The graphs by name.
        cases: For each graph, inputs by name, of as many rows as its largest batch; one case for
            each size that is tried.
        tolerance: Largest allowed difference between torch and onnxruntime, as a share of
            max(1, largest absolute value) of an output.
        opsets: The versions of the standard operator set that the graphs may use.

    Returns:
        The largest absolute difference of each output, by "graph.output".

    Raises:
        ExportError: A graph does not pass a check.
    """
    absolute: dict[str, float] = {}
    for name, graph in graphs.items():
        check_structure(graph, opsets=opsets)
        for inputs in cases[name]:
            differences = _differences(graph, inputs)
            check_parity({key: share for key, (_, share) in differences.items()}, tolerance)
            for key, (difference, _) in differences.items():
                absolute[key] = max(absolute.get(key, 0.0), difference)
    return absolute


def check_structure(
    graph: ExportedGraph,
    allowed: Set[str] = ALLOWED_OPERATORS,
    opsets: Collection[int] = (OPSET,),
) -> None:
    """Checks a graph statically.

    Args:
        graph: The graph.
        allowed: The operators that it may have.
        opsets: The versions of the standard operator set that it may use.

    Raises:
        ExportError: The ONNX checker or strict shape inference fails, an operator is not
            allowed, the opset, tensor names or dtypes differ from the contract, or other axes are
            dynamic than the batch axis and, of a graph of free size, height and width.
    """
    model = onnx.load_from_string(graph.content)
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise ExportError(f"{graph.name}: the ONNX checker refuses it: {error}") from error
    domains = {opset.domain: opset.version for opset in model.opset_import}
    if domains.keys() != {""} or domains[""] not in opsets:
        wanted = OPSET if len(opsets) == 1 else f"{min(opsets)} to {max(opsets)}"
        raise ExportError(f"{graph.name}: opsets {domains}, wanted {{'': {wanted}}}")
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
        dtype = onnx.TensorProto.INT64 if value.name == "label" else onnx.TensorProto.FLOAT
        if value.type.tensor_type.elem_type != dtype:
            kind = onnx.TensorProto.DataType.Name(dtype)
            raise ExportError(f"{graph.name}: {value.name}: wanted {kind}")
        axes = value.type.tensor_type.shape.dim
        named = [index for index, axis in enumerate(axes) if axis.dim_param]
        if graph.free and (named != [0, 2, 3] or len(axes) != 4):
            raise ExportError(
                f"{graph.name}: {value.name}: wanted the first axis, height and width dynamic"
            )
        if not graph.free and named != [0]:
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
    return {key: difference for key, (difference, _) in _differences(graph, inputs).items()}


def _differences(graph: ExportedGraph, inputs: Inputs) -> dict[str, tuple[float, float]]:
    """As `measure_parity`, with each difference as a share of max(1, largest absolute value)."""
    session = Graph(graph.content, Device("cpu"))
    worst = {f"{graph.name}.{output}": (0.0, 0.0) for output in graph.outputs}
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
            difference = float(np.max(np.abs(answers[output] - reference))) / terms
            share = difference / max(1.0, float(np.max(np.abs(reference))) / terms)
            key = f"{graph.name}.{output}"
            # np.maximum keeps a NaN; max() might drop it.
            worst[key] = (
                float(np.maximum(worst[key][0], difference)),
                float(np.maximum(worst[key][1], share)),
            )
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


def _rows(inputs: Inputs, chunk: slice) -> dict[str, NDArray[Any]]:
    # Copied, since a view has the alignment of the whole array, which can hide a difference.
    return {name: array[chunk].copy() for name, array in inputs.items()}
