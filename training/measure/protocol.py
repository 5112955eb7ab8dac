"""The evaluation protocol: the test images of an evaluation, and its description in JSON."""

import dataclasses
from typing import Any

from common.likelihood import Likelihood
from training.data.datasets import Dataset
from training.data.targets import Targets
from training.measure.elbo import Evaluation

#: Philox key of the test split's binarization and of the draws of z from the posterior.
TEST_SEED = 0

# What is measured of pixels that are not binarized.
_PIXELS: dict[Likelihood, str] = {
    "bernoulli": "grey values as they are",
    "gaussian": "density of 8-bit values under a Gaussian of one learned scale",
    "logistic": "probability of 8-bit values under discretized logistics of learned scales",
}


def test_images(dataset: Dataset, *, binarized: bool) -> Targets:
    """The test split in the form that models are measured on: float32 [N, C, H, W] in [0, 1].

    Args:
        dataset: The data set.
        binarized: Whether to draw one bit per pixel, as for a model trained on binarized
            images, instead of using the grey values.
    """
    return Targets(dataset.test.images, TEST_SEED if binarized else None)


def describe(
    result: Evaluation, *, binarized: bool, likelihood: Likelihood = "bernoulli"
) -> dict[str, Any]:
    """Describes an evaluation as a JSON object, with its protocol in words."""
    pixels = (
        f"pixels binarized by one Bernoulli draw from their grey values (Philox key {TEST_SEED})"
        if binarized
        else _PIXELS[likelihood]
    )
    return {
        "protocol": f"test split, {pixels}; nats per image, positive, lower is better",
        **dataclasses.asdict(result),
    }
