"""The commands in a model card that reproduce the bundle."""

import shlex
from collections.abc import Sequence

from bundle import DatasetRef, Manifest
from training.data.spec import data_options

# Defaults of `export` and `evaluate`: an option with its default value is left out.
_DEFAULT_IMAGES = 1000
_DEFAULT_SAMPLES = 10_000
_WIDTH = 100


def train_command(manifest: Manifest, dataset: DatasetRef) -> str:
    """The command that repeats the training."""
    training, spec = manifest.training, dataset.spec
    options = [f"--preset {training.get('preset')}"]
    options.append(f"--data {shlex.quote(spec.get('source', dataset.name))}")
    options += data_options(spec)
    options += [f"--set {shlex.quote(setting)}" for setting in training.get("settings", [])]
    if init := training.get("init"):
        folder = f"MODELS/{init['run']}" if init["step"] is None else init["run"]
        options.append(f"--init {shlex.quote(folder)}")
    options.append(f"--steps {training.get('steps')}")
    if training.get("device"):
        options.append(f"--device {str(training['device']).partition(':')[0]}")
    if training.get("precision", "float32") != "float32":
        options.append(f"--precision {training['precision']}")
    options.append("--out RUN")
    processes = training.get("processes", 1)
    program = "latentserve train"
    if processes > 1:
        program = f"torchrun --nproc-per-node {processes} -m latentserve train"
    return _command(program, options)


def export_command(manifest: Manifest) -> str:
    """The command that repeats the export and measures the same metrics."""
    options = ["RUN", f"--to MODELS/{manifest.name}"]
    if manifest.precision != "fp32":
        options.append(f"--decoder {manifest.precision}")
    if manifest.weights != "fp32":
        options.append(f"--weights {manifest.weights}")
    return _command("latentserve export", options + _measures(manifest))


def evaluate_command(manifest: Manifest, dataset: DatasetRef) -> str:
    """The command that measures the bundle's metrics again."""
    options = [f"MODELS/{manifest.name}/{manifest.version}", *_measures(manifest)]
    if ":" in dataset.name:
        options.append(f"--data {shlex.quote(dataset.name)}")
    return _command("latentserve evaluate", options)


def _measures(manifest: Manifest) -> list[str]:
    """The options with which `export` and `evaluate` measure the same metrics."""
    metrics = manifest.metrics
    # By default, samples are judged if there is a classifier for the data; 0 switches that off.
    data = manifest.dataset.name if manifest.dataset else ""
    can_judge = data == "mnist" and manifest.image_shape == (1, 28, 28)
    unjudged = 0 if can_judge and manifest.prior != "none" else None
    stated = {
        "--draws": (metrics.get("draws"), 1),
        "--importance": (metrics.get("importance_draws"), None),
        "--importance-images": (metrics.get("importance_images"), _DEFAULT_IMAGES),
        "--samples": (metrics.get("samples", unjudged), _DEFAULT_SAMPLES),
        "--seed": (metrics.get("seed"), 0),
    }
    return [
        f"{option} {value}"
        for option, (value, default) in stated.items()
        if value is not None and value != default
    ]


def _command(program: str, options: Sequence[str]) -> str:
    """A shell command, broken into lines of at most `_WIDTH` characters."""
    lines = [program]
    for option in options:
        if len(lines[-1]) + len(option) > _WIDTH - 3:
            lines.append(f"   {option}")
        else:
            lines[-1] += f" {option}"
    return " \\\n".join(lines)
