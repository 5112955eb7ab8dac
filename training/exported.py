"""The weights of a bundle, read back from its graphs as those of a model to train."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bundle import BundleError, GraphName, read_bundle
from training.errors import CheckpointError, ConfigError

# What the names of weights begin with, by graph: the modules that `export` wraps a model's parts
# in. The prior's density has all that its sampler has.
_PREFIXES: Mapping[GraphName, str] = {
    "encoder": "vae.",
    "decoder": "vae.",
    "prior_density": "module.",
}
# What a density computes from the mixture of a prior.
_OF_MIXTURE = ("whiten", "offsets", "log_norms", "log_weights")


def exported_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads the weights of a bundle that `export` has written.

    Args:
        path: Folder of the bundle.

    Returns:
        The weights by their names in a `Vae`, float32 and as rounded in the bundle, and the SHA-256
        of its manifest. Constants of the data and the divisions of couplings are not among them.

    Raises:
        CheckpointError: There is no bundle, or it is damaged.
        ConfigError: Its graphs do not hold the weights of a model of this project, or not all of
            them; or the package onnx is missing.
    """
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    manifest = bundle.manifest
    if manifest.likelihood != "bernoulli" or manifest.precision != "fp32":
        raise ConfigError(
            f"--init: {path}: got a bundle with likelihood {manifest.likelihood} and a decoder in "
            f"{manifest.precision}, wanted bernoulli and fp32, the only ones whose graphs keep all "
            "weights, or the folder of its run"
        )
    weights: dict[str, Tensor] = {}
    for graph, prefix in _PREFIXES.items():
        content = bundle.graphs.get(graph)
        found = {} if content is None else _constants(content, prefix)
        weights |= {name.removeprefix(prefix): torch.from_numpy(found[name]) for name in found}
    if not any(name.startswith("encoder.") for name in weights):
        raise ConfigError(
            f"--init: {path}: got a bundle whose encoder holds no weights by their names, wanted "
            "one that `latentserve export` has written with weights of fp32 or fp16"
        )
    mixture = {name: weights.pop(name) for name in _OF_MIXTURE if name in weights}
    if mixture:
        weights |= {f"prior.{name}": value for name, value in _mixture(mixture).items()}
    return weights, bundle.manifest_sha256


def _constants(content: bytes, prefix: str) -> dict[str, NDArray[np.float32]]:
    """The float tensors of an ONNX file whose names begin so, and that depend on no input."""
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ConfigError(
            "--init: got a bundle, wanted the package onnx to read it: pip install "
            "'latentserve[export]'"
        ) from error
    model = onnx.load_from_string(content)
    constant = {tensor.name for tensor in model.graph.initializer}
    # Weights stored in fewer bytes are unpacked by nodes, which stand before those that read them.
    unpacking: list[onnx.NodeProto] = []
    read: set[str] = set()
    for node in model.graph.node:
        if constant.issuperset(node.input):
            unpacking.append(node)
            constant.update(node.output)
        else:
            read.update(node.input)
    names = sorted(name for name in constant & read if name.startswith(prefix))
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    part = onnx.helper.make_graph(unpacking, "constants", [], outputs, model.graph.initializer)
    evaluator = ReferenceEvaluator(onnx.helper.make_model(part, opset_imports=model.opset_import))
    values = dict(zip(names, evaluator.run(None, {}), strict=True))
    return {name: np.array(value) for name, value in values.items() if value.dtype == np.float32}


def _mixture(density: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a mixture of K Gaussians in D dimensions, from the constants of its density.

    Args:
        density: The factors of the precisions, [D, K * D], the whitened means, [K * D], and the
            log-weights of the components, of all and of each class, [1 + classes, K].
    """
    dim, width = density["whiten"].shape
    factors = density["whiten"].T.reshape(width // dim, dim, dim).double()
    whitened = density["offsets"].reshape(-1, dim, 1).double()
    means = torch.linalg.solve_triangular(factors, whitened, upper=False).squeeze(2)
    together, of_classes = density["log_weights"][0], density["log_weights"][1:]
    if not len(of_classes):
        of_classes = together.unsqueeze(0)
    # Each component belongs to one class; its weight in the others is 0.
    owner = of_classes.argmax(dim=0)
    shares = torch.zeros(len(of_classes)).index_add_(0, owner, together.exp())
    diagonal = factors.diagonal(dim1=1, dim2=2)
    return {
        "means": means.float(),
        "lower": factors.tril(-1).float(),
        "log_diagonal": diagonal.log().float(),
        "logits": of_classes.amax(dim=0),
        "class_weights": shares,
    }
