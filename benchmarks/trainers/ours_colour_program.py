"""Trains `photo`: `python -m benchmarks.trainers.ours_colour_program`, see `colour_task.py`."""

from benchmarks.trainers.colour_task import Task
from training.budget import calibrate
from training.data.datasets import Dataset, Split
from training.data.targets import Targets
from training.measure.adapter import as_autoencoder
from training.measure.elbo import evaluate
from training.model.likelihood import resolve
from training.presets import find_preset
from training.trainer import Trainer


def main() -> None:
    """Trains and prints the report."""
    task = Task()
    preset = resolve(find_preset(task.network), task.train)
    names = tuple(str(label) for label in range(int(task.labels.max()) + 1))
    train, test = Split(task.train, task.labels), Split(task.test, task.labels[: len(task.test)])
    # A run validates itself on images of its own, whose number is that of the test images here.
    dataset = Dataset("images", train, test, test, names if len(names) > 1 else (), {})
    trainer = Trainer(preset.model, preset.train, dataset, 1)
    task.begin()
    # What is spent on timing the steps counts.
    trainer.set_length(calibrate(trainer, task.seconds))
    images = 0
    while trainer.step < trainer.total_steps:
        images += trainer.rows_per_step() if trainer.phase.trains_autoencoder else 0
        trainer.train_step()
    task.end()
    model = trainer.ema_model
    weights = sum(weight.numel() for weight in model.autoencoder_parameters())
    task.report(
        lambda images: model.likelihood.mean(model.decode(model.encode(images).mean)),
        evaluate(as_autoencoder(model), Targets(task.test, None), seed=1).elbo,
        images=images,
        parameters=weights,
    )


if __name__ == "__main__":
    main()
