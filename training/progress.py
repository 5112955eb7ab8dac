"""How far a run has come, who is told, and how long the rest will take."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from training.schedule import Phase


@dataclass(frozen=True)
class Progress:
    """How far a run has come, told after each step.

    Attributes:
        phase: What is being trained.
        step: Steps done.
        total_steps: Length of the run, all phases together.
        share: Share of the run's time that is over, 0 to 1.
        numbers: What the step and the last validation measured.
        rows_per_second: Images, or latents while a prior is fitted.
        seconds_left: By the clock, at the speed so far.
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
    """Whom a run talks to.

    Attributes:
        line: Called with a line to print.
        progress: Called after each step.
        between_steps: Entered while steps are done; what it gives tells, between two
            steps, whether to stop. It has to hold back an interrupt until then.
    """

    line: Callable[[str], None] = lambda _line: None
    progress: Callable[[Progress], None] = lambda _progress: None
    between_steps: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(
        lambda: False
    )


class Pace:
    """How long the steps of each phase take, to tell how long all that are left will.

    Args:
        phases: Of the run.
    """

    # Of a step of another phase, where there is nothing better to go by.
    _GUESS = 0.05
    # Seconds of a step, before any has been done.
    _BLIND = 0.01

    def __init__(self, phases: Sequence[Phase]):
        self._phases = phases
        self._seconds: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._begun: set[str] = set()
        self._last = time.monotonic()

    def step(self, phase: Phase) -> None:
        """A step of a phase is done."""
        now, self._last, last = time.monotonic(), time.monotonic(), self._last
        if not phase.trains_autoencoder and phase.name not in self._begun:
            # The first step of a fit also encodes the data set: no measure of the others.
            self._begun.add(phase.name)
            return
        self._seconds[phase.name] = self._seconds.get(phase.name, 0.0) + now - last
        self._steps[phase.name] = self._steps.get(phase.name, 0) + 1

    def of(self, phase: Phase) -> float:
        """Seconds of one step."""
        if phase.name in self._steps:
            return self._seconds[phase.name] / self._steps[phase.name]
        known = [each for each in self._phases if each.name in self._steps]
        alike = [each for each in known if each.trains_autoencoder == phase.trains_autoencoder]
        if alike:
            return self.of(alike[0])
        if not known:
            return self._BLIND
        return self.of(known[0]) * (self._GUESS if known[0].trains_autoencoder else 1 / self._GUESS)

    def seconds(self, begin: int, end: int) -> float:
        """Of the steps between two."""
        spans = (
            (each, max(0, min(end, each.stop) - max(begin, each.start))) for each in self._phases
        )
        return sum(steps * self.of(each) for each, steps in spans if steps)
