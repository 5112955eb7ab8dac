"""Collects the data of a report: frames during training, everything else after it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.pixels import to_bytes
from training.data.datasets import Dataset
from training.data.rows import interleave_classes, sample_rows
from training.measure.adapter import as_autoencoder, as_image_decoder, as_sampler
from training.measure.elbo import posteriors
from training.model.vae import Vae
from training.report import Frame, ReportData, write_live
from training.run_config import RunConfig
from training.run_folder import RunFolder
from training.trainer import Trainer

#: Least number of frames of a movie, if the run has as many steps; there are up to twice as many.
FRAMES = 80
#: Number of test images whose reconstructions are shown.
SHOWN = 16
#: Most test images whose posterior means are in the scatter plot of each frame.
SCATTERED = 1_000
#: Most test images on the map of the latents, drawn from all by a seed.
MAPPED = 20_000
# Largest coordinate that a plot's axes can be made for.
_MOST_DRAWABLE = 1e9


class MovieRecorder:
    """Records the frames of the movie: reconstructions and latents of the same test images.

    Args:
        folder: The run folder, which the frames are written into.
        trainer: The trainer to record.
        dataset: The data set whose test images are shown.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer, dataset: Dataset):
        self._folder = folder
        self._trainer = trainer
        self._shown = interleave_classes(dataset.test.labels, SHOWN)
        self._images = dataset.test.images
        self._given = dataset.test.labels
        self._scattered = sample_rows(len(self._images), SCATTERED)
        self._labels = test_labels(dataset)[self._scattered]
        self._class_names = dataset.class_names
        self._every = max(1, trainer.steps // FRAMES)

    def before_step(self) -> None:
        """Records a frame if one is due."""
        phase = self._trainer.phase
        done = phase.autoencoder_steps + self._trainer.step - phase.start
        if phase.trains_autoencoder and done % self._every == 0:
            self._record(phase.name)

    def last_frame(self) -> None:
        """Records the state after the last step as the movie's last frame."""
        self._record(self._trainer.phase.name)

    def draw_live(self, elbo: float) -> None:
        """Draws the current frame to live.png.

        Args:
            elbo: Negative ELBO on the validation split, in nats per image.
        """
        step, phase = self._trainer.step, self._trainer.phase.name
        frame = self._frame()
        if frame is None or not np.isfinite(elbo):
            return
        reconstructions, means = frame
        model = self._trainer.ema_model
        data = ReportData(
            title="live",
            facts=(),
            images=self._images[self._shown],
            labels=self._labels,
            class_names=self._class_names,
            frames=[Frame(step, phase, elbo, reconstructions, means)],
            log=(),
            means=means,
            log_vars=None,
            map_labels=self._labels,
            decode=_plane_decoder(model),
            sample=None,
            sample_labels=(),
            metrics={},
            likelihood=model.config.likelihood,
        )
        write_live(self._folder.path, data)

    def _record(self, phase: str) -> None:
        frame = self._frame()
        if frame is not None:
            self._folder.save_frame(self._trainer.step, phase, *frame)

    def _frame(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Reconstructions of the shown images, and the posterior means of the scatter plot.

        None where they cannot be drawn: the run is diverging, and ends by itself with the reason.
        """
        model = self._trainer.ema_model
        adapted = as_autoencoder(model)
        shown, _ = posteriors(adapted, self._images, self._shown, self._given)
        scattered, _ = posteriors(adapted, self._images, self._scattered, self._given)
        drawn = as_image_decoder(model)(shown, *adapted.given(self._given, self._shown))
        # One comparison for infinities and NaN, too.
        if not (np.abs(scattered) < _MOST_DRAWABLE).all() or not np.isfinite(drawn).all():
            return None
        return to_bytes(drawn), scattered


def test_labels(dataset: Dataset) -> NDArray[np.int64]:
    """Labels of the test images, int64 [N]; all -1 if the data has no labels."""
    labels = dataset.test.labels
    return labels if dataset.class_names else np.full_like(labels, -1)


def collect_report(
    folder: RunFolder, model: Vae, dataset: Dataset, metrics: Mapping[str, Any]
) -> ReportData:
    """Collects the data of a run's report.

    Args:
        folder: The run folder, with the log and all frames.
        model: The final model.
        dataset: The data set that it was trained on.
        metrics: The final figures.
    """
    config, log = folder.read_config(), folder.read_log()
    test = dataset.test
    mapped = sample_rows(len(test.images), MAPPED)
    means, log_vars = posteriors(as_autoencoder(model), test.images, mapped, test.labels)
    shown = interleave_classes(test.labels, SHOWN)
    labels = test_labels(dataset)
    measured = [entry for entry in log if entry.get("elbo") is not None]
    minutes = metrics.get("train_seconds_per_thread", 0.0) / 60
    return ReportData(
        title=f"{config.preset} on {_short(dataset.name)}",
        facts=[
            ("Model", config.preset + "".join(f" --set {setting}" for setting in config.settings)),
            ("Data", f"{dataset.name}, {config.split['train']} training images"),
            ("Latent dimensions", str(config.model.latent_dim)),
            ("Prior", config.model.prior.kind),
            ("Likelihood", _likelihood(config)),
            ("Steps", f"{config.steps}{_of_images(config)}"),
            ("Seed", str(config.train.seed)),
            ("Time", f"{minutes:.1f} min of CPU time on each of {config.threads} threads"),
        ],
        images=test.images[shown],
        labels=labels[sample_rows(len(labels), SCATTERED)],
        class_names=dataset.class_names,
        frames=[
            Frame(
                step=frame["step"],
                phase=frame["phase"],
                elbo=_elbo_at(frame["step"], measured),
                reconstructions=frame["reconstructions"],
                means=frame["means"],
            )
            for frame in folder.read_frames()
        ],
        log=log,
        means=means,
        log_vars=log_vars,
        map_labels=labels[mapped],
        decode=_plane_decoder(model),
        decoded_class=dataset.class_names[0] if model.config.conditional else "",
        sample=as_sampler(model) if config.model.prior.kind != "none" else None,
        sample_labels=dataset.class_names if model.labels else (),
        metrics=metrics,
        likelihood=config.model.likelihood,
        trained_on_validation=config.train.train_on_validation,
    )


def _plane_decoder(model: Vae) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """The decoder of points in the latent space, of a conditional model as its first class."""
    decode = as_image_decoder(model)
    if not model.config.conditional:
        return decode
    return lambda z: decode(z, np.zeros(len(z), np.int64))


def _likelihood(config: RunConfig) -> str:
    """The likelihood in words."""
    model = config.model
    if model.likelihood == "bernoulli":
        return "bernoulli, of bits" if config.train.binarize else "bernoulli, of grey values"
    components = f", {model.mixture} components" if model.mixture > 1 else ""
    return f"{model.likelihood}{components}"


def _short(source: str) -> str:
    """The name of a data set, or the last part of the path of its first file or its folder."""
    return Path(source.partition(":")[2].partition(",")[0] or source).name


def _elbo_at(step: int, measured: list[dict[str, Any]]) -> float:
    """Mean training ELBO of the last five log entries up to a step; NaN if there are none."""
    near = [entry["elbo"] for entry in measured if entry["step"] <= step][-5:]
    return float(np.mean(near)) if near else float("nan")


def _of_images(config: RunConfig) -> str:
    """The size of a batch, which groups of images do not tell."""
    if config.train.joined > 1:
        return ""
    return f" of {min(config.train.batch_size, config.split['train'])} images"
