"""SIGTERM, SIGINT and SIGHUP at any moment of a server's life have one outcome."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.tiny import write_tiny

LOOPS = ("asyncio.new_event_loop", "uvloop.new_event_loop")


def run(code: str) -> subprocess.CompletedProcess[str]:
    head = "import asyncio, os, signal, threading, time, uvloop\n"
    head += "from service.signals import Signals\nsignals = Signals()\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=30, check=False
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_before_there_is_a_server_a_signal_ends_the_process_with_0(name):
    # Raised in the midst of an import, an exception would be swallowed by `except`.
    done = run(f"try:\n  os.kill(os.getpid(), signal.{name})\nexcept BaseException: pass\nprint(1)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_before_there_is_a_server_sighup_does_nothing():
    assert run("os.kill(os.getpid(), signal.SIGHUP); print(1)").stdout == "1\n"


@pytest.mark.parametrize("loop", LOOPS)
def test_signals_reach_the_loop_whichever_thread_is_interrupted(loop):
    done = run(f"""
async def main():
    got, ready = [], asyncio.Event()
    with signals.delivered(lambda interactive: (got.append(interactive), ready.set()),
                           lambda: got.append("reload")):
        await use(got, ready)
async def use(got, ready):
    other = threading.Thread(target=time.sleep, args=(5,), daemon=True)
    other.start()
    signal.pthread_kill(other.ident, signal.SIGHUP)
    await asyncio.sleep(0.2)
    threading.Timer(0.2, signal.pthread_kill, (other.ident, signal.SIGINT)).start()
    began = time.monotonic()
    await ready.wait()
    assert time.monotonic() - began < 2, time.monotonic() - began
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.2)
    print(got)
with asyncio.Runner(loop_factory={loop}) as runner:
    runner.run(main())
for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    os.kill(os.getpid(), name)
print("end")
""")
    assert done.stdout == "['reload', True, False]\nend\n", done.stderr
    assert done.returncode == 0


def test_sigterm_at_random_moments_of_a_start_ends_it_without_a_traceback(tmp_path):
    """Bounded: six starts, side by side in twos."""
    write_tiny(tmp_path / "models" / "one")
    command = [sys.executable, "-m", "latentserve", "serve", "--models", str(tmp_path / "models"),
               "--port", "0", "--http-port", "off"]  # fmt: skip
    rng = random.Random(16)
    for _ in range(3):
        pair = []
        for name in (signal.SIGTERM, signal.SIGHUP):
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            pair.append((process, name, time.monotonic() + rng.uniform(0.25, 1.0)))
        for process, name, when in pair:
            time.sleep(max(0.0, when - time.monotonic()))
            process.send_signal(name)
            if name == signal.SIGHUP:
                time.sleep(0.1)
                process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
            # Killed by the signal itself only before Python has run a line of ours.
            assert process.returncode in (0, -name, -signal.SIGTERM), errors
            assert "Traceback" not in errors
