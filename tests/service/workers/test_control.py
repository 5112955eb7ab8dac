"""How the supervisor and a worker talk: questions, answers, and the other side's death."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys

import pytest

from service.workers.control import Link, LinkLost, line


@contextlib.asynccontextmanager
async def linked(**handlers):
    """A link, whose other end is a bare socket's streams."""
    ours, its = socket.socketpair()
    link = await Link.over(ours, handlers)
    reader, writer = await asyncio.open_unix_connection(sock=its)
    talking = asyncio.create_task(link.talk())
    try:
        yield link, reader, writer, talking
    finally:
        writer.close()
        await asyncio.wait_for(talking, 5)


async def echo(value):
    return value


async def fails(_value):
    raise ZeroDivisionError


def test_both_ask_at_once_and_answers_may_come_in_any_order():
    async def run():
        ours, its = socket.socketpair()
        first = asyncio.Event()

        async def slow(value):
            await first.wait()
            return value

        async def quick(value):
            first.set()
            return value

        ends = [await Link.over(each, {"slow": slow, "quick": quick}) for each in (ours, its)]
        talking = [asyncio.create_task(end.talk()) for end in ends]
        asked = [("slow", [1]), ("quick", None), ("slow", "ü\n"), ("quick", {"a": 2})]
        answers = await asyncio.gather(
            *(end.ask(name, value) for end in ends for name, value in asked)
        )
        assert answers == 2 * [value for _, value in asked]
        ours.shutdown(socket.SHUT_RDWR)
        await asyncio.wait_for(asyncio.gather(*talking), 5)

    asyncio.run(run())


def test_a_question_ends_with_the_other_side_and_after_it_there_is_none():
    async def run():
        async with linked() as (link, reader, writer, talking):
            asked = asyncio.create_task(link.ask("x"))
            await reader.readline()
            # Killed in the middle of a line.
            writer.write(line("answer", 0, "whole")[:-5])
            writer.close()
            with pytest.raises(LinkLost):
                await asyncio.wait_for(asked, 5)
            await talking
            with pytest.raises(LinkLost):
                await link.ask("x")
            link.tell("x")

    asyncio.run(run())


def test_a_late_answer_is_nobodys():
    async def run():
        async with linked() as (link, reader, writer, _):
            with pytest.raises(TimeoutError):
                await link.ask("x", seconds=0.05)
            writer.write(line("answer", 0, "late"))
            asked = asyncio.create_task(link.ask("y"))
            assert await reader.readline() == line("x", 0)
            assert await reader.readline() == line("y", 1)
            writer.write(line("answer", 1, "its own"))
            assert await asked == "its own"

    asyncio.run(run())


def test_what_fails_is_told_to_who_asked_and_the_link_goes_on(caplog):
    async def run():
        async with linked(echo=echo, fails=fails) as (link, reader, writer, _):
            for name in ("fails", "unknown"):
                writer.write(line(name, 7))
                kind, number, said = json.loads(await reader.readline())
                assert (kind, number) == ("failure", 7)
                assert ("ZeroDivisionError" if name == "fails" else "KeyError") in said
            writer.write(line("echo", 8, [1, 2]))
            assert await reader.readline() == line("answer", 8, [1, 2])
            asked = asyncio.create_task(link.ask("x"))
            await reader.readline()
            writer.write(line("failure", 0, "OSError: full"))
            with pytest.raises(LinkLost, match="OSError: full"):
                await asked

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text


def test_a_worker_whose_loop_is_stuck_ends_some_time_after_the_supervisor():
    code = (
        "import service.workers.worker as w; "
        "w.END_SECONDS = 0.1; print(1, flush=True); w._end_alone(0.1)"
    )
    ours, its = socket.socketpair()
    with (
        ours,
        its,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=its, stdout=subprocess.PIPE
        ) as process,
    ):
        its.close()
        process.stdout.readline()
        ours.sendall(b"what it is told wakes nobody\n")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        ours.close()
        assert process.wait(5) == 1
