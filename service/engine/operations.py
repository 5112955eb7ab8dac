"""The operations of work that a model does: which graph, with what before and after it."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from common.pixels import to_bytes, to_unit
from service.engine.batch import Arrays, Operation
from service.engine.batcher import Observer as BatchObserver
from service.models.model import Model

Array = NDArray[np.float32]
Pixels = NDArray[np.float32] | NDArray[np.uint8]
#: Raises where rows are not sound.
Check = Callable[[NDArray[Any]], None]


class Observer(BatchObserver, Protocol):
    """Told of what is computed."""

    def encoded(self, manifest: Manifest, mean: Array, log_var: Array | None) -> None:
        """Images have been encoded; told in a worker's thread."""


class Operations:
    """Those of one model.

    Args:
        model: The model.
        observer: Told of what is encoded.

    Attributes:
        encode: Images to the moments of posteriors, by whether the images are bytes.
        decode: Latents to images, by whether these are to be bytes.
        sample: The same, which hands the latents on as well.
        logits: Latents to logits.
        prior: Noise to latents, and
        density: latents to log-densities, where the prior is learned.
    """

    def __init__(self, model: Model, observer: Observer):
        # Nothing here may hold the model: it is to be let go of when it is no longer served.
        manifest = model.manifest

        def told(_inputs: Arrays, outputs: Arrays) -> Arrays:
            observer.encoded(manifest, outputs["mean"], outputs.get("log_var"))
            return outputs

        encoder, decoder = model.graphs["encoder"], model.graphs["decoder"]
        delta = manifest.posterior == "delta"
        moments = ("mean",) if delta else ("mean", "log_var")
        self.encode = {
            True: Operation(encoder, moments, _scaled, told),
            False: Operation(encoder, moments, after=told),
        }
        self.decode = {
            True: Operation(decoder, ("image",), after=lambda _, outputs: _to_bytes(outputs)),
            False: Operation(decoder, ("image",)),
        }
        self.sample = {
            True: Operation(
                decoder, ("image",), after=lambda inputs, outputs: {**inputs, **_to_bytes(outputs)}
            ),
            False: Operation(
                decoder, ("image",), after=lambda inputs, outputs: {**inputs, **outputs}
            ),
        }
        self.logits = Operation(decoder, ("logits",))
        if manifest.learned_prior:
            self.prior = Operation(model.graphs["prior"], ("z",))
            self.density = Operation(model.graphs["prior_density"], ("log_prob",))
        self._checked: dict[tuple[Operation, Check], Operation] = {}

    def checked(self, operation: Operation, check: Check) -> Operation:
        """An operation whose only input is validated in the batch, and not before."""
        made = self._checked.get((operation, check))
        if made is None:

            def sound(inputs: Arrays) -> None:
                for rows in inputs.values():
                    check(rows)

            made = Operation(
                operation.graph, operation.outputs, operation.before, operation.after, sound
            )
            self._checked[operation, check] = made
        return made


def unit_range(images: Pixels) -> Array:
    """Images as float32 in [0, 1]; those that are no bytes are so already."""
    if images.dtype == np.uint8:
        return to_unit(images)  # type: ignore[arg-type]
    return images  # type: ignore[return-value]  # not uint8, so float32


def _scaled(given: Arrays) -> Arrays:
    return {"image": unit_range(given["image"])}


def _to_bytes(outputs: Arrays) -> Arrays:
    # The array is the graph's output, which nobody else has.
    return {"image": to_bytes(outputs["image"], overwrite=True)}
