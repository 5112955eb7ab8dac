"""Logging to stderr, as text or JSON, with the request id on every line of a call."""

import contextvars
import logging
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

Style = Literal["auto", "text", "json"]

#: Request id of the call being answered; empty outside of calls.
REQUEST_ID: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST_ID", default="")
#: Name of the token of that call's caller; empty if it has none.
CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("CALLER", default="")

_TEXT = "%(asctime)s %(levelname)s %(name)s%(of_worker)s%(call)s: %(message)s"
# What stores' tools do is logged by those who use them. At `debug`, these would also show requests
# with the tokens of sessions.
_TALKATIVE = ("aiobotocore", "azure", "botocore", "fsspec", "gcsfs", "paramiko", "s3fs", "urllib3")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def configure(level: str, style: Style = "auto", worker: int | None = None) -> None:
    """Sends log records and Python warnings to stderr.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        style: `text`, `json`, or `auto` for text at a terminal and JSON elsewhere.
        worker: Number of this worker, shown on each line; None for a single process.
    """

    def with_worker(record: logging.LogRecord) -> bool:
        if worker is not None:
            record.worker = worker
        return True

    as_json = style == "json" or (style == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text(_TEXT))
    handler.addFilter(_with_request_id)
    handler.addFilter(with_worker)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel("ERROR")
    logging.captureWarnings(True)  # else they would be plain lines among the JSON


@contextmanager
def of_request(request_id: str, caller: str) -> Iterator[None]:
    """Log records within are those of a request; for code that has no task, and so no context."""
    before = REQUEST_ID.set(request_id), CALLER.set(caller)
    try:
        yield
    finally:
        REQUEST_ID.reset(before[0])
        CALLER.reset(before[1])


def new_request_id() -> str:
    """Returns a random id of 16 hexadecimal digits."""
    return f"{random.getrandbits(64):016x}"


def clean_request_id(text: str) -> str | None:
    """Returns a caller's request id if it is 1 to 64 characters of A-Za-z0-9._-, else None."""
    return text if _REQUEST_ID.fullmatch(text) else None


class _Text(logging.Formatter):
    """Formats a record as one line of text, with the request id in brackets."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Formats the line itself, without a traceback."""
        worker = getattr(record, "worker", None)
        record.of_worker = "" if worker is None else f" worker {worker}"
        call = [getattr(record, name, "") for name in ("request_id", "caller")]
        record.call = f" [{' '.join(filter(None, call))}]" if any(call) else ""
        return super().formatMessage(record)


class _Json(JsonFormatter):
    """Formats a record as one line of JSON: time, level, logger, message, optional fields."""

    def __init__(self) -> None:
        super().__init__(
            [
                *("asctime", "levelname", "name", "worker", "message"),
                *("request_id", "caller", "exc_info"),
            ],
            rename_fields={
                "asctime": "time",
                "levelname": "level",
                "name": "logger",
                "exc_info": "exception",
            },
        )

    def formatTime(  # noqa: N802 - logging's name
        self,
        record: logging.LogRecord,
        datefmt: str | None = None,  # noqa: ARG002 - logging's signature
    ) -> str:
        """Formats the time: ISO 8601, UTC, milliseconds."""
        when = datetime.fromtimestamp(record.created, UTC)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Leaves out the fields that are None."""
        return {name: value for name, value in log_data.items() if value is not None}


def _with_request_id(record: logging.LogRecord) -> bool:
    if request_id := REQUEST_ID.get():
        record.request_id = request_id
        if caller := CALLER.get():
            record.caller = caller
    return True
