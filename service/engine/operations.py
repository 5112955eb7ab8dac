"""Operations of a model: its graphs with their pre- and postprocessing."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from common.pixels import to_bytes, to_unit
from service.engine.batcher import BatchObserver
from service.engine.checks import check_latents, check_pixels
from service.engine.request import Arrays, Operation
from service.models.model import Model

Array = NDArray[np.float32]
Pixels = NDArray[np.float32] | NDArray[np.uint8]
#: Class of each row, int64 [N]; None for the rows of a model that is not conditional.
Labels = NDArray[np.int64] | None


class Observer(BatchObserver, Protocol):
    """Interface for the events of batches, and for the posteriors that batches compute."""

    def encoded(
        self,
        manifest: Manifest,
        images: Array,
        mean: Array,
        log_var: Array | None,
        labels: Labels,
    ) -> None:
        """Called in a compute thread after a batch of images, float32 [N, C, H, W], was encoded."""


class Operations:
    """The operations of one model.

    Where the model is conditional, those of encoder and decoder also take the class of each row,
    `label`, which is a part of the row: rows of different classes share batches.

    Batches form by operation, so none may depend on anything of a call but its model. Errors of
    the checks therefore name the graph's input, `image` or `z`: how callers know it differs.

    Args:
        model: The model.
        observer: Notified of the posteriors.

    Attributes:
        encode: Maps images to `mean` and `log_var`; at key True uint8 images, at False float32.
            Set only if there is an encoder.
        decode: Maps latents to `image` in [0, 1], by the same keys.
        encode_checked: As `encode` at key False, but validates the images of a batch.
        decode_checked: As `decode`, but validates the latents of a batch.
        raw: Maps latents to `image`, float32 and not clipped.
        sample: Maps latents to `image` in [0, 1], the latents `z` and, if the model is conditional,
            the classes `label`; by the same keys.
        likelihood: Maps latents to the parameters of p(x|z); set only if there is a likelihood.
        prior: Maps noise to latents; set only if the prior is learned.
        density: Maps latents to `log_prob`; set only if the prior is learned.
    """

    def __init__(self, model: Model, observer: Observer):
        # Must not refer to the model: it is the weak key under which the engine keeps this object.
        manifest = model.manifest

        def observe(inputs: Arrays, outputs: Arrays) -> None:
            observer.encoded(
                manifest,
                inputs["image"],
                outputs["mean"],
                outputs.get("log_var"),
                inputs.get("label"),
            )

        decoder = model.graphs["decoder"]
        if manifest.posterior != "none":
            encoder = model.graphs["encoder"]
            delta = manifest.posterior == "delta"
            moments = ("mean",) if delta else ("mean", "log_var")
            scaled = _scaled_with_labels if manifest.conditional else _scaled
            self.encode = {
                True: Operation(encoder, moments, scaled, observe=observe),
                False: Operation(encoder, moments, observe=observe),
            }
            self.encode_checked = _checked(self.encode[False], "image", check_pixels)
        # The mean of a likelihood is in [0, 1] already.
        clips = manifest.likelihood == "none"

        def pixels(outputs: Arrays, as_uint8: bool) -> Arrays:
            clipped = _clipped(outputs, as_uint8) if clips else outputs
            return _to_bytes(clipped) if as_uint8 else clipped

        self.raw = Operation(decoder, ("image",))
        self.decode = {
            True: Operation(decoder, ("image",), after=lambda _, outputs: pixels(outputs, True)),
            False: Operation(decoder, ("image",), after=lambda _, outputs: pixels(outputs, False))
            if clips
            else self.raw,
        }
        self.decode_checked = {
            as_uint8: _checked(operation, "z", check_latents)
            for as_uint8, operation in self.decode.items()
        }
        self.sample = {
            as_uint8: Operation(
                decoder,
                ("image",),
                after=lambda inputs, outputs, as_uint8=as_uint8: {  # type: ignore[misc]
                    **inputs,
                    **pixels(outputs, as_uint8),
                },
            )
            for as_uint8 in (True, False)
        }
        if manifest.likelihood != "none":
            self.likelihood = Operation(decoder, (manifest.likelihood_output,))
        if manifest.learned_prior:
            self.prior = Operation(model.graphs["prior"], ("z",))
            self.density = Operation(model.graphs["prior_density"], ("log_prob",))


def unit_range(images: Pixels) -> Array:
    """Converts uint8 images to float32 in [0, 1]; returns float32 images unchanged."""
    if images.dtype == np.uint8:
        return to_unit(images)  # type: ignore[arg-type]
    return images  # type: ignore[return-value]  # not uint8, so float32


def with_labels(inputs: Arrays, labels: Labels) -> Arrays:
    """Adds the class of each row to the inputs of a graph, if the model is conditional."""
    return inputs if labels is None else {**inputs, "label": labels}


def _checked(
    operation: Operation, name: str, check: Callable[[NDArray[Any], str], None]
) -> Operation:
    """Returns the operation with a check of an input of a batch, which errors name `name`."""
    return Operation(
        operation.graph,
        operation.outputs,
        operation.before,
        operation.after,
        lambda inputs: check(inputs[name], name),
        operation.observe,
    )


def _scaled(given: Arrays) -> Arrays:
    return {"image": unit_range(given["image"])}


def _scaled_with_labels(given: Arrays) -> Arrays:
    return {"image": unit_range(given["image"]), "label": given["label"]}


def _clipped(outputs: Arrays, as_uint8: bool) -> Arrays:
    # Only this batch refers to the output array, so it may be overwritten.
    image = outputs["image"]
    if as_uint8:
        # NaN, which has no uint8 value, becomes 0.
        np.fmax(image, np.float32(0), out=image)
    return {"image": np.clip(image, 0.0, 1.0, out=image)}


def _to_bytes(outputs: Arrays) -> Arrays:
    # Only this batch refers to the output array, so it may be overwritten.
    return {"image": to_bytes(outputs["image"], overwrite=True)}
