"""Writes tiny bundles without torch, for tests to which the model does not matter."""

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bundle import DatasetRef, FileRef, GraphRef, Manifest, Parity, TensorSpec, write_bundle
from common.noise import NAME as NOISE

Array = NDArray[np.float32]


def write_tiny(
    model: Path,
    *,
    shape: tuple[int, int, int] = (1, 4, 4),
    dim: int = 3,
    seed: int = 0,
    golden_error: float = 0.0,
    fails_above: float | None = None,
    key: Path | None = None,
) -> Path:
    """Writes a linear autoencoder with random weights as the next version of a model.

    Args:
        model: `MODELS/NAME`.
        shape: C, H and W.
        dim: Number of latent dimensions.
        seed: Seed of the weights.
        golden_error: Added to the golden logits, for a bundle that a server must refuse.
        fails_above: Latent value above which the decoder graph raises an error; None for never.
        key: Private key to sign the bundle with; None to leave it unsigned.
    """
    rng = np.random.default_rng(seed)
    pixels = int(np.prod(shape))
    weights = {
        "mean": rng.standard_normal((pixels, dim)).astype(np.float32) / pixels,
        "log_var": rng.standard_normal((pixels, dim)).astype(np.float32) / pixels,
        "logits": rng.standard_normal((dim, pixels)).astype(np.float32),
    }
    image = rng.random((4, *shape), dtype=np.float32)
    flat = image.reshape(4, -1)
    mean = flat @ weights["mean"]
    logits = (mean @ weights["logits"]).reshape(4, *shape)
    golden = {
        "encoder.image": image,
        "encoder.mean": mean,
        "encoder.log_var": flat @ weights["log_var"],
        "decoder.z": mean,
        "decoder.image": 1 / (1 + np.exp(-logits)),
        "decoder.logits": logits + np.float32(golden_error),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **golden)  # type: ignore[arg-type]
    files = {
        "encoder.onnx": _encoder(weights, shape, dim),
        "decoder.onnx": _decoder(weights, shape, dim, fails_above),
        "golden.npz": buffer.getvalue(),
    }
    return write_bundle(
        model, files, lambda version: _manifest(model, version, files, shape, dim), key=key
    )


def _encoder(weights: dict[str, Array], shape: tuple[int, int, int], dim: int) -> bytes:
    heads = ("mean", "log_var")
    nodes = [helper.make_node("Flatten", ["image"], ["flat"])]
    nodes += [helper.make_node("MatMul", ["flat", f"w_{head}"], [head]) for head in heads]
    constants = {f"w_{head}": weights[head] for head in heads}
    return _model(nodes, {"image": ("N", *shape)}, dict.fromkeys(heads, ("N", dim)), constants)


def _decoder(
    weights: dict[str, Array], shape: tuple[int, int, int], dim: int, fails_above: float | None
) -> bytes:
    nodes = [helper.make_node("MatMul", ["z", "w"], ["flat"])]
    constants = {"w": weights["logits"]}
    if fails_above is not None:
        # Gather fails on index 1 of a constant with one element.
        constants |= {"limit": np.float32(fails_above), "only": np.zeros(1, np.float32)}
        nodes = [
            helper.make_node("MatMul", ["z", "w"], ["product"]),
            helper.make_node("ReduceMax", ["z"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "limit"], ["too_large"]),
            helper.make_node("Cast", ["too_large"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["only", "index"], ["nothing"]),
            helper.make_node("Add", ["product", "nothing"], ["flat"]),
        ]
    nodes += [
        helper.make_node("Reshape", ["flat", "shape"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["image"]),
    ]
    reshape = np.array([-1, *shape], np.int64)
    constants["shape"] = reshape
    outputs = {"image": ("N", *shape), "logits": ("N", *shape)}
    return _model(nodes, {"z": ("N", dim)}, outputs, constants)


def _model(nodes, inputs, outputs, constants) -> bytes:  # type: ignore[no-untyped-def]
    def values(specs):  # type: ignore[no-untyped-def]
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in specs.items()
        ]

    initializers = [
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    ]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _manifest(
    model: Path, version: int, files: dict[str, bytes], shape: tuple[int, int, int], dim: int
) -> Manifest:
    def ref(file: str) -> dict[str, object]:
        content = files[file]
        digest = hashlib.sha256(content).hexdigest()
        return {"file": file, "sha256": digest, "size_bytes": len(content)}

    def spec(name: str, *axes: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("N", *axes))

    latent, picture = (dim,), shape
    return Manifest(
        name=model.name,
        version=version,
        created_at=datetime.now(UTC),
        image_shape=shape,
        latent_dim=dim,
        likelihood="bernoulli",
        posterior="gaussian",
        prior="standard",
        graphs={
            "encoder": GraphRef(
                **ref("encoder.onnx"),
                opset=18,
                inputs=(spec("image", *picture),),
                outputs=(spec("mean", *latent), spec("log_var", *latent)),
            ),
            "decoder": GraphRef(
                **ref("decoder.onnx"),
                opset=18,
                inputs=(spec("z", *latent),),
                outputs=(spec("image", *picture), spec("logits", *picture)),
            ),
        },
        golden=FileRef(**ref("golden.npz")),
        tolerances={"cpu": 1e-4, "cuda": 1e-3},
        preprocessing={},
        noise=NOISE,
        dataset=DatasetRef(name="random", sha256={}, split={}),
        training={},
        metrics={},
        parity=Parity(batches=(1,), max_abs_difference={}, tolerance=1e-4, batch_invariant=True),
        tools={},
    )
