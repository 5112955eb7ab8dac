"""`latentserve train` that kills itself: `python -m tests.support.interrupted ARGUMENTS`.

It draws no pictures. The environment says when it sends itself SIGKILL:

CHECKPOINT_EVERY=N  save a checkpoint after every Nth step only, besides the first and the last
KILL_AT=N           after step N, before any of it is saved
KILL_IN_MIXTURE=N   before the Nth fit of a mixture
KILL_IN_WRITE=N     during the Nth write of a file
KILL_HOST_AT=N      after step N, and before itself the agent of torchrun that started it
KILL_MEASURING=1    before the finished model is measured
KILL_RANK=R         only on the process of this rank
KILL_ONCE=FOLDER    after a step and before measuring only once, which a file here remembers
COMMANDS=FILE       run these lists of arguments one after the other instead, see `run_commands`
"""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import training.prior_fit
import training.report.collect
import training.run
import training.train
from training.cli import main
from training.errors import DataError
from training.parallel import Parallel
from training.run import TrainingRun
from training.run_folder import RunFolder
from training.trainer import Trainer


def setting(name: str) -> int:
    """Integer of an environment variable; 0 if it is not set."""
    return int(os.environ.get(name, "0"))


def die() -> None:
    """Sends SIGKILL to this process if its rank is KILL_RANK, by default 0."""
    if setting("KILL_RANK") == Parallel.from_environment().rank:
        os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, *, with_agent: bool = False) -> None:
    """Dies at a moment of the run, only once if the environment says so."""
    if setting("KILL_RANK") != Parallel.from_environment().rank:
        return
    if folder := os.environ.get("KILL_ONCE"):
        killed = Path(folder, f"killed-{moment}")
        if killed.exists():
            return
        killed.touch()
    if with_agent:
        os.kill(os.getppid(), signal.SIGKILL)
    die()


def dying_in(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `real` so that the process dies just before call number `call`."""
    calls = itertools.count(1)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            die()
        return real(*arguments, **options)

    return wrapped


def without_pictures(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Turns off the pictures of a run, which take longer than the rest of a short run."""
    put(training.run, "write_report", lambda *_arguments: None)
    put(training.report.collect, "write_live", lambda *_arguments: None)


def prepare() -> None:
    """Patches training so that the process dies when the environment says."""
    without_pictures()
    os.fsync = dying_in(setting("KILL_IN_WRITE"), os.fsync)
    training.prior_fit.fit_mixture = dying_in(
        setting("KILL_IN_MIXTURE"), training.prior_fit.fit_mixture
    )
    step, save, complete = Trainer.train_step, RunFolder.save_checkpoint, TrainingRun.complete
    over = False

    def train_step(trainer: Trainer) -> dict[str, float]:
        nonlocal over
        numbers = step(trainer)
        over = trainer.step == trainer.total_steps
        if trainer.step in (setting("KILL_AT"), setting("KILL_HOST_AT")):
            die_at(f"{trainer.step}", with_agent=trainer.step == setting("KILL_HOST_AT"))
        return numbers

    def measured(run: TrainingRun) -> dict[str, Any]:
        if setting("KILL_MEASURING"):
            die_at("measuring")
        return complete(run)

    def save_checkpoint(run: RunFolder, state: dict[str, Any], used: float) -> None:
        if over or state["step"] % setting("CHECKPOINT_EVERY") == 0:
            save(run, state, used)

    Trainer.train_step = train_step  # type: ignore[method-assign]
    TrainingRun.complete = measured  # type: ignore[method-assign]
    if setting("CHECKPOINT_EVERY"):
        training.run._CHECKPOINT_SECONDS = -1.0
        RunFolder.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def run_commands(path: Path) -> None:
    """Runs several commands in one process group.

    Each process writes `PATH.RANK`, a list of the status, stdout and stderr of each
    command. A command that begins with `fails-on-R` runs with data that the process of
    rank R cannot read, and with `differs-on-R` that process has other data.
    """
    parallel = Parallel.from_environment()
    load = training.train.load_dataset
    outcomes = []
    with parallel.process_group():
        Parallel.process_group = lambda _self: contextlib.nullcontext()  # type: ignore[method-assign]
        for first, *arguments in json.loads(path.read_text()):

            def load_dataset(*arguments: Any, first: str = first, **options: Any) -> Any:
                if first == f"fails-on-{parallel.rank}":
                    raise DataError(f"the disk of process {parallel.rank} is broken")
                dataset = load(*arguments, **options)
                if first == f"differs-on-{parallel.rank}":
                    return dataclasses.replace(dataset, sha256={"images": "other"})
                return dataset

            training.train.load_dataset = load_dataset
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(arguments)
            outcomes.append([status, out.getvalue(), err.getvalue()])
    Path(f"{path}.{parallel.rank}").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    if "COMMANDS" in os.environ:
        without_pictures()
        run_commands(Path(os.environ["COMMANDS"]))
        sys.exit(0)
    prepare()
    sys.exit(main(sys.argv[1:]))
