"""Builds the map of a model's latent space from its test images."""

import numpy as np

from bundle import LatentMap
from bundle.latent_map import MAX_ROWS
from export.subject import Subject
from training.data.datasets import Dataset
from training.data.rows import sample_rows
from training.measure.elbo import posteriors

# Maximum values of all means together, 2 MiB in float16: a map is one message to a client.
_MAX_VALUES = 1 << 20
#: Most test images that are encoded, drawn from all by a seed.
ENCODED = 20_000


def build_map(subject: Subject, dataset: Dataset) -> LatentMap:
    """Encodes the test images of a data set; those of the map are evenly spaced among them.

    Args:
        subject: The model.
        dataset: The data it was trained on.
    """
    rows = sample_rows(len(dataset.test.images), ENCODED)
    test = dataset.test
    mean, log_var = posteriors(subject.autoencoder, test.images, rows, test.labels)
    count = min(len(rows), MAX_ROWS, max(1, _MAX_VALUES // subject.latent_dim))
    shown = np.arange(count) * len(rows) // count
    # More classes than the numbers of a map are none that colours could tell apart.
    named = 0 < len(dataset.class_names) <= np.iinfo(np.int16).max
    labels = test.labels[rows] if named else np.full(len(rows), -1)
    kl = np.zeros(0)
    if log_var is not None:
        wide, log_var = mean.astype(np.float64), log_var.astype(np.float64)
        kl = (0.5 * (wide**2 + np.exp(log_var) - 1 - log_var)).mean(axis=0)
    most = np.finfo(np.float16).max
    return LatentMap(
        mean=np.clip(mean[shown], -most, most).astype(np.float16),
        labels=labels[shown].astype(np.int16),
        kl=kl.astype(np.float32),
    )
