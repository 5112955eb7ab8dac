"""Inputs, outputs and limits of models, as the protocol describes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bundle import Manifest
from service.api.inference import names
from service.api.inference.infer import IMAGE, LABEL, LATENTS, outputs_of
from service.api.inference.tensors import FP32, INT64, UINT64
from service.api.sizes import Sizes
from service.models.repository import Models

NAME: Final = "latentserve"
PLATFORM: Final = "latentserve_onnx"
#: Of the names that Triton gives to extensions. `model_repository` is its index alone.
EXTENSIONS: Final = ("model_configuration", "model_repository", "parameters")
READY: Final = "READY"
UNAVAILABLE: Final = "UNAVAILABLE"

# An axis of any length.
_FREE: Final = -1


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: Its name.
        datatype: Its type.
        shape: Its shape; -1 for a free axis.
        optional: Whether a request may leave it out.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A model as the protocol describes it.

    Attributes:
        inputs: Its inputs.
        outputs: All its outputs.
        max_rows: Maximum rows of a request; 0 if its inputs have no axis of rows.
    """

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    max_rows: int


@dataclass(frozen=True)
class Indexed:
    """An entry of the index of models.

    Attributes:
        name: NAME.OPERATION; NAME if the model could not be loaded.
        version: Its version; empty if the model's folder could not be read.
        state: READY or UNAVAILABLE.
        reason: Why it is not ready.
    """

    name: str
    version: str
    state: str
    reason: str = ""


def describe(manifest: Manifest, operation: str, sizes: Sizes) -> ModelSpec:
    """Describes an operation of a model.

    Args:
        manifest: Manifest of the model.
        operation: One of its operations.
        sizes: The sizes of images and latents that it takes.
    """
    image, latents = manifest.image_shape, manifest.latent_shape
    if manifest.sizes is not None:
        image, latents = (image[0], _FREE, _FREE), (latents[0], _FREE, _FREE)
    rows = {
        IMAGE: TensorSpec(IMAGE, FP32, (_FREE, *image)),
        LABEL: TensorSpec(LABEL, INT64, (_FREE,)),
    } | {name: TensorSpec(name, FP32, (_FREE, *latents)) for name in ("mean", "log_var", LATENTS)}
    outputs = [
        rows.get(name, TensorSpec(name, FP32, (_FREE,))) for name in outputs_of(manifest, operation)
    ]
    if operation == names.SAMPLE:
        return ModelSpec(_numbers(manifest), outputs, 0)
    inputs = [rows[LATENTS if operation == names.DECODE else IMAGE]]
    if manifest.conditional:
        inputs.append(rows[LABEL])
    return ModelSpec(inputs, outputs, sizes.max_rows)


def index(models: Models, is_ready: Callable[[str], bool], *, only_ready: bool) -> list[Indexed]:
    """Lists the models.

    Args:
        models: Models that are loaded or were refused.
        is_ready: Whether the model of a name answers calls.
        only_ready: Whether to leave out those that are not ready.
    """
    found = []
    for model in models:
        ready = is_ready(model.manifest.name)
        state = READY if ready else UNAVAILABLE
        reason = "" if ready else "the server is stopping, or its device is lost"
        version = str(model.manifest.version)
        for operation in names.operations_of(model.manifest):
            found.append(Indexed(f"{model.manifest.name}.{operation}", version, state, reason))
    found += [
        # The log has the reason: it may have paths.
        Indexed(
            refused.name,
            str(refused.version) if refused.version else "",
            UNAVAILABLE,
            "it could not be loaded; the server's log says why",
        )
        for refused in models.refused
    ]
    return sorted(
        (entry for entry in found if entry.state == READY or not only_ready),
        key=lambda entry: (entry.name, len(entry.version), entry.version),
    )


def _numbers(manifest: Manifest) -> list[TensorSpec]:
    """Inputs of `sample`: one number each."""
    numbers = [
        TensorSpec("count", INT64, (1,)),
        TensorSpec("seed", UINT64, (1,), optional=True),
        TensorSpec("offset", UINT64, (1,), optional=True),
        TensorSpec("temperature", FP32, (1,), optional=True),
    ]
    if manifest.labels:
        numbers.append(TensorSpec(LABEL, INT64, (1,), optional=True))
    return numbers
