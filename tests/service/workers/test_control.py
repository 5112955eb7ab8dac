"""The control channel between supervisor and worker: requests, answers, and the peer's death."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys

import pytest

from service.workers.control import ControlChannel, RequestFailed, encode_message


@contextlib.asynccontextmanager
async def opened(**handlers):
    """A channel with the bare streams of its other end, and the task that runs it."""
    ours, theirs = socket.socketpair()
    channel = await ControlChannel.open(ours, handlers)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    running = asyncio.create_task(channel.run())
    try:
        yield channel, reader, writer, running
    finally:
        writer.close()
        await asyncio.wait_for(running, 5)


async def echo(value):
    return value


async def fails(_value):
    raise ZeroDivisionError


async def test_both_sides_request_at_once_and_answers_come_in_any_order():
    ours, theirs = socket.socketpair()
    first = asyncio.Event()

    async def slow(value):
        await first.wait()
        return value

    async def quick(value):
        first.set()
        return value

    handlers = {"slow": slow, "quick": quick}
    channels = [await ControlChannel.open(end, handlers) for end in (ours, theirs)]
    running = [asyncio.create_task(channel.run()) for channel in channels]
    requests = [("slow", [1]), ("quick", None), ("slow", "ü\n"), ("quick", {"a": 2})]
    answers = await asyncio.gather(
        *(channel.request(method, value) for channel in channels for method, value in requests)
    )
    assert answers == 2 * [value for _, value in requests]
    ours.shutdown(socket.SHUT_RDWR)
    await asyncio.wait_for(asyncio.gather(*running), 5)


async def test_a_request_fails_when_the_other_side_closes_and_so_do_later_ones():
    async with opened() as (channel, reader, writer, running):
        request = asyncio.create_task(channel.request("x"))
        await reader.readline()
        # Killed in the middle of a line.
        writer.write(encode_message("answer", 0, "whole")[:-5])
        writer.close()
        with pytest.raises(RequestFailed):
            await asyncio.wait_for(request, 5)
        await running
        with pytest.raises(RequestFailed):
            await channel.request("x")
        channel.notify("x")


async def test_an_answer_after_the_timeout_is_not_taken_for_that_of_the_next_request():
    async with opened() as (channel, reader, writer, _):
        with pytest.raises(TimeoutError):
            await channel.request("x", timeout_seconds=0.05)
        writer.write(encode_message("answer", 0, "late"))
        request = asyncio.create_task(channel.request("y"))
        assert await reader.readline() == encode_message("x", 0)
        assert await reader.readline() == encode_message("y", 1)
        writer.write(encode_message("answer", 1, "its own"))
        assert await request == "its own"


async def test_a_handlers_failure_reaches_the_requester_and_the_channel_stays_open(caplog):
    async with opened(echo=echo, fails=fails) as (channel, reader, writer, _):
        for method in ("fails", "unknown"):
            writer.write(encode_message(method, 7))
            outcome, request_id, text = json.loads(await reader.readline())
            assert (outcome, request_id) == ("failure", 7)
            assert ("ZeroDivisionError" if method == "fails" else "KeyError") in text
        writer.write(encode_message("echo", 8, [1, 2]))
        assert await reader.readline() == encode_message("answer", 8, [1, 2])
        request = asyncio.create_task(channel.request("x"))
        await reader.readline()
        writer.write(encode_message("failure", 0, "OSError: full"))
        with pytest.raises(RequestFailed, match="OSError: full"):
            await request
    assert "ZeroDivisionError" in caplog.text


def test_a_worker_whose_loop_hangs_exits_after_the_supervisor_is_gone():
    code = (
        "import service.workers.worker as w; print(1, flush=True); w._exit_without_supervisor(0.1)"
    )
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE
        ) as process,
    ):
        theirs.close()
        process.stdout.readline()
        ours.sendall(b"data alone does not end it\n")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)  # twice what it takes once the other end is closed
        ours.close()
        assert process.wait(5) == 1
