"""Runs a job of `batch`: its progress bar, what it says of outages, and how it ends."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from latentserve._cli.batch_place import client_of, runner_of
from latentserve._cli.common import Run, counted
from latentserve._cli.failures import Failure, printable
from latentserve._cli.interrupt import Interrupt
from latentserve._cli.progress import ProgressBar
from latentserve._files import reason
from latentserve._urls import without_secrets

if TYPE_CHECKING:
    from latentserve.client import Client
    from latentserve.jobs import Finished, Progress

# How long Ctrl-C waits for the request in flight: the server may never answer.
_PATIENCE_SECONDS = 2.0
# Number of failed attempts after which an outage is reported.
_REPORTED_ATTEMPT = 4


def with_progress(
    job: "Callable[[argparse.Namespace, Client, dict[str, Any]], Finished]",
) -> Run:
    """Wraps a job in a command: with a progress bar, a clean stop on Ctrl-C and a final report."""

    def run(options: argparse.Namespace) -> int:
        from latentserve.errors import (
            FailedPrecondition,
            InvalidArgument,
            LatentserveError,
            NotFound,
        )
        from latentserve.jobs import JobError, MissingPackage, SourceError

        bar, latest = ProgressBar(), _Latest()
        interrupt = Interrupt(patience=_PATIENCE_SECONDS)
        to = printable(without_secrets(options.to))

        def progress(now: "Progress") -> None:
            latest.progress = now
            name = options.job if now.stage == "working" else "reading the source"
            bar.count(name, now.rows, now.total)
            interrupt.check()

        common = {
            "model": options.model,
            "version": options.model_version,
            "shard_rows": options.shard_rows,
            "format": options.format,
            "verify": options.verify,
            "single_writer": options.single_writer,
            "progress": progress,
        }
        try:
            with (
                bar,
                interrupt,
                interrupt.held(),
                _reporting_retries(bar),
                client_of(options) as client,
            ):
                common["runner"] = runner_of(options, client)
                done = job(options, client, common)
        except (JobError, MissingPackage, SourceError) as error:
            raise Failure(printable(str(error))) from error
        except (LatentserveError, OSError, MemoryError) as error:
            # The same command would be refused again.
            again = not isinstance(error, FailedPrecondition | InvalidArgument | NotFound)
            raise Failure(f"{_message(error)}{latest.rows_complete(to, again=again)}") from error
        except KeyboardInterrupt:
            print(
                f"latentserve batch: stopped{latest.rows_complete(to, again=True)}", file=sys.stderr
            )
            return 130
        for name in done.lost:
            print(f"{to}: {name} was missing or damaged and was written again", file=sys.stderr)
        print(f"{to}: {_summary(done)}")
        return 0

    return run


@contextlib.contextmanager
def _reporting_retries(bar: ProgressBar) -> Iterator[None]:
    """Prints one line for each outage, once a call has failed `_REPORTED_ATTEMPT` times."""
    logger = logging.getLogger("latentserve.client")

    class Report(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Once for each outage; earlier failures may mean that the server is being replaced.
            if getattr(record, "failed", 0) == _REPORTED_ATTEMPT and isinstance(record.args, tuple):
                bar.line(f"latentserve batch: {printable(str(record.args[1]))}; trying again")

    report, level = Report(), logger.level
    logger.addHandler(report)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(report)
        logger.setLevel(level)


class _Latest:
    """Latest progress of a job, for the report if the job stops early."""

    progress: "Progress | None" = None

    def rows_complete(self, folder: str, *, again: bool) -> str:
        """Returns how many rows are complete; empty before any progress.

        Args:
            folder: Folder of the job, for the text.
            again: Whether to say how to resume.
        """
        if self.progress is None:
            return ""
        whole, total = self.progress.whole, self.progress.total
        hint = ", run the same command again to resume" if again else ""
        return f"; {whole:,} of {total:,} rows are complete in {folder}{hint}"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError):
        name = "" if error.filename is None else f"{printable(str(error.filename))}: "
        return name + reason(error)
    return str(error) or type(error).__name__


def _summary(done: "Finished") -> str:
    rows, shards = counted(done.rows, "row"), counted(done.shards, "shard")
    seed = "" if done.seed is None else f", seed {done.seed}"
    was = "finished already: " if done.rows_before == done.rows else ""
    return f"{was}{rows} in {shards}, model {done.model}/{done.version}{seed}"
