"""Builds the map of a model's latent space from its test images."""

import numpy as np

from bundle import LatentMap
from bundle.latent_map import MAX_ROWS
from common.pixels import to_unit
from export.subject import Subject
from training.data.datasets import Dataset

# Maximum values of all means together, 2 MiB in float16: a map is one message to a client.
_MAX_VALUES = 1 << 20
# Images that are encoded at a time.
_CHUNK = 500


def build_map(subject: Subject, dataset: Dataset) -> LatentMap:
    """Encodes the test images of a data set; those of the map are evenly spaced among them.

    Args:
        subject: The model.
        dataset: The data it was trained on.
    """
    images = dataset.test.images
    count = min(len(images), MAX_ROWS, max(1, _MAX_VALUES // subject.latent_dim))
    means, divergences = [], []
    for start in range(0, len(images), _CHUNK):
        mean, log_var = subject.autoencoder.encode(to_unit(images[start : start + _CHUNK]))
        means.append(mean)
        if log_var is not None:
            mean, log_var = mean.astype(np.float64), log_var.astype(np.float64)
            divergences.append(0.5 * (mean**2 + np.exp(log_var) - 1 - log_var))
    shown = np.arange(count) * len(images) // count
    labels = dataset.test.labels if dataset.class_names else np.full(len(images), -1)
    most = np.finfo(np.float16).max
    return LatentMap(
        mean=np.clip(np.concatenate(means)[shown], -most, most).astype(np.float16),
        labels=labels[shown].astype(np.int16),
        kl=np.concatenate(divergences).mean(axis=0, dtype=np.float64).astype(np.float32)
        if divergences
        else np.zeros(0, np.float32),
    )
