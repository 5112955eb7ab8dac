"""The fast path of ModelInfer: cached plans for requests to encode or decode of the same form.

The form of a request is its serialised message without `id` and contents. The plans themselves, and
how they run, are those of `service.api.fast_path`; a reply differs in what stands around the data.
A request without a plan, and every one that fails, is answered by `InferenceServicer` at length: a
differential test checks that replies and errors are the same.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np

from service.api.answer import Answer, Plan
from service.api.fast_path import COPIED_BYTES, DIRECT_DTYPES, cached
from service.api.formats import FORMATS
from service.api.inference import inference_service_pb2 as pb
from service.api.inference import messages, names
from service.api.inference.infer import IMAGE, LABEL, LATENTS, Translated
from service.api.inference.tensors import BF16, DATATYPES, FP16, INTEGERS
from service.api.servicer import Servicer
from service.api.wire import tag
from service.engine.call import Call
from service.engine.sampling import fresh_seed
from service.errors import ServiceError
from service.models.model import Model

# A longer form has names or unknown fields that are no part of an ordinary request.
_MAX_FORM_BYTES: Final = 1024
_MAX_PARAMETERS: Final = {names.ENCODE: 0, names.DECODE: 1}
_CONVERTED: Final = (FP16, BF16)
_ID: Final = pb.ModelInferResponse.DESCRIPTOR.fields_by_name["id"].number
_RAW: Final = pb.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number


@dataclasses.dataclass(frozen=True, slots=True)
class _InferPlan:
    """A plan for requests of one form.

    Attributes:
        plan: How to compute them, and their reply without its `id`.
        rows: Index of the input of images or latents.
        labels: Index of the input of labels; None if there is none.
        label_dtype: How NumPy reads the labels.
        label_bytes: Length of the labels, in bytes.
    """

    plan: Plan
    rows: int
    labels: int | None
    label_dtype: np.dtype[Any]
    label_bytes: int

    def given(self, contents: Sequence[bytes]) -> list[int] | None:
        """The labels of a request; None if their length is wrong."""
        if self.labels is None:
            return []
        data = contents[self.labels]
        if len(data) != self.label_bytes:
            return None
        labels: list[int] = np.frombuffer(data, self.label_dtype).tolist()
        return labels


class Plans:
    """Answers common requests from cached plans; used from one event loop only.

    Args:
        servicer: The RPCs of LatentService, whose models and fast path these are.
    """

    def __init__(self, servicer: Servicer):
        self._servicer = servicer
        self._plans: WeakKeyDictionary[Model, dict[bytes, _InferPlan]] = WeakKeyDictionary()

    def answer(self, message: pb.ModelInferRequest, call: Call) -> Answer | None:
        """Answers a request, or returns None, with the request as it was, if there is no plan."""
        fast = self._servicer.fast_path
        own, _, operation = message.model_name.rpartition(".")
        most = _MAX_PARAMETERS.get(operation)
        if fast is None or not own or most is None or len(message.parameters) > most:
            return None
        inputs = message.inputs
        if not inputs or len(message.raw_input_contents) != len(inputs):
            return None
        if inputs[0].datatype in _CONVERTED:
            return None  # before the contents are copied
        try:
            version = names.number(message.model_version, "")
            model = self._servicer.selection.named(own, version, call, fresh_seed)
        except ServiceError:
            return None
        request_id = message.id
        contents: list[bytes] = message.raw_input_contents[:]
        message.ClearField("raw_input_contents")
        message.ClearField("id")
        form = message.SerializeToString()
        plans = self._plans.get(model)
        found = plans.get(form) if plans is not None else None
        if found is None and len(form) <= _MAX_FORM_BYTES:
            message.raw_input_contents.extend(contents)
            found = cached(self._plans, model, form, self._made(message, model, operation))
            message.ClearField("raw_input_contents")
        if found is not None:
            given = found.given(contents)
            if given is not None:
                encoded = request_id.encode()
                tail = tag(_ID, len(encoded)) + encoded if encoded else b""
                answer = fast.run(found.plan, contents[found.rows], given, call, tail)
                if answer is not None:
                    return answer
        message.raw_input_contents.extend(contents)
        message.id = request_id
        return None

    def _made(
        self, message: pb.ModelInferRequest, model: Model, operation: str
    ) -> _InferPlan | None:
        """Makes the plan of requests of a form; None if there is none for it."""
        servicer, fast = self._servicer, self._servicer.fast_path
        assert fast is not None
        try:
            names.check_operation(model.manifest, operation, "")
            request = messages.read(message)
            translated = Translated(request, operation)
            wanted = translated.choose(request, model.manifest, servicer.settings.max_score_draws)
        except ServiceError:
            return None
        native = translated.native
        if operation == names.ENCODE:
            name, tensor = IMAGE, native.images.tensor
            plan = (
                None
                if native.draw
                else fast.plan_encode(model, tensor.dtype, tuple(tensor.shape), f"inputs.{name}")
            )
        else:
            name, tensor = LATENTS, native.latents
            extra = native.scaled or native.unclipped or (request.parameters and not native.format)
            plan = (
                None
                if extra
                else fast.plan_decode(
                    model,
                    FORMATS[native.format],
                    tensor.dtype,
                    tuple(tensor.shape),
                    f"inputs.{name}",
                )
            )
        # A label that is a parameter is not among the contents.
        if plan is None or (len(native.labels) and LABEL not in request.inputs):
            return None
        order = list(request.inputs)
        label = request.inputs.get(LABEL)
        return _InferPlan(
            _with_heads(plan, request.model, model, wanted),
            order.index(name),
            None if label is None else order.index(LABEL),
            INTEGERS["INT64"] if label is None else INTEGERS[label.datatype],
            0 if label is None else len(label.data),
        )


def _with_heads(plan: Plan, name: str, model: Model, wanted: Sequence[str]) -> Plan:
    """The plan with what stands before the data of each output in a reply of ModelInfer."""
    reply = pb.ModelInferResponse(model_name=name, model_version=str(model.manifest.version))
    for output in wanted:
        tensor = plan.results[output]
        reply.outputs.add(name=output, datatype=DATATYPES[tensor.dtype], shape=tensor.shape)
    head: bytes = reply.SerializeToString()
    outputs = []
    for output in wanted:
        tensor = plan.results[output]
        size = math.prod(tensor.shape) * DIRECT_DTYPES[tensor.dtype].itemsize
        outputs.append((output, head + tag(_RAW, size), size <= COPIED_BYTES))
        head = b""
    return dataclasses.replace(plan, outputs=tuple(outputs))
