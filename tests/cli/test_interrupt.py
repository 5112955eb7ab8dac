"""Ctrl-C during a command: it is never lost and interrupts no step."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from latentserve._cli.interrupt import Interrupt

pytestmark = pytest.mark.timeout(60, method="thread")  # the other one takes SIGALRM itself


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def held(*signals: signal.Signals, patience: float | None = 0.1) -> Iterator[Interrupt]:
    with Interrupt(*signals, patience=patience) as interrupt, interrupt.held():
        yield interrupt


class Finaliser:
    """Ctrl-C is pressed while it is collected."""

    def __del__(self) -> None:
        press_ctrl_c()


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handlers, before and after each test."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    signal.signal(signal.SIGINT, before)


def test_python_alone_loses_an_interrupt_in_a_finaliser(monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.exc_type))
    made = Finaliser()
    del made
    assert lost == [KeyboardInterrupt]


def test_an_interrupt_takes_effect_at_the_next_check():
    with held() as interrupt:
        interrupt.check()
        made = Finaliser()
        del made
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()


def test_a_step_is_interrupted_after_the_patience():
    began = time.monotonic()
    with held():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
    assert 0.1 <= time.monotonic() - began < 5


def test_a_second_interrupt_is_not_held_back():
    with held():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_an_interrupt_after_the_last_check_has_no_effect():
    with held(patience=10.0):
        press_ctrl_c()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)  # nothing can come any more


def test_a_handler_that_is_installed_already_stays():
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with held() as interrupt:
        press_ctrl_c()
        interrupt.check()
    assert heard == [1]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held() as interrupt:
        press_ctrl_c()
        interrupt.check()
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_no_handler_is_installed_in_another_thread():
    handlers = []

    def work():
        with held():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_held_back_only_during_steps(number):
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt(signal.SIGINT, signal.SIGTERM) as interrupt:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with interrupt.held() as asked_to_stop:
            assert not asked_to_stop()
            signal.raise_signal(number)
            assert asked_to_stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_patience_a_step_may_take_long():
    with held(patience=None) as interrupt:
        press_ctrl_c()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
