"""Reconstruction error of encoded images, to notice when images are unlike the training data."""

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.request import RunOptions
from service.models.model import Model
from service.models.onnx import Graph

_log = logging.getLogger(__name__)

#: Time constant of the average's exponential decay, in measured images.
HORIZON = 1000.0

# Longest decoding, in seconds, that is run on the event loop, where calls wait meanwhile.
_LOOP_SECONDS = 0.001
# Pause of the measurements of a model after a failure, in seconds.
_PAUSE_SECONDS = 60.0


class ReconstructionErrors(Collector):
    """Mean squared error between encoded images and the images decoded from their latents.

    After a batch of images has been encoded, one of them may be decoded in the same thread. How
    often follows from how long that takes: it takes up at most a given share of a thread's time.

    Args:
        share: That share, above 0.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic):
        self._share = share
        self._clock = clock
        self._measured: Mapping[tuple[str, int], _Measured] = {}
        self._closed = False

    def close(self) -> None:
        """Measures nothing from now on, and ends a measurement that is under way."""
        self._closed = True
        for measured in self._measured.values():
            if measured.options is not None:
                measured.options.terminate = True

    def retain(self, models: Mapping[tuple[str, int], Model]) -> None:
        """Measures the given models from now on, each under its name and version."""
        before = self._measured
        self._measured = {
            key: before[key]
            if key in before and before[key].decoder is model.graphs["decoder"]
            else _Measured(model)
            for key, model in models.items()
            if "encoder" in model.graphs
        }

    def encoded(
        self,
        key: tuple[str, int],
        images: NDArray[np.float32],
        mean: NDArray[np.float32],
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """Measures one of the images if that is due; never raises.

        Args:
            key: Name and version of the model.
            images: float32 [N, C, H, W] in [0, 1].
            mean: Their posterior means.
            labels: Their classes, int64 [N], if the model is conditional; else None.
        """
        measured = self._measured.get(key)
        if measured is None or self._clock() < measured.due or not len(images):
            return
        # Another thread may be measuring.
        if measured.lock.acquire(blocking=False):
            try:
                self._measure(measured, images, mean, labels)
            except Exception as error:  # noqa: BLE001 - the batch itself has been computed
                if not self._closed:
                    _log.warning("%s/%d: no reconstruction error: %s", *key, error)
                measured.due = self._clock() + _PAUSE_SECONDS
            finally:
                measured.options = None
                measured.lock.release()

    def _measure(
        self,
        measured: "_Measured",
        images: NDArray[np.float32],
        mean: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
    ) -> None:
        size = images.shape[2:] if measured.free else ()
        limits = measured.decoder.limits(size)
        if limits.seconds(1) > _LOOP_SECONDS and _on_event_loop():
            return
        if limits.slow and not measured.encoder.limits(size).slow:
            # The encoder's batch may occupy the last thread, which slow rows must leave free.
            return
        row = random.randrange(len(images))
        options = measured.options = measured.decoder.run_options()
        if self._closed:
            return
        began = self._clock()
        inputs: dict[str, NDArray[Any]] = {"z": mean[row : row + 1]}
        if labels is not None:
            inputs["label"] = labels[row : row + 1]
        decoded = measured.decoder.run(inputs, ("image",), size, options)["image"]
        now = self._clock()
        measured.due = now + (now - began) / self._share
        difference = np.clip(decoded[0], 0.0, 1.0) - images[row]
        error = float(np.mean(np.square(difference), dtype=np.float64))
        if math.isfinite(error):
            measured.add(error)

    def collect(self) -> Iterator[Metric]:
        """Yields the error, and the number of images that it was measured on."""
        labels = ["model", "version"]
        errors = GaugeMetricFamily(
            "latentserve_reconstruction_error",
            "Mean squared error of reconstructions of encoded images, over about the last 1,000 "
            "that were measured; values are 0 to 1.",
            labels=labels,
        )
        images = CounterMetricFamily(
            "latentserve_reconstruction_images",
            "Encoded images whose reconstruction error was measured.",
            labels=labels,
        )
        for (name, version), measured in self._measured.items():
            values = [name, str(version)]
            images.add_metric(values, measured.images)
            if measured.images:
                errors.add_metric(values, measured.sum / measured.weight)
        yield errors
        yield images


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Measured:
    """The measurements of one model.

    Args:
        model: The model, which is not kept.

    Attributes:
        encoder: Its encoder.
        decoder: Its decoder.
        free: Whether images have different sizes.
        due: When the next image may be measured, on the clock.
        lock: Held while one is measured.
        options: Options of the run that measures one.
        images: Number of images measured.
        weight: Sum of their weights, which decay exponentially.
        sum: Weighted sum of their errors.
    """

    __slots__ = ("decoder", "due", "encoder", "free", "images", "lock", "options", "sum", "weight")

    def __init__(self, model: Model):
        self.encoder: Graph = model.graphs["encoder"]
        self.decoder: Graph = model.graphs["decoder"]
        self.free = model.manifest.sizes is not None
        self.due = -math.inf
        self.lock = threading.Lock()
        self.options: RunOptions | None = None
        self.images = 0
        self.weight = self.sum = 0.0

    def add(self, error: float) -> None:
        """Adds the error of an image."""
        decay = math.exp(-1 / HORIZON)
        self.images += 1
        self.weight = decay * self.weight + 1
        self.sum = decay * self.sum + error
