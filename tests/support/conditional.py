"""Writes tiny conditional bundles without torch: encoder and decoder are linear in image and class.

The graphs of a learned prior show by their values if they get another label than -1.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from bundle import FileRef, GraphRef, Manifest, Parity, TensorSpec, write_bundle
from common.noise import NAME as NOISE

Array = NDArray[np.float32]

_GOLDEN_ROWS = 5
#: Added to what a prior's graph returns for each label above -1.
WRONG_LABEL = 1000.0


@dataclass(frozen=True)
class Conditional:
    """A conditional model: mean = W x + a[label], logits = V z + b[label].

    Attributes:
        weights: How often each class is in the training data.
        shape: C, H and W.
        dim: Number of latent dimensions.
        posterior: `delta`: the encoder has no `log_var`.
        prior: `gmm`: of two components, the second is chosen by a `u` of 0.5 or more.
        likelihood: `none`: the decoder has no `logits`, and its images leave [0, 1].
        seed: Seed of the weights.
        percentiles: Whether the manifest has a table of percentiles.
        names: Names of the classes; a, b, ... by default.
    """

    weights: tuple[float, ...] = (0.5, 0.25, 0.125, 0.125)
    shape: tuple[int, int, int] = (1, 4, 4)
    dim: int = 3
    posterior: Literal["gaussian", "delta"] = "gaussian"
    prior: Literal["standard", "gmm"] = "standard"
    likelihood: Literal["bernoulli", "none"] = "bernoulli"
    seed: int = 0
    percentiles: bool = False
    names: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.names or tuple(chr(ord("a") + index) for index in range(len(self.weights)))


#: Inputs and outputs of each graph.
_Tensors = dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]


def write_conditional(model: Path, kind: Conditional = Conditional()) -> Path:
    """Writes a model with random weights as the next version.

    Args:
        model: `MODELS/NAME`.
        kind: The model.
    """
    tensors = _tensors(kind)
    graphs = {name: _graph(name, kind, *tensors[name]) for name in tensors}
    files = {f"{name}.onnx": content for name, content in graphs.items()}
    files["golden.npz"] = _golden(kind, graphs, tensors)
    return write_bundle(
        model, files, lambda version: _manifest(model.name, version, kind, files, tensors)
    )


def _spec(name: str, *axes: int, dtype: Literal["float32", "int64"] = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=("N", *axes))


def _tensors(kind: Conditional) -> _Tensors:
    label, z = _spec("label", dtype="int64"), _spec("z", kind.dim)
    image = _spec("image", *kind.shape)
    moments = (_spec("mean", kind.dim), _spec("log_var", kind.dim))
    images = (image, _spec("logits", *kind.shape))
    tensors: _Tensors = {
        "encoder": ((image, label), moments[: 1 if kind.posterior == "delta" else 2]),
        "decoder": ((z, label), images[: 1 if kind.likelihood == "none" else 2]),
    }
    if kind.prior == "gmm":
        tensors["prior"] = ((_spec("eps", kind.dim), _spec("u", 1), label), (z,))
        tensors["prior_density"] = ((z, label), (_spec("log_prob"),))
    return tensors


def _graph(
    name: str, kind: Conditional, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> bytes:
    rng = np.random.default_rng([kind.seed, len(name)])
    pixels, classes = int(np.prod(kind.shape)), len(kind.weights)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    constants: dict[str, NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def add(op: str, given: list[str], made: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, given, [made], **attributes))
        return made

    def linear(x: str, made: str, rows: int, columns: int) -> str:
        constants[f"{made}_w"] = normal(rows, columns) / np.float32(rows**0.5)
        constants[f"{made}_b"] = normal(classes, columns)
        product = add("MatMul", [x, f"{made}_w"], f"{made}_product")
        of_class = add("Gather", [f"{made}_b", "label"], f"{made}_class")
        return add("Add", [product, of_class], f"{made}_flat")

    if name == "encoder":
        add("Flatten", ["image"], "flat")
        for output in outputs:
            add("Identity", [linear("flat", output.name, pixels, kind.dim)], output.name)
    elif name == "decoder":
        constants["shape"] = np.array([-1, *kind.shape], np.int64)
        values = add("Reshape", [linear("z", "logits", kind.dim, pixels), "shape"], "values")
        add("Identity" if kind.likelihood == "none" else "Sigmoid", [values], "image")
        if kind.likelihood != "none":
            add("Identity", [values], "logits")
    else:
        constants |= {"one": np.float32(1), "wrong": np.float32(WRONG_LABEL)}
        label = add("Cast", ["label"], "label_float", to=TensorProto.FLOAT)
        error = add("Mul", [add("Add", [label, "one"], "above"), "wrong"], "error")
        if name == "prior":
            constants |= {"means": normal(2, kind.dim), "two": np.float32(2)}
            constants["first"] = np.array([1], np.int64)
            twice = add("Mul", ["u", "two"], "twice")
            component = add("Cast", [twice], "component", to=TensorProto.INT64)
            mean = add("Gather", ["means", add("Squeeze", [component, "first"], "row")], "mean")
            drawn = add("Add", ["eps", mean], "drawn")
            add("Add", [drawn, add("Unsqueeze", [error, "first"], "column")], "z")
        else:
            constants |= {"half": np.float32(-0.5), "axes": np.array([1], np.int64)}
            norm = add("ReduceSumSquare", ["z", "axes"], "norm", keepdims=0)
            add("Add", [add("Mul", [norm, "half"], "density"), error], "log_prob")
    initializers = [
        numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items()
    ]
    graph = helper.make_graph(nodes, name, _values(inputs), _values(outputs), initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _values(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    return [
        helper.make_tensor_value_info(spec.name, types[spec.dtype], spec.shape) for spec in specs
    ]


def _golden(kind: Conditional, graphs: Mapping[str, bytes], tensors: _Tensors) -> bytes:
    rng = np.random.default_rng(kind.seed + 1)
    rows = _GOLDEN_ROWS
    given: dict[str, NDArray[Any]] = {
        "image": rng.random((rows, *kind.shape), np.float32),
        "z": rng.standard_normal((rows, kind.dim), np.float32),
        "eps": rng.standard_normal((rows, kind.dim), np.float32),
        "u": rng.random((rows, 1), np.float32),
    }
    golden: dict[str, NDArray[Any]] = {}
    for name, (inputs, outputs) in tensors.items():
        label = np.arange(rows) % len(kind.weights) if name in ("encoder", "decoder") else -1
        given["label"] = np.broadcast_to(np.int64(label), rows).copy()
        rows_of = {spec.name: given[spec.name] for spec in inputs}
        wanted = [spec.name for spec in outputs]
        answers = ReferenceEvaluator(onnx.load_from_string(graphs[name])).run(wanted, rows_of)
        for tensor, array in (rows_of | dict(zip(wanted, answers, strict=True))).items():
            golden[f"{name}.{tensor}"] = array
    buffer = io.BytesIO()
    np.savez(buffer, **golden)  # type: ignore[arg-type]
    return buffer.getvalue()


def _manifest(
    name: str, version: int, kind: Conditional, files: Mapping[str, bytes], tensors: _Tensors
) -> Manifest:
    def ref(file: str) -> dict[str, Any]:
        content = files[file]
        digest = hashlib.sha256(content).hexdigest()
        return {"file": file, "sha256": digest, "size_bytes": len(content)}

    return Manifest(
        schema_version="2.0",
        conditional=True,
        labels=kind.labels,
        class_weights=kind.weights,
        class_names=kind.labels,
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        image_shape=kind.shape,
        latent_dim=kind.dim,
        likelihood=kind.likelihood,
        posterior=kind.posterior,
        prior=kind.prior,
        graphs={
            graph: GraphRef(**ref(f"{graph}.onnx"), opset=18, inputs=inputs, outputs=outputs)
            for graph, (inputs, outputs) in tensors.items()
        },
        golden=FileRef(**ref("golden.npz")),
        tolerances={"cpu": 1e-4, "cuda": 1e-3},
        tolerance_kind="relative",
        score_percentiles=tuple(map(float, range(101))) if kind.percentiles else (),
        parity=Parity(
            batches=(1, 2, 3),
            max_abs_difference={"decoder.image": 0.0},
            tolerance=1e-4,
            batch_invariant=True,
        ),
        preprocessing={},
        noise=NOISE,
        tools={},
    )
