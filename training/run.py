"""A training run: begun or resumed, trained to its last step, measured and reported."""

import dataclasses
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentserve import __version__
from training.budget import calibrate, cpu_seconds
from training.data.datasets import Dataset, Split
from training.data.rows import interleave_classes, sample_rows
from training.data.spec import DataSpec
from training.errors import CheckpointError, DataError
from training.initial import begin_with
from training.measure.adapter import as_autoencoder, as_image_decoder
from training.measure.elbo import evaluate, mean_scores, percentiles
from training.measure.protocol import TEST_SEED, describe, test_images
from training.measure.quality import measure_quality
from training.model.preset import Preset
from training.parallel import Parallel
from training.progress import Observer, Pace, Progress
from training.report import write_report
from training.report.collect import MovieRecorder, collect_report
from training.run_config import Init, RunConfig
from training.run_folder import RunFolder
from training.schedule import Phase
from training.trainer import Trainer

# Most training images whose scores the percentiles are of, drawn from all by a seed. Large images
# take long to score: of those, fewer, so that they have about so many values together.
_SCORED = 1 << 16
_SCORED_VALUES, _SCORED_LEAST = 1 << 26, 10_000
#: Test images kept for export.
GOLDEN_IMAGES = 16

# Approximate number of logged steps.
_LOG_LINES = 200
# Least time between two checkpoints.
_CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """A training as requested on the command line.

    Attributes:
        preset: Name of the preset; None for what suits the data.
        data: The data set.
        out: Path of the run folder.
        steps: Length of the run in steps of the autoencoder; None to derive it from
            `budget`.
        budget: Length of the run in seconds of CPU time per thread; ignored if `steps` is given.
        settings: Overrides of the preset, `key=value` each.
        resume: Whether to resume a run in `out`; without it, an existing run is an error.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        bfloat16: Whether the networks compute in bfloat16.
        copy_to: URL of object storage that the run folder is copied to; None for no copy.
        init: Path of the run whose weights a new one begins with; None for random ones.
    """

    preset: str | None
    data: DataSpec
    out: Path
    steps: int | None
    budget: float
    settings: tuple[str, ...] = ()
    resume: bool = False
    device: str = "cpu"
    bfloat16: bool = False
    copy_to: str | None = None
    init: Path | None = None


