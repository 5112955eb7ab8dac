"""Converts a time budget into a number of steps, once, before the first step.

From then on a run with `--budget` is as reproducible as one with `--steps`, since its
schedule is a function of the step.
"""

import re
import statistics
import time

import torch

from training.errors import ConfigError
from training.schedule import Phase, even_parts
from training.trainer import Trainer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 1e6
_TIMED_SECONDS = 3.0
_WINDOWS = 5
# Length of the run that is timed: so long that no timed step leaves its phase.
_NOMINAL_STEPS = 100_000


def parse_duration(text: str) -> float:
    """Parses a duration such as `90s`, `3m` or `1.5h`; returns seconds.

    Raises:
        ConfigError: The text is not a duration, or the duration is 0 or too long.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or not 0 < float(match[1]) < _LONGEST:
        raise ConfigError(f"budget: got {text!r}, wanted a duration such as 90s, 3m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]


def cpu_seconds() -> float:
    """CPU time of this process so far, in seconds, divided by the number of torch's threads.

    On a shared machine it varies less than wall-clock time.
    """
    return time.process_time() / torch.get_num_threads()


def calibrate(trainer: Trainer, seconds: float) -> int:
    """Times steps on copies of the trainer and computes how many fit into the budget.

    Args:
        trainer: A trainer before its first step. Its number of steps is changed, its
            weights are not.
        seconds: The budget, in seconds as counted by `cpu_seconds`.

    Returns:
        The number of steps that train the autoencoder, at least 1. The budget also covers
        the fits of the prior, including the encoding of the training set, and the validations.
    """
    # At most a tenth of the budget is spent on timing.
    window = min(_TIMED_SECONDS, seconds / 10)
    per_step = sum(
        mean * (phase.stop - phase.start) / _NOMINAL_STEPS
        for phase, mean in step_seconds(trainer, window).items()
    )
    # Sets a first estimate of the length, which the overhead depends on. The overhead counts
    # an image encoded for the prior like a validation image.
    trainer.set_length(max(1, round(seconds / per_step)))
    start = cpu_seconds()
    trainer.validate()
    overhead = (cpu_seconds() - start) * trainer.overhead_in_validations()
    overhead += _mixture_seconds(trainer)
    # At least half of the budget is for steps, so a run with a large overhead exceeds it.
    return max(1, round(max(seconds - overhead, seconds / 2) / per_step))


def step_seconds(trainer: Trainer, seconds: float = _TIMED_SECONDS) -> dict[Phase, float]:
    """Times the steps of each phase of a long run on copies of the trainer.

    Args:
        trainer: A trainer before its first step. Its number of steps is changed, its weights are
            not.
        seconds: CPU time to spend, which is exceeded where steps are long.

    Returns:
        The mean CPU seconds of a step, divided by the number of torch's threads, by phase.
    """
    trainer.set_length(_NOMINAL_STEPS)
    parts = {phase: even_parts(phase, trainer.steps, trainer.config) for phase in trainer.phases}
    window = seconds / (_WINDOWS + 1) / sum(map(len, parts.values()))
    found = {}
    for phase, ranges in parts.items():
        total = 0.0
        for steps in ranges:
            twin = trainer.timing_copy(phase, steps.start)
            # The first window warms up; the median ignores disturbances by other processes.
            windows = [_time_steps(twin, window) for _ in range(_WINDOWS + 1)][1:]
            total += statistics.median(windows) * len(steps)
        found[phase] = total / (phase.stop - phase.start)
    return found


def _mixture_seconds(trainer: Trainer) -> float:
    """Estimates the CPU seconds of fitting mixtures, divided by the number of torch's threads."""
    phases = [phase for phase in trainer.phases if not phase.trains_autoencoder]
    if not phases:
        return 0.0
    twin = trainer.timing_copy(phases[0], phases[0].start)
    start = cpu_seconds()
    twin.fit_pretended_mixture()
    return (cpu_seconds() - start) * sum(map(twin.excess, phases))


def _time_steps(trainer: Trainer, seconds: float) -> float:
    """Runs steps for at least `seconds` of CPU time; returns the mean CPU seconds of a step."""
    start, steps = cpu_seconds(), 0
    # All processes do the same number of steps, since in each step they wait for each other.
    while steps == 0 or trainer.parallel.any(cpu_seconds() - start < seconds):
        trainer.train_step()
        steps += 1
    return (cpu_seconds() - start) / steps
