"""Concurrent small calls are sent as one message; a lone call is sent at once."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentserve._client.coalesce import MAX_CALL_BYTES, MAX_ROWS, Coalescer
from latentserve._client.values import Posterior
from latentserve.client import AsyncClient, InvalidArgument
from latentserve.errors import ProtocolError
from tests.support.clients import awaited

DIM = 32


class Line:
    """A server that doubles rows, and replies at `answer`; `got` has the rows of each message."""

    def __init__(self):
        self.got = []
        self.gates = []

    async def __call__(self, kind, rows, labels):  # noqa: ARG002
        self.got.append(len(rows))
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(gate)
        await gate
        if (rows < 0).any():
            raise InvalidArgument("negative", None)
        return 2 * rows

    async def answer(self):
        await settled()
        self.gates.pop(0).set_result(None)
        await settled()


async def settled():
    for _ in range(6):
        await asyncio.sleep(0)


def rows_of(*values):
    return np.array(values, np.float64)[:, None]


async def test_calls_of_one_loop_iteration_share_a_message_and_so_do_those_made_in_flight():
    line = Line()
    coalescer = Coalescer(line)
    tasks = [asyncio.ensure_future(coalescer.run("kind", rows_of(value))) for value in range(5)]
    await settled()
    # All were made in one event-loop iteration: they are one message.
    assert line.got == [5]
    late = [asyncio.ensure_future(coalescer.run("kind", rows_of(9))) for _ in range(3)]
    await line.answer()
    assert line.got == [5, 3]
    await line.answer()
    assert [task.result()[0, 0] for task in tasks] == [0, 2, 4, 6, 8]
    assert [task.result()[0, 0] for task in late] == [18] * 3


async def test_large_rows_are_sent_alone_and_at_once():
    line = Line()
    coalescer = Coalescer(line)
    large = np.ones((1, MAX_CALL_BYTES // 8 + 1))
    tasks = [asyncio.ensure_future(coalescer.run("kind", large)) for _ in range(3)]
    await settled()
    assert line.got == [1, 1, 1]
    for _ in tasks:
        await line.answer()
    await asyncio.gather(*tasks)


async def test_a_joined_message_is_bounded_in_bytes():
    line = Line()
    coalescer = Coalescer(line)
    rows = np.ones((1, MAX_CALL_BYTES // 8))
    tasks = [asyncio.ensure_future(coalescer.run("kind", rows)) for _ in range(40)]
    await settled()
    assert line.got == [16]
    for _ in range(3):
        await line.answer()
    assert line.got == [16, 16, 8]
    await asyncio.gather(*tasks)


async def test_calls_of_different_kinds_are_sent_in_parallel():
    line = Line()
    coalescer = Coalescer(line)
    tasks = [asyncio.ensure_future(coalescer.run(kind, rows_of(1))) for kind in "ab"]
    await settled()
    assert line.got == [1, 1]
    await line.answer()
    await line.answer()
    await asyncio.gather(*tasks)


async def test_a_cancelled_call_does_not_affect_the_others():
    line = Line()
    coalescer = Coalescer(line)
    first = asyncio.ensure_future(coalescer.run("kind", rows_of(1)))
    await settled()
    leaving, staying = (
        asyncio.ensure_future(coalescer.run("kind", rows_of(value))) for value in (2, 3)
    )
    await settled()
    leaving.cancel()
    first.cancel()
    await line.answer()
    assert line.got == [1, 1]
    await line.answer()
    assert (await staying)[0, 0] == 6


async def test_calls_of_a_refused_message_are_sent_again_one_by_one():
    line = Line()
    coalescer = Coalescer(line)
    tasks = [asyncio.ensure_future(coalescer.run("kind", rows_of(value))) for value in (1, -2, 3)]
    for _ in range(4):
        await line.answer()
    assert line.got == [3, 1, 1, 1]
    good, bad, also = await asyncio.gather(*tasks, return_exceptions=True)
    assert (good[0, 0], also[0, 0]) == (2, 6)
    assert isinstance(bad, InvalidArgument)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3)])
async def test_each_caller_gets_a_writable_copy_of_its_rows(sizes):
    async def run(kind, rows, labels):  # noqa: ARG001
        return Posterior(mean=2 * rows, log_var=3 * rows, seed=7)

    coalescer = Coalescer(run)
    given = [rows_of(*range(size)) for size in sizes]
    parts = await asyncio.gather(*(coalescer.run("kind", rows) for rows in given))
    for rows, part in zip(given, parts, strict=True):
        assert isinstance(part, Posterior)
        assert (part.z, part.seed) == (None, 7)
        for got, factor in ((part.mean, 2), (part.log_var, 3)):
            assert got.tolist() == (factor * rows).tolist()
            # A copy: it keeps no other rows in memory, and is writable.
            assert got.flags.owndata
            assert got.flags.writeable


async def test_a_reply_of_too_few_rows_is_a_protocol_error_for_every_caller():
    async def run(kind, rows, labels):  # noqa: ARG001
        return rows[:1]

    coalescer = Coalescer(run)
    calls = [coalescer.run("kind", rows_of(value)) for value in range(3)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == 3 * [ProtocolError]


async def test_cancelling_the_sender_cancels_all_waiting_calls():
    line = Line()
    coalescer = Coalescer(line)
    calls = [coalescer.run("kind", rows_of(1))]
    await settled()
    calls.append(coalescer.run("kind", rows_of(2)))
    (sending,) = asyncio.all_tasks() - {asyncio.current_task()}
    sending.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == 2 * [asyncio.CancelledError]
    # Later calls are sent as usual.
    later = coalescer.run("kind", rows_of(3))
    await settled()
    line.gates.pop(0)
    await line.answer()
    assert (await later)[0, 0] == 6


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 2 * MAX_ROWS), min_size=1, max_size=12))
async def test_each_caller_gets_its_own_rows_and_messages_are_bounded(sizes):
    sent = []

    async def run(kind, rows, labels):  # noqa: ARG001
        sent.append(len(rows))
        await asyncio.sleep(0)
        return 2 * rows

    coalescer = Coalescer(run)

    async def one(index, size):
        rows = index * 10_000 + np.arange(size)[:, None]
        assert (await coalescer.run("kind", rows) == 2 * rows).all()

    await asyncio.gather(*(one(index, size) for index, size in enumerate(sizes)))
    assert sum(sent) == sum(sizes)
    assert all(count <= MAX_ROWS or count in sizes for count in sent)


def test_coalesced_results_equal_those_of_single_calls(server):
    async def scene():
        async with AsyncClient(server.target, coalesce=True) as client:
            z = np.random.default_rng(0).standard_normal((40, DIM)).astype(np.float32)
            whole = await client.decode(z)
            rows = await asyncio.gather(*(client.decode(z[row : row + 1]) for row in range(40)))
            assert np.concatenate(rows).tobytes() == whole.tobytes()
            posterior = await client.encode(whole)
            parts = await asyncio.gather(
                *(client.encode(whole[row : row + 2]) for row in range(0, 40, 2))
            )
            assert np.concatenate([part.mean for part in parts]).tobytes() == (
                posterior.mean.tobytes()
            )
            scores = await asyncio.gather(*(client.score(whole[row : row + 1]) for row in range(8)))
            wanted = await client.score(whole[:8])
            assert [score.elbo[0] for score in scores] == list(wanted.elbo)
            made = await asyncio.gather(
                *(client.reconstruct(whole[row : row + 1]) for row in range(8))
            )
            assert np.concatenate(made).tobytes() == (await client.reconstruct(whole[:8])).tobytes()
            # A draw has a seed and an offset of its own.
            drawn = await asyncio.gather(
                *(client.encode(whole[row : row + 1], seed=1, offset=row) for row in range(8))
            )
            one = await client.encode(whole[:8], seed=1)
            assert np.concatenate([posterior.z for posterior in drawn]).tobytes() == one.z.tobytes()
            # Seed 0 is a seed like any other.
            first, second = await asyncio.gather(
                *(client.encode(whole[:1], seed=0) for _ in range(2))
            )
            assert first.z.tobytes() == second.z.tobytes()

    awaited(scene())


def test_an_invalid_call_among_valid_ones_fails_alone(server):
    async def scene():
        async with AsyncClient(server.target, coalesce=True) as client:
            good = np.full((1, 784), 0.5, np.float32)
            bad = np.full((1, 784), 7.0, np.float32)
            calls = [client.encode(image) for image in (good, good, bad, good)]
            *_, last = outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(outcomes[2], InvalidArgument)
            assert last.mean.shape == (1, DIM)

    awaited(scene())


@pytest.mark.parametrize("coalesce", [False, True])
def test_many_concurrent_calls_are_answered(server, coalesce):
    async def scene():
        async with AsyncClient(server.target, coalesce=coalesce) as client:
            z = np.zeros((1, DIM), np.float32)
            rows = await asyncio.gather(*(client.decode(z) for _ in range(200)))
            assert len(rows) == 200

    awaited(scene())
