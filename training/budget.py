"""Turns a time budget into a number of steps, once, before the run.

The schedule is a function of the step, so a run with a budget is from then on as
reproducible as one with `--steps`.
"""

import re
import statistics
import time

import torch

from training.errors import ConfigError
from training.trainer import Trainer

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 1e6
_TIMED_SECONDS = 3.0
_WINDOWS = 5
# Far from its end: the schedule's first steps are small ones.
_NOMINAL_STEPS = 100_000


def parse_duration(text: str) -> float:
    """Reads a duration such as `90s`, `3m` or `1.5h` and returns seconds.

    Raises:
        ConfigError: It is not one, or it is zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if match is None or not 0 < float(match[1]) < _LONGEST:
        raise ConfigError(f"budget: got {text!r}, wanted a duration such as 90s, 3m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]


def cpu_seconds() -> float:
    """Seconds of CPU this process has used, divided by the threads it computes with.

    Steadier than the clock where a machine is shared.
    """
    return time.process_time() / torch.get_num_threads()


def calibrate(trainer: Trainer, seconds: float) -> int:
    """Times steps on copies of the trainer and returns how many fit the budget.

    Args:
        trainer: A trainer that has not stepped yet; it is left as it is.
        seconds: The budget, in `cpu_seconds`.

    Returns:
        Steps of the autoencoder; what fitting a prior takes beside them is allowed for.
    """
    trainer.set_length(_NOMINAL_STEPS)
    # Never more than a tenth of the budget on finding out.
    window = min(_TIMED_SECONDS, seconds / 10) / (_WINDOWS + 1) / len(trainer.phases)
    per_step = 0.0
    for phase in trainer.phases:
        rehearsal = trainer.timing_copy(phase)
        # The first window warms up. The median passes over what else the machine did.
        windows = [_time_steps(rehearsal, window) for _ in range(_WINDOWS + 1)][1:]
        per_step += statistics.median(windows) * (phase.stop - phase.start) / _NOMINAL_STEPS
    # What a run does beside its steps depends on how many they are. Fitting a mixture
    # to latents takes about as long as the decoding in a validation, which is left out.
    trainer.set_length(max(1, round(seconds / per_step)))
    start = cpu_seconds()
    trainer.validate()
    beside = (cpu_seconds() - start) * trainer.overhead_in_validations()
    return max(1, round(max(seconds - beside, seconds / 2) / per_step))


def _time_steps(trainer: Trainer, seconds: float) -> float:
    """Does steps for that long and returns the seconds of one."""
    start, steps = cpu_seconds(), 0
    # Several processes have to do the same number of steps: each waits for the others.
    while steps == 0 or trainer.parallel.any(cpu_seconds() - start < seconds):
        trainer.train_step()
        steps += 1
    return (cpu_seconds() - start) / steps
