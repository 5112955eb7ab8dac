"""Requests and replies of ModelInfer, independent of their encoding, and what they ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bundle import Manifest
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.inference import names, parameters
from service.api.inference.parameters import Value, put
from service.api.inference.tensors import (
    BF16,
    FLOATS,
    FP16,
    FP32,
    INTEGERS,
    UINT8,
    Tensor,
    check_datatype,
    labels_in,
    number_in,
)
from service.api.inference.tensors import WIRE_DTYPES as WIRE
from service.errors import InvalidArgument, NotForThisModel, ServiceError

#: This project's own request for each operation.
REQUESTS: Final[Mapping[str, type[Any]]] = {
    names.ENCODE: pb.EncodeRequest,
    names.DECODE: pb.DecodeRequest,
    names.SAMPLE: pb.SampleRequest,
    names.RECONSTRUCT: pb.ReconstructRequest,
    names.SCORE: pb.ScoreRequest,
}
#: Inputs of `sample`, each one number.
NUMBERS: Final = {
    "count": INTEGERS,
    "seed": INTEGERS,
    "offset": INTEGERS,
    "label": INTEGERS,
    "temperature": FLOATS,
}
IMAGE: Final = "image"
LATENTS: Final = "z"
LABEL: Final = "label"
#: Outputs that only some requests ask for: a sample of the posterior, and the bound by draws.
DRAWN: Final = "z"
BOUND: Final = "nll"
# Draws for the bound of a request that names it without saying how many.
_DRAWS: Final = 16
_PIXELS: Final = (FP32, FP16, BF16, UINT8)
_LATENT: Final = (FP32, FP16, BF16)


@dataclass(frozen=True)
class InferRequest:
    """A request.

    Attributes:
        model: Name of the model, NAME.OPERATION.
        version: Its version; empty for the default.
        parameters: The parameters.
        inputs: The inputs by name.
        outputs: Names of the outputs that are wanted; empty for the default ones.
    """

    model: str
    version: str = ""
    parameters: Mapping[str, Value] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Sequence[str] = ()


@dataclass(frozen=True)
class InferReply:
    """A reply.

    Attributes:
        model: Name of the model that answered, NAME.OPERATION.
        version: Its version.
        parameters: `seed`, as text, where noise was drawn.
        outputs: The outputs, in the order of the request's.
    """

    model: str
    version: str
    parameters: Mapping[str, str]
    outputs: Sequence[Tensor]


class Translated:
    """A request as this project's own.

    Args:
        request: The request.
        operation: Its operation.

    Attributes:
        native: This project's own request; its model is set by the caller.

    Raises:
        InvalidArgument: An input or a parameter is unknown, missing, given twice, or has a wrong
            type.
    """

    def __init__(self, request: InferRequest, operation: str):
        self.native = REQUESTS[operation]()
        # Where each field of `native` comes from, for errors.
        self._sources: dict[str, str] = {}
        self._operation = operation
        self._put_parameters(request.parameters)
        if operation == names.SAMPLE:
            self._put_numbers(request.inputs)
        else:
            self._put_rows(request.inputs)

    def renamed(self, error: ServiceError) -> ServiceError:
        """An error with the names of the request's inputs and parameters, for those of `native`."""
        if not isinstance(error, InvalidArgument | NotForThisModel):
            return error
        name, colon, rest = str(error).partition(": ")
        for field_name, source in self._sources.items():
            if name == field_name or name.startswith((f"{field_name}.", f"{field_name}[")):
                renamed = source + name.removeprefix(field_name)
                break
        else:
            fields = parameters.accepted_by(self.native)
            renamed = f"parameters.{name}" if name in fields else name
        if isinstance(error, InvalidArgument):
            error.field = renamed = renamed.replace(".dtype", ".datatype")
        error.args = (f"{renamed}{colon}{rest}",)
        return error

    def choose(self, request: InferRequest, manifest: Manifest, max_draws: int) -> Sequence[str]:
        """Names of the outputs to return; sets what they need in `native`.

        Args:
            request: The request.
            manifest: Manifest of the model.
            max_draws: Maximum draws for the bound.

        Raises:
            InvalidArgument: An output is unknown or given twice, or is left out by a parameter.
        """
        available = outputs_of(manifest, self._operation)
        for name in request.outputs:
            if name not in available:
                raise InvalidArgument("outputs", repr(name), f"one of {', '.join(available)}")
        if len(set(request.outputs)) < len(request.outputs):
            raise InvalidArgument("outputs", ", ".join(request.outputs), "each of them once")
        native, wanted = self.native, request.outputs or available
        if self._operation == names.ENCODE and DRAWN in wanted and not native.draw:
            if not request.outputs:
                return [name for name in wanted if name != DRAWN]
            if "draw" in request.parameters:
                raise InvalidArgument("parameters.draw", False, f"true for the output {DRAWN}")
            native.draw = True
        if self._operation == names.SCORE and BOUND in wanted and not native.draws:
            if not request.outputs:
                return [name for name in wanted if name != BOUND]
            if "draws" in request.parameters:
                raise InvalidArgument("parameters.draws", 0, f"above 0 for the output {BOUND}")
            native.draws = min(_DRAWS, max_draws)
        return wanted

    def _put_parameters(self, given: Mapping[str, Value]) -> None:
        fields = parameters.accepted_by(self.native)
        for name, value in given.items():
            if name == parameters.TIMEOUT:
                continue
            if name not in fields:
                wanted = ", ".join(sorted((*fields, parameters.TIMEOUT)))
                raise InvalidArgument(f"parameters.{name}", repr(value), f"one of {wanted}")
            where = self._sources[fields[name].name] = f"parameters.{name}"
            put(self.native, fields[name], value, where)

    def _put_numbers(self, inputs: Mapping[str, Tensor]) -> None:
        fields = parameters.accepted_by(self.native)
        _check_names(inputs, tuple(NUMBERS))
        for name, tensor in inputs.items():
            self._refuse_twice(name, tensor)
            put(self.native, fields[name], number_in(tensor, NUMBERS[name]), tensor.field)
            self._sources[name] = tensor.field
        self._sources.setdefault("count", "inputs.count")

    def _put_rows(self, inputs: Mapping[str, Tensor]) -> None:
        decodes = self._operation == names.DECODE
        main = LATENTS if decodes else IMAGE
        _check_names(inputs, (main, LABEL), required=main)
        rows = inputs[main]
        check_datatype(rows, _LATENT if decodes else _PIXELS)
        into: tensor_pb2.Tensor = self.native.latents if decodes else self.native.images.tensor
        into.dtype = WIRE[rows.datatype]
        into.shape.extend(rows.shape)
        into.data = bytes(rows.data)
        for name in ("latents",) if decodes else ("images.tensor", "images"):
            self._sources[name] = rows.field
        # Also where none are given: their absence is an error of some models.
        self._sources.setdefault("labels", f"inputs.{LABEL}")
        if LABEL in inputs:
            label = inputs[LABEL]
            self._refuse_twice(LABEL, label)
            given = labels_in(label)
            try:
                self.native.labels.extend(given)
            except ValueError:  # out of the range of the field
                raise InvalidArgument(label.field, given, "indices of classes") from None

    def _refuse_twice(self, name: str, tensor: Tensor) -> None:
        if f"parameters.{name}" in self._sources.values():
            raise InvalidArgument(tensor.field, "an input beside a parameter", "one of them")


def outputs_of(manifest: Manifest, operation: str) -> Sequence[str]:
    """Names of the outputs that an operation of a model can return."""
    if operation == names.ENCODE:
        return ("mean",) if manifest.posterior == "delta" else ("mean", "log_var", DRAWN)
    if operation == names.SAMPLE:
        return (IMAGE, LATENTS, LABEL) if manifest.conditional else (IMAGE, LATENTS)
    if operation == names.SCORE:
        scores = ("reconstruction", "kl", "elbo", BOUND)
        return (*scores, "percentile") if manifest.score_percentiles else scores
    return (IMAGE,)


def _check_names(
    inputs: Mapping[str, Tensor], accepted: tuple[str, ...], required: str = ""
) -> None:
    for name in inputs:
        if name not in accepted:
            raise InvalidArgument("inputs", repr(name), f"one of {', '.join(accepted)}")
    if required and required not in inputs:
        raise InvalidArgument(f"inputs.{required}", "no such input", "one")
