"""Presets: settings changed by key, what is refused, and the way through JSON."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import ConfigError
from training.presets import (
    PRESETS,
    ModelConfig,
    Preset,
    TrainConfig,
    find_preset,
    model_from_json,
    override,
    train_from_json,
)

DENSE = PRESETS["dense"]

layers = st.lists(
    st.tuples(st.integers(1, 4096), st.sampled_from(["relu", "gelu", "tanh"])), min_size=1
).map(tuple)
model_configs = st.builds(
    ModelConfig,
    layers=layers,
    latent_dim=st.integers(1, 512),
    scale=st.sampled_from(["log_var", "sigmoid"]),
)
shares = st.floats(0, 1)
positive = st.floats(1e-12, 1e12)
train_configs = st.builds(
    TrainConfig,
    beta=st.floats(0, 1e6),
    binarize=st.booleans(),
    batch_size=st.integers(1, 10**6),
    learning_rate=positive,
    weight_decay=st.floats(0, 1e3),
    warmup=shares,
    kl_warmup=shares,
    ema=st.floats(0, 1, exclude_max=True),
    clip_grad_norm=positive,
    skip_grad_norm=positive,
    max_skipped=st.integers(0, 10**6),
    seed=st.integers(0, 2**63),
)


def written(value: object) -> str:
    """A value of a setting as a person types it."""
    if isinstance(value, tuple):
        return ",".join(f"{width}:{activation}" for width, activation in value)
    return str(value)


@settings(deadline=None)
@given(model_configs, train_configs)
def test_configs_survive_json(model: ModelConfig, train: TrainConfig) -> None:
    assert model_from_json(json.loads(json.dumps(dataclasses.asdict(model)))) == model
    assert train_from_json(json.loads(json.dumps(dataclasses.asdict(train)))) == train


@settings(deadline=None)
@given(model_configs, train_configs)
def test_every_field_can_be_set_by_its_key(model: ModelConfig, train: TrainConfig) -> None:
    typed = [
        f"{field.name}={written(getattr(config, field.name))}"
        for config in (model, train)
        for field in dataclasses.fields(config)
    ]
    changed = override(DENSE, typed)
    assert changed == Preset(model, train, DENSE.summary)


def test_a_setting_changes_its_field_alone_and_the_last_one_wins() -> None:
    changed = override(DENSE, ["beta=4", "latent_dim=7", "beta=0.5", "binarize=FALSE"])
    assert changed.model == dataclasses.replace(DENSE.model, latent_dim=7)
    assert changed.train == dataclasses.replace(DENSE.train, beta=0.5, binarize=False)
    assert override(DENSE, []) == DENSE


@pytest.mark.parametrize(
    ("setting", "got", "wanted"),
    [
        ("beta=much", "'much'", "a number"),
        ("beta=", "''", "a number"),
        ("batch_size=1.5", "'1.5'", "a whole number"),
        ("seed=x", "'x'", "a whole number"),
        ("binarize=perhaps", "'perhaps'", "true or false"),
        ("scale=cubic", "'cubic'", "log_var, sigmoid"),
        ("latent_dim=two", "'two'", "a whole number"),
        ("layers=512", "'512'", "512:relu,256:relu"),
        ("layers=wide:relu", "'wide:relu'", "512:relu,256:relu"),
        ("layers=512:relu:2", "'512:relu:2'", "512:relu,256:relu"),
        ("layers=512:relu,", "'512:relu,'", "512:relu,256:relu"),
        ("layers=", "''", "512:relu,256:relu"),
        ("beta=-1", "-1", "0 or more"),
        ("beta=nan", "nan", "0 or more"),
        ("batch_size=0", "0", "1 or more"),
        ("learning_rate=0", "0", "above 0"),
        ("learning_rate=nan", "nan", "above 0"),
        ("weight_decay=-0.1", "-0.1", "0 or more"),
        ("warmup=1.1", "1.1", "0 to 1"),
        ("kl_warmup=-0.1", "-0.1", "0 to 1"),
        ("ema=1", "1", "0 or more and below 1"),
        ("clip_grad_norm=0", "0", "above 0"),
        ("skip_grad_norm=-5", "-5", "above 0"),
        ("max_skipped=-1", "-1", "0 or more"),
        ("seed=-1", "-1", "0 or more"),
    ],
)
def test_a_bad_value_is_refused_with_key_got_and_wanted(
    setting: str, got: str, wanted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DENSE, [setting])
    message = str(caught.value)
    key = setting.partition("=")[0]
    assert key in message
    assert f"got {got}" in message
    assert wanted in message.partition("wanted")[2]
    assert "\n" not in message


@pytest.mark.parametrize(
    "setting", ["beta=inf", "learning_rate=inf", "weight_decay=inf"], ids=lambda s: s
)
def test_an_infinite_value_that_cannot_be_trained_with_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.partition('=')[0]}.*got.*inf.*wanted"):
        override(DENSE, [setting])


@pytest.mark.parametrize("setting", ["depth=3", "beta", "", "=4", "Beta=4", "model=dense"])
def test_an_unknown_key_is_refused_with_those_there_are(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DENSE, [setting])
    message = str(caught.value)
    assert f"got {setting!r}" in message
    for config in (ModelConfig, TrainConfig):
        for field in dataclasses.fields(config):
            assert re.search(rf"\b{field.name}\b", message.partition("wanted")[2])


@settings(deadline=None)
@given(st.text())
def test_any_text_as_a_setting_is_taken_or_a_config_error(text: str) -> None:
    for setting in (text, f"layers={text}", f"latent_dim={text}", f"warmup={text}"):
        try:
            changed = override(DENSE, [setting])
        except ConfigError:
            continue
        assert math.isfinite(changed.train.warmup)


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="preset: got 'huge', wanted one of") as caught:
        find_preset("huge")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_found_by_name_and_tell_what_they_are(name: str) -> None:
    assert find_preset(name) is PRESETS[name]
    assert PRESETS[name].summary
    assert "\n" not in PRESETS[name].summary
