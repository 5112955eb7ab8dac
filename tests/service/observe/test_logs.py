"""Log lines as JSON and as text."""

import json
import re
import subprocess
import sys

import pytest

from service.observe.logs import clean_request_id, new_request_id

PROGRAM = """
import logging, sys
from service.observe import logs
logs.configure(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
log = logging.getLogger("test")
log.debug("quiet")
log.info("hello %s", "there")
token = logs.REQUEST_ID.set("abc-1")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("line one\\nline two")
logs.REQUEST_ID.reset(token)
log.info("after")
import warnings
warnings.warn("old ways")
"""


# Likewise, for a caller whose token has a name.
NAMED = PROGRAM.replace('set("abc-1")', 'set("abc-1")\nlogs.CALLER.set("team-a")')


def logged(level: str, style: str, *worker: str, program: str = PROGRAM) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, level, style, *worker],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


@pytest.mark.parametrize("style", ["json", "auto"])
def test_lines_are_json_objects_unless_stderr_is_a_terminal(style):
    first, failed, after, warned = (json.loads(line) for line in logged("info", style))
    assert first["message"] == "hello there"
    assert (first["level"], first["logger"]) == ("INFO", "test")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert "request_id" not in first
    assert failed["request_id"] == "abc-1"
    assert failed["message"] == "line one\nline two"
    assert "ZeroDivisionError" in failed["exception"]
    assert "request_id" not in after
    assert (warned["level"], "old ways" in warned["message"]) == ("WARNING", True)


def test_text_lines_carry_level_logger_and_request_id():
    lines = logged("info", "text")
    assert lines[0].endswith("INFO test: hello there")
    assert "quiet" not in "".join(lines)
    assert any(line.endswith("ERROR test [abc-1]: line one") for line in lines)
    assert "ZeroDivisionError: division by zero" in lines
    assert any(line.endswith("INFO test: after") for line in lines)


def test_lines_of_a_call_name_its_caller():
    _, failed, after, _ = (json.loads(line) for line in logged("info", "json", program=NAMED))
    assert (failed["request_id"], failed["caller"]) == ("abc-1", "team-a")
    assert "caller" not in after
    lines = logged("info", "text", program=NAMED)
    assert any(line.endswith("ERROR test [abc-1 team-a]: line one") for line in lines)


def test_each_line_of_a_worker_carries_its_number():
    assert {json.loads(line)["worker"] for line in logged("info", "json", "3")} == {3}
    assert all("worker" not in json.loads(line) for line in logged("info", "json"))
    lines = logged("info", "text", "0")
    assert lines[0].endswith("INFO test worker 0: hello there")
    assert any(line.endswith("ERROR test worker 0 [abc-1]: line one") for line in lines)


def test_records_below_the_level_are_left_out():
    assert json.loads(logged("debug", "json")[0])["message"] == "quiet"
    assert len(logged("error", "json")) == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("abc-1_2.3", "abc-1_2.3"), ("", None), ("a b", None), ("x\n", None), ("x" * 65, None)],
)
def test_a_callers_request_id_is_used_only_if_it_is_well_formed(text, wanted):
    assert clean_request_id(text) == wanted


def test_new_request_ids_are_well_formed_and_unique():
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(clean_request_id(request_id) == request_id for request_id in ids)
