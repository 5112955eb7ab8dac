"""Ctrl-C in the middle of a command: it is neither lost nor does it break a step off."""

import signal
import sys
import time

import pytest

from latentserve._cli import interrupt as module
from latentserve._cli.interrupt import Interrupt

pytestmark = pytest.mark.timeout(60, method="thread")  # the other one takes SIGALRM itself


def press() -> None:
    signal.raise_signal(signal.SIGINT)


class Finaliser:
    """Someone presses Ctrl-C as it is collected."""

    def __del__(self) -> None:
        press()


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Those that a command finds, and finds back."""
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.1)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    signal.signal(signal.SIGINT, before)


def test_python_alone_loses_one_in_a_finaliser(monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.exc_type))
    made = Finaliser()
    del made
    assert lost == [KeyboardInterrupt]


def test_it_takes_effect_at_the_next_check():
    with Interrupt() as interrupt:
        interrupt.check()
        made = Finaliser()
        del made
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


def test_a_step_that_takes_too_long_is_broken_off():
    began = time.monotonic()
    with Interrupt():
        press()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
    assert 0.1 <= time.monotonic() - began < 5


def test_a_second_one_is_not_held_back():
    with Interrupt():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_one_at_the_very_end_comes_too_late():
    with Interrupt():
        press()
    time.sleep(0.2)


def test_where_somebody_else_handles_it_nothing_is_changed():
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with Interrupt() as interrupt:
        press()
        interrupt.check()
    assert heard == [1]
    signal.signal(signal.SIGINT, signal.default_int_handler)
