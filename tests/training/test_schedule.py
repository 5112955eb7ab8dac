"""The phases of a training, their order and their lengths; the learning rate's warm-up."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.model.config import Dense, ModelConfig, PriorConfig
from training.model.train_config import TrainConfig
from training.schedule import (
    LEAST_WARMUP,
    Phase,
    draws_of,
    even_parts,
    learning_rate_factor,
    plan,
    validation_steps,
)

DENSE = Dense(((8, "relu"),))


def model(kind: str, posterior: str = "gaussian") -> ModelConfig:
    return ModelConfig(DENSE, 2, posterior=posterior, prior=PriorConfig(kind))  # type: ignore[arg-type]


def lengths(phases: tuple[Phase, ...]) -> list[tuple[str, int]]:
    return [(phase.name, phase.stop - phase.start) for phase in phases]


@pytest.mark.parametrize(
    ("config", "changes", "wanted"),
    [
        (model("standard"), {}, [("autoencoder", 100)]),
        (model("none", "delta"), {}, [("autoencoder", 100)]),
        (
            model("flow-gmm"),
            {"prior_start": 0.33, "prior_fit": 0.15, "prior_refit": 0.3},
            [("autoencoder", 33), ("prior fit", 15), ("joint", 67), ("prior refit", 30)],
        ),
        (model("gmm", "delta"), {}, [("autoencoder", 100), ("prior refit", 30)]),
        (
            model("flow"),
            {"prior_start": 0.0},
            [("prior fit", 15), ("joint", 100), ("prior refit", 30)],
        ),
        (model("gmm"), {"prior_start": 1.0}, [("autoencoder", 100), ("prior refit", 30)]),
        (
            model("gmm"),
            {"prior_fit": 0.0, "prior_refit": 0.0},
            # The mixture is still fitted at the end, which takes at least one step.
            [("autoencoder", 33), ("joint", 67), ("prior refit", 1)],
        ),
    ],
    ids=["standard", "plain", "learned", "plain learned", "from the start", "afterwards", "no fit"],
)
def test_phases_of_a_plan_of_100_steps(
    config: ModelConfig, changes: dict[str, float], wanted: list[tuple[str, int]]
) -> None:
    assert lengths(plan(config, TrainConfig(**changes), 100)) == wanted


@given(
    st.sampled_from(["standard", "gmm", "flow", "flow-gmm"]),
    st.sampled_from(["gaussian", "delta"]),
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_phases_are_contiguous_and_the_autoencoder_gets_its_steps(
    kind: str, posterior: str, steps: int, start: float, fit: float, refit: float
) -> None:
    if posterior == "delta" and kind == "standard":
        kind = "none"
    train = TrainConfig(prior_start=start, prior_fit=fit, prior_refit=refit)
    phases = plan(model(kind, posterior), train, steps)
    assert phases[0].start == 0
    for one, next_one in itertools.pairwise(phases):
        assert one.stop == next_one.start
    done = 0
    for phase in phases:
        assert phase.start < phase.stop
        assert phase.autoencoder_steps == done
        done += phase.stop - phase.start if phase.trains_autoencoder else 0
    assert done == steps
    order = ["autoencoder", "prior fit", "joint", "prior refit"]
    names = [phase.name for phase in phases]
    assert names == [name for name in order if name in names]
    # A learned prior is fitted to the final autoencoder, however short the training.
    learned = kind not in ("standard", "none")
    assert phases[-1].learned_prior == learned
    assert (names[-1] == "prior refit") == learned
    if posterior == "delta":
        assert "joint" not in names


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_the_learning_rate_rises_by_no_more_in_a_step_than_its_warm_up_allows(
    steps: int, warmup: float
) -> None:
    for done in range(min(steps, 2 * LEAST_WARMUP)):
        factor = learning_rate_factor(done, steps, warmup)
        assert 0 < factor <= min(1.0, (done + 1) / LEAST_WARMUP)


@given(
    st.integers(1, 100_000),
    st.integers(1, 2_000),
    st.sampled_from([PriorConfig(), PriorConfig("flow-gmm")]),
)
def test_validations_are_even_but_for_early_ones_and_end_each_phase(
    steps: int, epoch: int, prior: PriorConfig
) -> None:
    phases = plan(ModelConfig(Dense(((8, "relu"),)), 2, prior=prior), TrainConfig(), steps)
    validated = validation_steps(phases, epoch)
    assert validated >= {phase.stop for phase in phases}
    total = phases[-1].stop
    assert min(validated) >= 1
    assert max(validated) == total
    interval = max(1, total // 20)
    early = sorted(step for step in validated if step < interval)
    others = validated - set(early) - {phase.stop for phase in phases}
    assert others <= set(range(interval, total + 1, interval))
    assert len(others) <= 40
    own = [step for step in early if step not in {phase.stop for phase in phases}]
    assert all(step >= epoch and interval // step >= 2 for step in own)
    # None is far from the one before it: at most twice as many steps, or an interval more.
    for one, other in itertools.pairwise(sorted(validated)):
        assert one < epoch or other <= 2 * one + 1 or other - one <= interval


def test_many_images_are_not_validated_before_they_were_seen_once() -> None:
    phases = plan(ModelConfig(Dense(((8, "relu"),)), 2), TrainConfig(), 2_000)
    assert min(validation_steps(phases, epoch=400)) == 100
    assert sorted(validation_steps(phases, epoch=30))[:3] == [50, 100, 200]
    assert sorted(validation_steps(phases, epoch=1))[:7] == [1, 3, 6, 12, 25, 50, 100]


def test_iwae_takes_one_draw_until_its_share_of_the_steps() -> None:
    late = TrainConfig(objective="iwae", draws=5, iwae_from=0.75)
    assert [draws_of(done, 10, late) for done in range(10)] == [1] * 8 + [5] * 2
    for config in (TrainConfig(objective="iwae", draws=5), TrainConfig(draws=5, iwae_from=0.75)):
        assert {draws_of(done, 10, config) for done in range(10)} == {5}


def test_a_phase_is_divided_where_its_steps_change() -> None:
    train = TrainConfig(prior_start=0.5, prior_fit=0.2, prior_refit=0.1, iwae_from=0.75)
    train = dataclasses.replace(train, augment_until=0.305)
    phases = plan(model("gmm"), train, 100)
    assert [even_parts(phase, 100, train) for phase in phases] == [
        [range(31), range(31, 50)],
        [range(50, 70)],
        [range(70, 95), range(95, 120)],
        [range(120, 130)],
    ]


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_parts_of_phases_are_all_their_steps_and_take_as_many_draws_throughout(
    steps: int, start: float, iwae_from: float, augment_until: float
) -> None:
    train = TrainConfig(
        objective="iwae",
        draws=3,
        prior_start=start,
        iwae_from=iwae_from,
        augment_until=augment_until,
    )
    for phase in plan(model("gmm"), train, steps):
        parts = even_parts(phase, steps, train)
        assert [parts[0].start, parts[-1].stop] == [phase.start, phase.stop]
        assert all(one.stop == next_one.start for one, next_one in itertools.pairwise(parts))
        for part in parts if phase.trains_autoencoder else ():
            first, last = (
                draws_of(step - phase.start + phase.autoencoder_steps, steps, train)
                for step in (part[0], part[-1])
            )
            assert first == last
