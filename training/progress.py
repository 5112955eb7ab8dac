"""Progress of a run: what an observer receives, and the estimate of the time left."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from training.schedule import Phase


@dataclass(frozen=True)
class Progress:
    """Progress of a run after a step.

    Attributes:
        phase: Name of the phase.
        step: Steps done.
        total_steps: Steps of all phases.
        share: Estimated share of the run's time that has passed, 0 to 1.
        numbers: Results of `Trainer.train_step` and of the last `Trainer.validate`, by name.
        rows_per_second: Throughput in images, or in latents while a prior is fitted.
        seconds_left: Estimated wall-clock time until the last step.
    """

    phase: str
    step: int
    total_steps: int
    share: float
    numbers: dict[str, float]
    rows_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Observer:
    """Callbacks of a run.

    Attributes:
        line: Called with a line to print.
        progress: Called after each step.
        between_steps: Returns the context manager that all steps run in, which defers
            interrupts. It yields a function, called between steps, that returns whether to
            stop.
        loading: Called while the data is read, with the name of the work, the images done, and
            all of them.
    """

    line: Callable[[str], None] = lambda _line: None
    progress: Callable[[Progress], None] = lambda _progress: None
    between_steps: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(
        lambda: False
    )
    loading: Callable[[str, int, int], None] = lambda _stage, _done, _total: None


class Pace:
    """Measures the duration of the steps of each phase, to estimate the time left.

    Args:
        phases: The phases of the run.
    """

    # Assumed ratio of the duration of a step that fits the prior to that of one that trains the
    # autoencoder, while only one of the two has been measured.
    _FIT_STEP = 0.05
    # Assumed seconds of a step, while none has been measured.
    _ANY_STEP = 0.01

    def __init__(self, phases: Sequence[Phase]):
        self._phases = phases
        self._seconds: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._begun: set[str] = set()
        self._last = time.monotonic()

    def step(self, phase: Phase) -> None:
        """Records that a step of a phase has just been done."""
        now, self._last, last = time.monotonic(), time.monotonic(), self._last
        if not phase.trains_autoencoder and phase.name not in self._begun:
            # The first step of a fit also encodes the data set, unlike those after it.
            self._begun.add(phase.name)
            return
        self._seconds[phase.name] = self._seconds.get(phase.name, 0.0) + now - last
        self._steps[phase.name] = self._steps.get(phase.name, 0) + 1

    def of(self, phase: Phase) -> float:
        """Mean seconds of a step of a phase; an estimate if no step of it has been measured."""
        if phase.name in self._steps:
            return self._seconds[phase.name] / self._steps[phase.name]
        measured = [other for other in self._phases if other.name in self._steps]
        if not measured:
            return self._ANY_STEP
        similar = [
            other for other in measured if other.trains_autoencoder == phase.trains_autoencoder
        ]
        if similar:
            return self.of(similar[0])
        factor = self._FIT_STEP if measured[0].trains_autoencoder else 1 / self._FIT_STEP
        return self.of(measured[0]) * factor

    def seconds(self, begin: int, end: int) -> float:
        """Estimated seconds of the steps from `begin` up to, but not including, `end`."""
        spans = (
            (phase, max(0, min(end, phase.stop) - max(begin, phase.start)))
            for phase in self._phases
        )
        return sum(steps * self.of(phase) for phase, steps in spans if steps)
