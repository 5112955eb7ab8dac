"""The simulation of replicas, held against what queueing theory says."""

import math

import pytest

from benchmarks.replicas import Costs, simulate

ONE = Costs(caller=0.0, proxy=0.0, replica=0.01)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_replica_is_an_m_m_1_queue(load: float) -> None:
    """Times in the system are exponential, of the mean 1 / (service rate - arrival rate)."""
    got = simulate(ONE, replicas=1, rate=load * 100, varies=True, calls=100_000)
    mean = 1 / (100 - load * 100)
    assert got.rate == pytest.approx(load * 100, rel=0.02)
    assert got.p50 == pytest.approx(mean * math.log(2), rel=0.06)
    assert got.p99 == pytest.approx(mean * math.log(100), rel=0.12)


@pytest.mark.parametrize("replicas", [1, 2, 7])
def test_replicas_with_cores_of_their_own_add_up(replicas: int) -> None:
    got = simulate(ONE, replicas=replicas, in_flight=64 * replicas)
    assert got.rate == pytest.approx(100 * replicas, rel=0.02)


def test_cores_that_all_share_limit_the_sum_of_what_calls_cost() -> None:
    costs = Costs(caller=0.001, proxy=0.002, replica=0.005)
    for replicas in (2, 3, 10):
        got = simulate(costs, replicas=replicas, in_flight=64, cores=2)
        assert got.rate == pytest.approx(2 / 0.008, rel=0.05)
    # A single replica cannot use both cores.
    assert simulate(costs, replicas=1, in_flight=64, cores=2).rate == pytest.approx(200, rel=0.02)


def test_a_proxy_is_the_limit_in_the_end() -> None:
    costs = Costs(caller=0.0, proxy=0.001, replica=0.01)
    rates = [simulate(costs, replicas=count, in_flight=500).rate for count in (5, 10, 20)]
    assert rates == pytest.approx([500, 1000, 1000], rel=0.06)
    assert simulate(costs, replicas=20, proxies=2, in_flight=500).rate > 1800


def test_two_choices_are_better_than_one() -> None:
    """Ten replicas that each get a tenth of the calls would be like the one."""
    load = 0.9
    chosen = simulate(ONE, replicas=10, rate=load * 1000, varies=True)
    alone = simulate(ONE, replicas=1, rate=load * 100, varies=True)
    assert chosen.p99 < alone.p99 / 3


def test_a_simulation_is_repeatable() -> None:
    once, again = (simulate(ONE, replicas=3, rate=200, varies=True, seed=5) for _ in range(2))
    assert once == again
    assert simulate(ONE, replicas=3, rate=200, varies=True, seed=6) != once


def test_calls_either_arrive_or_follow_each_other() -> None:
    for settings in ({}, {"in_flight": 1, "rate": 1.0}):
        with pytest.raises(ValueError, match="wanted one of them"):
            simulate(ONE, replicas=1, **settings)  # type: ignore[arg-type]