class TrainingRun:
    """A training run, new or resumed, with everything that it works on.

    Call `begin` or `resume` first, then `run_steps`, and then, in the leading process
    only, `complete`.

    Args:
        request: The training as requested, with the name of its preset.
        preset: The preset with the settings of the request applied.
        folder: The run folder, locked by the leading process.
        dataset: The data set.
        trainer: The trainer, before its first step.
        observer: Callbacks for lines to print and for progress.
        parallel: This process's place among those that share the work.
    """

    def __init__(
        self,
        request: Request,
        preset: Preset,
        folder: RunFolder,
        dataset: Dataset,
        trainer: Trainer,
        observer: Observer,
        parallel: Parallel,
    ):
        self._request = request
        self._preset = preset
        self._folder = folder
        self._dataset = dataset
        self._trainer = trainer
        self._observer = observer
        self._parallel = parallel
        # CPU seconds per thread that the steps have taken, including those before a resume.
        self._seconds_used = 0.0
        self._validation: dict[str, float] = {}
        self._init: Init | None = None

    def begin(self) -> None:
        """Determines the length of a new run; writes its config and its first checkpoint."""
        request, trainer, parallel = self._request, self._trainer, self._parallel
        if request.init is not None:
            init = self._init = begin_with(request.init, trainer, parallel)
            after = "" if init.step is None else f" after {init.step} steps"
            self._observer.line(f"beginning with the weights of {init.run}{after}")
        # The length comes first: the schedule of the very first step depends on it.
        if request.steps is None:
            self._observer.line("timing a few steps on a copy of the model ...")
            trainer.set_length(parallel.broadcast(calibrate(trainer, request.budget)))
        with parallel.fail_together():
            if parallel.leads:
                self._folder.write_json("config.json", self._config().to_json())
                self._folder.save_checkpoint(trainer.state_dict(), 0.0)
        self._observer.line(
            f"training {request.preset} on {trainer.images} images of {self._dataset.name}"
            f"{_shared(parallel)}: {_length(trainer)}"
        )

    def resume(self) -> None:
        """Restores the trainer from the run's last checkpoint.

        Raises:
            CheckpointError: The config or the checkpoint is damaged, or of another model.
            DataError: The data has changed since the run began.
        """
        kept = None
        with self._parallel.fail_together():
            if self._parallel.leads:
                kept = self._folder.read_config(), *self._folder.load_checkpoint()
        config, state, seconds_used = self._parallel.broadcast(kept)
        path, trainer = self._folder.path, self._trainer
        with self._parallel.fail_together():
            if config.data_sha256 != self._dataset.sha256:
                raise DataError(f"{config.data} here is not the data that {path} was begun with")
            try:
                trainer.load_state_dict(state)
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}: checkpoint.pt is not of this model") from error
        for name, now in self._conditions().items():
            before = getattr(config, name)
            if before != now:
                self._observer.line(
                    f"note: {name} was {before} and is {now}: the numbers may differ from those of "
                    "an unbroken run"
                )
        self._observer.line(
            f"resuming {path} at step {trainer.step} of {trainer.total_steps}"
            f"{_shared(self._parallel)}"
        )
        self._seconds_used = float(seconds_used)

    def run_steps(self) -> None:
        """Trains to the last step, or until the observer asks to stop.

        Checkpoints are saved only between steps, so that each holds a consistent state.

        Raises:
            KeyboardInterrupt: The observer asked to stop; a checkpoint was saved.
        """
        trainer, parallel = self._trainer, self._parallel
        before, start = self._seconds_used, cpu_seconds()

        def seconds_used() -> float:
            return before + cpu_seconds() - start

        def save() -> None:
            if parallel.leads:
                self._folder.save_checkpoint(trainer.state_dict(), seconds_used())

        last_checkpoint = time.monotonic()
        pace = Pace(trainer.phases)
        movie = MovieRecorder(self._folder, trainer, self._dataset) if parallel.leads else None
        entered: Phase | None = None

        with self._observer.between_steps() as stop_requested:
            stopped = parallel.any(stop_requested())
            while trainer.step < trainer.total_steps and not stopped:
                phase, rows = trainer.phase, trainer.rows_per_step()
                if phase != entered:
                    self._announce(phase)
                    entered = phase
                if movie:
                    movie.before_step()
                numbers = trainer.train_step()
                pace.step(phase)
                validated = self._validate_if_due()
                if movie:
                    self._log(phase, numbers | validated, movie)
                    self._report_progress(phase, rows, numbers, pace)
                    if time.monotonic() - last_checkpoint > _CHECKPOINT_SECONDS:
                        save()
                        last_checkpoint = time.monotonic()
                stopped = parallel.any(stop_requested())
            if movie and not stopped:
                movie.last_frame()
            save()
        if stopped:
            raise KeyboardInterrupt
        self._seconds_used = seconds_used()

    def complete(self) -> dict[str, Any]:
        """Measures the model, writes the report, and marks the run as complete.

        Returns:
            The content of `metrics.json`.

        Raises:
            DivergenceError: The model's ELBO is not finite.
        """
        dataset, trainer, folder = self._dataset, self._trainer, self._folder
        self._observer.line(f"measuring on the {len(dataset.test.images)} test images ...")
        averaged = trainer.ema_model.eval()
        model = as_autoencoder(averaged)
        binarized = trainer.config.binarize
        images = test_images(dataset, binarized=binarized)
        with np.errstate(all="ignore"):  # of a model that has diverged
            result = evaluate(model, images, labels=dataset.test.labels, seed=TEST_SEED)
        trainer.check_finite(result.elbo, result.reconstruction)
        folder.write_golden_inputs(*golden_images(dataset.test))
        most = _SCORED_VALUES // math.prod(dataset.image_shape)
        rows = sample_rows(len(dataset.train.images), min(_SCORED, max(_SCORED_LEAST, most)))
        scored = mean_scores(model, dataset.train.images, rows, dataset.train.labels)
        folder.write_json(
            "score_percentiles.json",
            {
                "score": "negative ELBO at the posterior mean of the unbinarized image, nats",
                "images": len(scored),
                "percentiles": percentiles(scored),
            },
        )
        test = dataset.test
        quality = measure_quality(model, as_image_decoder(averaged), test.images, test.labels)
        described = describe(result, binarized=binarized, likelihood=model.likelihood)
        metrics = (
            described
            | dataclasses.asdict(quality)
            | {
                "train_seconds_per_thread": round(self._seconds_used, 1),
                "steps": trainer.steps,
                "skipped_steps": trainer.skipped,
            }
        )
        report = collect_report(folder, averaged, dataset, metrics)
        write_report(folder.path, report, self._observer.line)
        folder.write_json("metrics.json", metrics)
        return metrics

    def _config(self) -> RunConfig:
        request, preset, dataset = self._request, self._preset, self._dataset
        return RunConfig(
            preset=str(request.preset),
            settings=request.settings,
            model=preset.model,
            train=preset.train,
            steps=self._trainer.steps,
            budget_seconds=request.budget if request.steps is None else None,
            **self._conditions(),
            data=request.data,
            data_sha256=dataset.sha256,
            image_shape=dataset.image_shape,
            class_names=dataset.class_names,
            init=self._init,
            split={
                "train": self._trainer.images,
                "validation": len(dataset.validation.images),
                "test": len(dataset.test.images),
            },
            versions={
                "latentserve": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
        )

    def _conditions(self) -> dict[str, Any]:
        """Conditions that affect the last bits of the results, by field name of RunConfig."""
        return {
            "threads": torch.get_num_threads(),
            "processes": self._parallel.world,
            "device": str(self._trainer.device),
            "precision": "bfloat16" if self._request.bfloat16 else "float32",
        }

    def _announce(self, phase: Phase) -> None:
        """Prints, before a fit of the prior, that it begins by encoding the training images."""
        if not phase.trains_autoencoder:
            count = self._trainer.images
            self._observer.line(f"{phase.name}: encoding the {count} training images first ...")

    def _validate_if_due(self) -> dict[str, float]:
        """Validates the model if that is due; ends a phase of the autoencoder with the best one.

        Returns:
            What was measured, and as `back_to_step` the step whose weights the model went back to,
            if it did; empty if no validation is due.
        """
        trainer, parallel = self._trainer, self._parallel
        if trainer.step not in trainer.validation_steps:
            return {}
        self._validation = parallel.broadcast(trainer.validate() if parallel.leads else {})
        best = trainer.keep_best(self._validation)
        if best is None:
            return self._validation
        self._observer.line(
            f"going back to the weights of step {best}, which fit the validation images better "
            f"than those of step {trainer.step}"
        )
        return self._validation | {"back_to_step": best}

    def _log(self, phase: Phase, numbers: dict[str, float], movie: MovieRecorder) -> None:
        """Logs the step if it was validated, or an entry is due."""
        trainer, total = self._trainer, self._trainer.total_steps
        entry = {"step": trainer.step, "phase": phase.name} | numbers
        if "validation_elbo" in numbers:
            self._folder.log(entry)
            movie.draw_live(numbers["validation_elbo"])
        elif trainer.step % max(1, total // _LOG_LINES) == 0:
            self._folder.log(entry)

    def _report_progress(
        self, phase: Phase, rows: int, numbers: dict[str, float], pace: Pace
    ) -> None:
        step, total = self._trainer.step, self._trainer.total_steps
        left = pace.seconds(step, total)
        self._observer.progress(
            Progress(
                phase=phase.name,
                step=step,
                total_steps=total,
                share=1.0 - left / pace.seconds(0, total),
                numbers=numbers | self._validation,
                rows_per_second=rows / pace.of(phase),
                seconds_left=left,
            )
        )


def golden_images(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Picks n images, spread over all classes: uint8 [n, C, H, W], and labels, int64 [n]."""
    chosen = interleave_classes(split.labels, GOLDEN_IMAGES)
    return split.images[chosen], split.labels[chosen]


def _shared(parallel: Parallel) -> str:
    """Says how many processes share the work, if there are several."""
    return f" in {parallel.world} processes" if parallel.world > 1 else ""


def _length(trainer: Trainer) -> str:
    """Describes the length of a run in words."""
    steps = f"{trainer.steps} steps of {trainer.batch_size} images"
    fits = [phase for phase in trainer.phases if not phase.trains_autoencoder]
    if not fits:
        return steps
    latents = sum(phase.stop - phase.start for phase in fits)
    return f"{steps}, and {latents} quick ones that fit the prior"
