"""Admission control: the bound on rows and bytes in flight."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.admission import Admission
from service.engine.callers import CallerLimits
from service.errors import OverCallerLimit, Overloaded


async def _settled() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_rows_and_bytes_in_flight_are_counted() -> None:
    admission = Admission(10, 1000)
    async with admission.admitted(3, 100), admission.admitted(4, 200):
        assert (admission.rows, admission.size) == (7, 300)
    assert (admission.rows, admission.size) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "size", "message"), [(6, 1, "more than 10"), (1, 901, "bytes are in flight")]
)
async def test_a_call_beyond_the_capacity_is_shed_at_once_with_a_time_to_retry(
    rows: int, size: int, message: str
) -> None:
    admission = Admission(10, 1000)
    async with admission.admitted(5, 100):
        with pytest.raises(Overloaded, match=message) as caught:
            async with admission.admitted(rows, size):
                pass
        assert 0.05 <= caught.value.retry_seconds <= 5
        assert (admission.rows, admission.size) == (5, 100)


async def test_a_call_larger_than_the_bounds_is_admitted_when_it_is_alone() -> None:
    admission = Admission(10, 1000)
    async with admission.admitted(100, 10_000):
        with pytest.raises(Overloaded):
            async with admission.admitted(1, 1):
                pass


async def test_patient_calls_are_admitted_first_come_first_served() -> None:
    admission, order = Admission(10, 1000), []

    async def patient(name: str, rows: int) -> None:
        async with admission.admitted(rows, 1, patient=True):
            order.append(name)

    async with admission.admitted(10, 1):
        tasks = [asyncio.create_task(patient(name, 9)) for name in "ab"]
        await _settled()
        assert order == []
    await asyncio.gather(*tasks)
    assert order == ["a", "b"]
    assert admission.rows == 0


async def test_a_cancelled_patient_call_does_not_block_those_behind_it() -> None:
    admission = Admission(10, 1000)
    done = asyncio.Event()

    async def patient(rows: int) -> None:
        async with admission.admitted(rows, 1, patient=True):
            done.set()

    async with admission.admitted(5, 1):
        leaving = asyncio.create_task(patient(10))
        await _settled()
        staying = asyncio.create_task(patient(5))
        await _settled()
        assert not done.is_set()
        leaving.cancel()
        await _settled()
        assert done.is_set()
    await staying
    assert (admission.rows, admission.size) == (0, 0)


@settings(max_examples=60)
@given(
    calls=st.lists(
        st.tuples(st.integers(1, 12), st.booleans(), st.booleans()), min_size=1, max_size=20
    )
)
async def test_the_bound_holds_and_all_capacity_is_returned(
    calls: list[tuple[int, bool, bool]],
) -> None:
    admission = Admission(10, 10_000)

    async def one(rows: int, patient: bool) -> None:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(admission.admitted(rows, rows, patient=patient))
            except Overloaded:
                return
            assert admission.rows <= max(10, rows)
            await asyncio.sleep(0)

    tasks = []
    for rows, patient, leaves in calls:
        task = asyncio.create_task(one(rows, patient))
        tasks.append(task)
        await asyncio.sleep(0)
        if leaves:
            task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert (admission.rows, admission.size) == (0, 0)


# ------------------------------------------------------------- unread replies


async def test_bytes_of_unread_replies_are_bounded_together_with_those_of_calls() -> None:
    admission = Admission(10, 1000)
    admission.hold(600)
    assert (admission.rows, admission.size) == (0, 600)
    with pytest.raises(Overloaded, match="600 bytes are in flight"):
        admission.enter(1, 401)
    assert admission.has_room(400)
    assert not admission.has_room(401)
    admission.enter(1, 400)
    admission.leave(1, 400, admission.now())
    admission.release(600)
    assert admission.size == 0
    assert admission.has_room(10_000), "alone, anything fits"


async def test_rows_beyond_the_bound_are_admitted_alone_though_a_reply_is_unread() -> None:
    admission = Admission(10, 1000)
    admission.hold(1)
    admission.enter(100, 1)


async def test_a_shortage_is_the_most_that_a_call_has_lacked_since_it_was_asked_for() -> None:
    admission = Admission(10, 1000)
    assert admission.take_shortage() == 0
    admission.hold(900)
    for size in (300, 500):
        with pytest.raises(Overloaded):
            admission.enter(1, size)
    assert admission.take_shortage() == 400
    assert admission.take_shortage() == 0
    waiting = asyncio.ensure_future(admission.enter_or_wait(1, 150))
    await _settled()
    assert admission.take_shortage() == 50
    admission.release(50)
    await waiting
    assert admission.take_shortage() == 0
    assert admission.size == 1000


async def test_a_waiting_call_is_not_admitted_in_place_of_the_reply_that_makes_room() -> None:
    admission = Admission(10, 1000)
    admission.enter(1, 800)
    waiting = asyncio.ensure_future(admission.enter_or_wait(1, 800))
    await _settled()
    admission.leave(1, 800, admission.now())
    admission.hold(700)
    await _settled()
    assert not waiting.done()
    assert admission.size == 700
    admission.release(700)
    await waiting


# ---------------------------------------------------------- limits per caller


@pytest.mark.parametrize(
    ("limits", "admitted", "rows", "message"),
    [
        ((5, 0), 4, 2, r"4 rows of this caller .* 2 more .* than 5 \(see max_rows_per_caller\)"),
        ((0, 2), 2, 1, r"2 calls of this caller .* \(see max_calls_per_caller\)"),
    ],
)
async def test_a_caller_beyond_its_limits_is_refused_and_others_are_not(
    limits: tuple[int, int], admitted: int, rows: int, message: str
) -> None:
    admission = Admission(100, 1000, callers=CallerLimits(*limits))
    async with AsyncExitStack() as stack:
        for _ in range(admitted):
            await stack.enter_async_context(admission.admitted(1, 1, caller="loud"))
        for _ in range(2):
            with pytest.raises(OverCallerLimit, match=message) as caught:
                async with admission.admitted(rows, 1, caller="loud"):
                    pass
        assert 0.05 <= caught.value.retry_seconds <= 5
        assert admission.rows == admitted
        async with admission.admitted(rows, 1, caller="quiet"):
            pass
    async with admission.admitted(rows, 1, caller="loud"):
        pass


async def test_a_single_call_beyond_a_callers_limit_of_rows_is_admitted() -> None:
    admission = Admission(100, 1000, callers=CallerLimits(5, 0))
    async with admission.admitted(50, 1, caller="one"):
        pass


async def test_a_patient_call_beyond_its_callers_limits_waits_and_others_overtake_it() -> None:
    admission, order = Admission(100, 1000, callers=CallerLimits(0, 1)), []

    async def patient(name: str) -> None:
        async with admission.admitted(1, 1, patient=True, caller=name[0]):
            order.append(name)

    async with admission.admitted(1, 1, caller="a"):
        tasks = [asyncio.create_task(patient(name)) for name in ("a1", "a2", "b1", "c1")]
        await _settled()
        assert order == ["b1", "c1"]
    await asyncio.gather(*tasks)
    assert order == ["b1", "c1", "a1", "a2"]
    assert (admission.rows, admission.size) == (0, 0)


async def test_callers_take_turns_for_capacity() -> None:
    admission, order = Admission(10, 1000), []

    async def patient(name: str) -> None:
        async with admission.admitted(10, 1, patient=True, caller=name[0]):
            order.append(name)

    names = ("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    async with admission.admitted(10, 1):
        tasks = [asyncio.create_task(patient(name)) for name in names]
        await _settled()
    await asyncio.gather(*tasks)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


@settings(max_examples=60)
@given(
    calls=st.lists(
        st.tuples(st.integers(1, 12), st.booleans(), st.booleans(), st.sampled_from("abc")),
        min_size=1,
        max_size=30,
    ),
    limits=st.tuples(st.integers(0, 8), st.integers(0, 3)),
)
async def test_limits_per_caller_hold_and_every_patient_call_is_admitted(
    calls: list[tuple[int, bool, bool, str]], limits: tuple[int, int]
) -> None:
    admission = Admission(20, 10_000, callers=CallerLimits(*limits))
    max_rows, max_calls = limits
    now: dict[str, list[int]] = {name: [] for name in "abc"}

    async def one(rows: int, patient: bool, caller: str) -> None:
        async with AsyncExitStack() as stack:
            entering = admission.admitted(rows, rows, patient=patient, caller=caller)
            try:
                await stack.enter_async_context(entering)
            except Overloaded:
                assert not patient
                return
            now[caller].append(rows)
            try:
                assert len(now[caller]) == 1 or not max_rows or sum(now[caller]) <= max_rows
                assert not max_calls or len(now[caller]) <= max_calls
                await asyncio.sleep(0)
            finally:
                now[caller].remove(rows)

    tasks, left = [], []
    for rows, patient, leaves, caller in calls:
        task = asyncio.create_task(one(rows, patient, caller))
        (left if leaves else tasks).append(task)
        await asyncio.sleep(0)
        if leaves:
            task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    await asyncio.gather(*left, return_exceptions=True)
    assert (admission.rows, admission.size) == (0, 0)
    async with AsyncExitStack() as stack:  # nothing is left of any caller
        for caller in "abc":
            await stack.enter_async_context(admission.admitted(5, 5, caller=caller))
