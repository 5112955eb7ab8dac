"""What is written under the pictures, for a reader who meets them for the first time."""

from training.measure.elbo import ACTIVE_VARIANCE
from training.report.curves import LEFT_OUT, phases
from training.report.latent import LINE, PLANE
from training.report.projection import REACH, Projection
from training.report.samples import BY_CLASS, MOST_ROWS, SAMPLES, SEED
from training.report.sheet import is_ink
from training.report.story import Story

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
_GRID = f"{PLANE} \N{MULTIPLICATION SIGN} {PLANE}"


class Captions:
    """The words of a story's page.

    Args:
        story: What is told.
        projection: How its latents were put on the plane.
    """

    def __init__(self, story: Story, projection: Projection):
        self._story = story
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
        """What stands over a picture, by its file name."""
        return _HEADINGS[name]

    def alt(self, name: str) -> str:
        """A picture in one sentence, for who cannot see it."""
        return self._paragraphs[name]()[0]

    def paragraphs(self, name: str) -> list[str]:
        """What stands under a picture."""
        return self._paragraphs[name]()

    @property
    def closing(self) -> str:
        """The end of the page."""
        text = (
            "This page holds all its pictures and loads nothing. Each also lies beside it as a file"
        )
        text += ", the movie as a GIF too." if self._story.frames else "."
        if is_ink(self._story.images):
            text += " Images of light strokes on black are printed dark on white."
        return text

    def _movie(self) -> list[str]:
        story = self._story
        first, last = story.frames[0].step, story.frames[-1].step
        coloured = ", coloured by class" if story.class_names else ""
        when = f"from step {first:,} to step {last:,}" if last > first else f"at step {last:,}"
        return [
            f"The training {when}, in {len(story.frames)} frames.",
            f"Left, images that the model is not trained on, and what it makes of each after "
            f"squeezing it through {self._dimensions}. Right, a point to each of "
            f"{len(story.labels):,} test images, where the model puts it in its latent space"
            f"{coloured}. The axes stand still. {self._projection.sentence}",
            "The ELBO tells how many nats the model needs to describe an image: lower is better.",
        ]

    def _reconstructions(self) -> list[str]:
        return [
            "Test images, and below each what the finished model gives back of it.",
            f"All that the decoder knows of an image is {self._dimensions}.",
        ]

    def _map(self) -> list[str]:
        story = self._story
        coloured = ", in the colour of its class" if story.class_names else ""
        return [
            f"Where the finished model puts {len(story.means):,} test images{coloured}.",
            "Each point is the mean of an image's posterior. Images that the model takes for "
            f"alike lie near one another. {self._projection.sentence}",
        ]

    def _plane(self) -> list[str]:
        if self._projection.dimensions == 1:
            return [
                f"{LINE} points along the one latent dimension, decoded, in the order of text.",
                "They are quantiles of the standard normal distribution, an equal share apart, "
                "and so are closer to one another about the middle.",
            ]
        if self._projection.dimensions == 2:
            return [
                f"{_GRID} points of the latent plane, decoded.",
                "In both directions they are quantiles of the standard normal distribution, an "
                "equal share apart, and so are closer to one another about the middle. Compare "
                "the latent map, where the axes are the same but even.",
            ]
        return [
            f"{_GRID} points of a plane through the latent space, decoded.",
            f"The plane is that of the latent map: {self._projection.names[0]} across and "
            f"{self._projection.names[1]} upwards, through the mean of all test images, and out "
            f"to {REACH:g} standard deviations either way. The "
            f"other {self._projection.dimensions - 2} directions stay at their mean.",
        ]

    def _samples(self) -> list[str]:
        return [
            f"{SAMPLES} images that never were: latents drawn from the prior, and decoded.",
            f"All that were drawn, none chosen (seed {SEED}).",
        ]

    def _by_class(self) -> list[str]:
        names = self._story.sample_labels
        text = f"{BY_CLASS} images of each class, asked for by its name (seed {SEED})."
        if len(names) > MOST_ROWS:
            text += f" The first {MOST_ROWS} of {len(names)} classes."
        return [text]

    def _curves(self) -> list[str]:
        log = self._story.log
        validated = any(entry.get("validation_elbo") is not None for entry in log)
        orange = "; orange, validation images that are not trained on" if validated else ""
        text = (
            f"Blue, the images of a training step{orange}. The ELBO is the sum of the "
            "reconstruction term, how badly the pixels are predicted, and the KL term, what the "
            "latents cost. The training's first "
            f"{100 * LEFT_OUT:.0f}\N{NO-BREAK SPACE}% of steps are left out."
        )
        if len(phases(log)) > 1:
            text += " Dashed lines: a new phase begins."
        return ["The ELBO over the training and what it is made of; lower is better.", text]

    def _active_units(self) -> list[str]:
        story = self._story
        below = (
            " Below, the KL divergence of each from the standard normal."
            if story.log_vars is not None
            else ""
        )
        return [
            f"{story.active.sum()} of {story.latent_dim} latent dimensions are in use.",
            "A latent dimension is in use where the mean of the posterior varies from image to "
            f"image, by a variance above {ACTIVE_VARIANCE:g} (Burda, Grosse and Salakhutdinov "
            f"2016); the rest carry nothing.{below}",
        ]

    @property
    def _dimensions(self) -> str:
        count = self._story.latent_dim
        return "one number" if count == 1 else f"{count} numbers"
