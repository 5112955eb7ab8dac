"""Headings, alternative texts and captions of the pictures of a report."""

import math

from training.measure.elbo import ACTIVE_VARIANCE
from training.report.curves import LEFT_OUT, phases
from training.report.data import ReportData
from training.report.latent import LINE, PLANE
from training.report.projection import REACH, Projection
from training.report.samples import BY_CLASS, MAX_ROWS, SAMPLES, SEED
from training.report.sheet import is_ink

_HEADINGS = {
    "movie.mp4": "The training as a movie",
    "reconstructions.png": "Reconstructions",
    "latent_map.png": "The latent map",
    "latent_plane.png": "The plane, decoded",
    "samples.png": "Samples",
    "samples_by_class.png": "Samples by class",
    "curves.png": "Curves",
    "active_units.png": "Active units",
}
#: The likelihoods in words.
LIKELIHOODS = {
    "bernoulli": "a Bernoulli likelihood",
    "gaussian": "a Gaussian likelihood with one learned scale",
    "logistic": "a discretized logistic likelihood with learned scales",
}
_GRID = f"{PLANE} \N{MULTIPLICATION SIGN} {PLANE}"


class Captions:
    """Writes the texts of a report page, for readers who have not seen such pictures before.

    Args:
        data: The data of the report.
        projection: The projection of its latents.
    """

    def __init__(self, data: ReportData, projection: Projection):
        self._data = data
        self._projection = projection
        self._paragraphs = {
            "movie.mp4": self._movie,
            "reconstructions.png": self._reconstructions,
            "latent_map.png": self._map,
            "latent_plane.png": self._plane,
            "samples.png": self._samples,
            "samples_by_class.png": self._by_class,
            "curves.png": self._curves,
            "active_units.png": self._active_units,
        }

    def heading(self, name: str) -> str:
        """Heading of a picture, by its file name."""
        return _HEADINGS[name]

    def alt(self, name: str) -> str:
        """Alternative text of a picture, by its file name: one sentence."""
        return self._paragraphs[name]()[0]

    def paragraphs(self, name: str) -> list[str]:
        """Paragraphs of the caption of a picture, by its file name."""
        return self._paragraphs[name]()

    @property
    def closing(self) -> str:
        """The text of the footer."""
        text = (
            "This page contains all its pictures and loads nothing. Each is also a file next to it"
        )
        text += ", the movie as a GIF too." if self._data.frames else "."
        if is_ink(self._data.images):
            text += " Images of light strokes on black are printed dark on white."
        return text

    def _movie(self) -> list[str]:
        data = self._data
        first, last = data.frames[0].step, data.frames[-1].step
        coloured = ", coloured by class" if data.class_names else ""
        when = f"from step {first:,} to step {last:,}" if last > first else f"at step {last:,}"
        return [
            f"The training {when}, in {len(data.frames)} frames.",
            f"Left: test images, which the model is not trained on, and its reconstruction of each "
            f"from {self._dimensions}. Right: {len(data.labels):,} test images, each as a point at "
            f"its place in the latent space{coloured}. The axes are those of the last frame. "
            f"{self._projection.sentence}",
            self._elbo,
        ]

    def _reconstructions(self) -> list[str]:
        return [
            "Test images, and below each the final model's reconstruction of it.",
            f"The decoder knows an image by {self._dimensions} only.",
        ]

    def _map(self) -> list[str]:
        data = self._data
        coloured = ", in the colour of its class" if data.class_names else ""
        return [
            f"{len(data.means):,} test images in the latent space of the final model{coloured}.",
            "Each point is the mean of an image's posterior. Images that are similar to the model "
            f"are close to one another. {self._projection.sentence}",
        ]

    def _plane(self) -> list[str]:
        paragraphs = self._points_of_the_plane()
        if name := self._data.decoded_class:
            paragraphs.append(f"All are decoded as one class: {name}.")
        return paragraphs

    def _points_of_the_plane(self) -> list[str]:
        if self._projection.dimensions == 1:
            return [
                f"{LINE} points along the one latent dimension, decoded, in reading order.",
                "They are evenly spaced quantiles of the standard normal distribution, and so are "
                "closer to one another near the middle.",
            ]
        if self._projection.dimensions == 2:
            return [
                f"{_GRID} points of the latent plane, decoded.",
                "In both directions they are evenly spaced quantiles of the standard normal "
                "distribution, and so are closer to one another near the middle. The axes are "
                "those of the latent map, which has a linear scale.",
            ]
        return [
            f"{_GRID} points of a plane through the latent space, decoded.",
            f"The plane is that of the latent map: {self._projection.names[0]} across and "
            f"{self._projection.names[1]} upwards, through the mean of all test images and up to "
            f"{REACH:g} standard deviations away from it. The "
            f"other {self._projection.dimensions - 2} directions stay at their mean.",
        ]

    def _samples(self) -> list[str]:
        return [
            f"{SAMPLES} samples: latents drawn from the prior and decoded.",
            f"They are not selected: these are all that were drawn (seed {SEED}).",
        ]

    def _by_class(self) -> list[str]:
        names = self._data.sample_labels
        text = f"{BY_CLASS} samples of each class, sampled by its label (seed {SEED})."
        if len(names) > MAX_ROWS:
            text += f" The first {MAX_ROWS} of {len(names)} classes."
        if self._data.decoded_class:
            text += " Those of a column are decoded from the same latent: one style, each class."
        return [text]

    def _curves(self) -> list[str]:
        log = self._data.log
        validated = any(entry.get("validation_elbo") is not None for entry in log)
        too = "were trained on too" if self._data.trained_on_validation else "are not trained on"
        orange = f"; orange: the validation images, which {too}" if validated else ""
        text = (
            f"Blue: the images of a training step{orange}. The negative ELBO is the sum of the "
            "reconstruction term, the cost of the pixels given the latents under "
            f"{LIKELIHOODS[self._data.likelihood]}, and the KL term, the cost of the latents. The "
            "first "
            f"{100 * LEFT_OUT:.0f}\N{NO-BREAK SPACE}% of the steps are not shown."
        )
        if len(phases(log)) > 1:
            text += " At a dashed line a new phase begins."
        for entry in log:
            if back_to := entry.get("back_to_step"):
                text += (
                    f" After step {entry['step']:,} the model went back to the weights of step "
                    f"{back_to:,}, which fit the validation images better."
                )
        return ["The negative ELBO and its terms over the training; lower is better.", text]

    def _active_units(self) -> list[str]:
        data = self._data
        below = (
            " Below, the KL divergence of each from the standard normal."
            if data.log_vars is not None
            else ""
        )
        return [
            f"{data.active.sum()} of {data.latent_dim} latent dimensions are active.",
            "A latent dimension is active where the posterior mean varies over the images with a "
            f"variance above {ACTIVE_VARIANCE:g} (Burda, Grosse and Salakhutdinov 2016); the "
            f"others carry no information.{below}",
        ]

    @property
    def _elbo(self) -> str:
        """What the movie's number means."""
        if not self._data.in_bits:
            return "The negative ELBO bounds the nats needed to encode an image: lower is better."
        values = math.prod(self._data.images.shape[1:])
        return (
            f"The bits per dimension are the negative ELBO, divided by the {values:,} values of an "
            f"image. With {LIKELIHOODS[self._data.likelihood]} they bound the bits needed to "
            "encode each value, 8 without a model: lower is better."
        )

    @property
    def _dimensions(self) -> str:
        count = self._data.latent_dim
        return "one number" if count == 1 else f"{count} numbers"
