"""Configuration records: changed by settings, checked, and read back from JSON."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import ConfigError
from training.model.config import Conv, Dense, ModelConfig, PriorConfig
from training.model.preset import Preset
from training.model.settings import override, record_from_json
from training.model.train_config import TrainConfig
from training.presets import PRESETS, find_preset

DENSE, CONV = PRESETS["dense"], PRESETS["conv"]

activations = st.sampled_from(["relu", "gelu", "silu", "tanh"])
dense = st.builds(
    Dense,
    layers=st.lists(st.tuples(st.integers(1, 4096), activations), min_size=1).map(tuple),
)
counts = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)
conv = st.builds(
    Conv,
    widths=st.lists(st.integers(2, 512), min_size=1, max_size=4).map(tuple),
    encoder_blocks=counts,
    decoder_blocks=counts,
    encoder_trunk=st.integers(1, 999),
    decoder_trunk=st.integers(1, 999),
    activation=activations,
)
learned = st.builds(
    PriorConfig,
    kind=st.sampled_from(["gmm", "flow", "flow-gmm"]),
    components=st.integers(1, 500),
    couplings=st.integers(1, 20),
    width=st.integers(1, 999),
)


def models(network: st.SearchStrategy[Any]) -> st.SearchStrategy[ModelConfig]:
    """Every posterior with the priors that go with it."""
    shared = {
        "network": network, "latent_dim": st.integers(2, 512), "conditional": st.booleans()
    }  # fmt: skip
    scale = st.sampled_from(["log_var", "sigmoid"])
    return st.one_of(
        st.builds(
            ModelConfig,
            **shared,
            posterior=st.just("gaussian"),
            scale=scale,
            prior=learned | st.just(PriorConfig("standard")),
        ),
        st.builds(
            ModelConfig,
            **shared,
            posterior=st.just("delta"),
            scale=scale,
            prior=learned | st.just(PriorConfig("none")),
        ),
    )


shares = st.floats(0, 1)
positive = st.floats(1e-12, 1e12)
trainings: dict[str, st.SearchStrategy[Any]] = {
    "binarize": st.booleans(),
    "batch_size": st.integers(2, 10**6),
    "mmd_weight": st.floats(0, 1e6),
    "noise": st.floats(0, 1, exclude_max=True),
    "noise_kind": st.sampled_from(["gaussian", "mask"]),
    "learning_rate": positive,
    "weight_decay": st.floats(0, 1e3),
    "warmup": shares,
    "kl_warmup": shares,
    "ema": st.floats(0, 1, exclude_max=True),
    "clip_factor": st.floats(1, 1e3),
    "skip_factor": st.floats(1e3, 1e12),
    "max_skipped": st.integers(0, 10**6),
    "prior_start": shares,
    "prior_fit": st.floats(0, 100),
    "prior_refit": st.floats(0, 100),
    "prior_batch_size": st.integers(1, 10**6),
    "prior_learning_rate": positive,
    "label_weight": st.floats(0, 1e3),
    "train_on_validation": st.booleans(),
    "seed": st.integers(0, 2**63),
    "augment": st.lists(st.sampled_from(["flip", "shift", "warp", "elastic"]), unique=True).map(
        tuple
    ),
    "augment_share": shares,
    "augment_until": shares,
    "iwae_from": shares,
    "gradient": st.sampled_from(["total", "path"]),
}
elbo = st.builds(TrainConfig, objective=st.just("elbo"), beta=st.floats(0, 1e6), **trainings)
iwae = st.builds(TrainConfig, objective=st.just("iwae"), draws=st.integers(1, 99), **trainings)
wae = st.builds(TrainConfig, objective=st.just("wae"), **trainings)


def written(value: object) -> str:
    """The text of a value after `--set KEY=`."""
    if isinstance(value, tuple):
        return ",".join(
            f"{item[0]}:{item[1]}" if isinstance(item, tuple) else str(item) for item in value
        )
    return str(value)


def typed(model: ModelConfig, train: TrainConfig) -> list[str]:
    """Every field of a preset as a `--set` option."""
    records = (("", model.network), ("", model), ("prior.", model.prior), ("", train))
    return [
        f"{prefix}{field.name}={written(getattr(record, field.name))}"
        for prefix, record in records
        for field in dataclasses.fields(record)
        if not dataclasses.is_dataclass(getattr(record, field.name))
        and (prefix, field.name) != ("", "kind")
    ]


@given(models(dense) | models(conv), elbo | iwae | wae)
def test_configs_survive_a_round_trip_through_json(model: ModelConfig, train: TrainConfig) -> None:
    for kind, record in ((ModelConfig, model), (TrainConfig, train)):
        read = record_from_json(kind, json.loads(json.dumps(dataclasses.asdict(record))))
        assert read == record
        assert hash(read) == hash(record)  # tuples were read back, not lists


@given(models(dense), elbo | iwae)
def test_every_field_of_a_dense_preset_can_be_set_by_its_key(
    model: ModelConfig, train: TrainConfig
) -> None:
    refused = model.posterior == "delta" and train.objective == "iwae"
    if refused:
        with pytest.raises(ConfigError, match="objective: got iwae, wanted elbo"):
            override(DENSE, typed(model, train))
    else:
        assert override(DENSE, typed(model, train)) == Preset(model, train, DENSE.summary)


@given(
    st.builds(
        ModelConfig,
        network=dense,
        latent_dim=st.integers(1, 99),
        posterior=st.sampled_from(["gaussian", "delta"]),
        conditional=st.booleans(),
    ),
    wae,
)
def test_every_field_of_a_wasserstein_autoencoder_can_be_set_by_its_key(
    model: ModelConfig, train: TrainConfig
) -> None:
    assert override(DENSE, typed(model, train)) == Preset(model, train, DENSE.summary)


@given(models(conv), elbo)
def test_every_field_of_a_conv_preset_can_be_set_by_its_key(
    model: ModelConfig, train: TrainConfig
) -> None:
    assert override(CONV, typed(model, train)) == Preset(model, train, CONV.summary)


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("prior.kind=gmm", "model.prior.kind", "gmm"),
        ("prior.components=7", "model.prior.components", 7),
        ("widths=48,24", "model.network.widths", (48, 24)),
        ("widths=48", "model.network.widths", (48,)),
        ("decoder_blocks=0,2", "model.network.decoder_blocks", (0, 2)),
        ("activation=relu", "model.network.activation", "relu"),
        ("latent_dim=3", "model.latent_dim", 3),
        ("scale=sigmoid", "model.scale", "sigmoid"),
        ("binarize=FALSE", "train.binarize", False),
        ("prior_start=1", "train.prior_start", 1.0),
        ("augment=shift,flip", "train.augment", ("shift", "flip")),
        ("conditional=true", "model.conditional", True),
        ("noise=0.3", "train.noise", 0.3),
    ],
)
def test_a_setting_changes_its_field_and_no_other(setting: str, path: str, value: Any) -> None:
    changed = dataclasses.asdict(override(CONV, [setting]))
    wanted = dataclasses.asdict(CONV)
    *folders, name = path.split(".")
    place = wanted
    for folder in folders:
        place = place[folder]
    assert place[name] != value
    place[name] = value
    assert changed == wanted


def test_joined_posteriors_go_with_a_prior_that_is_fitted_afterwards() -> None:
    assert override(CONV, ["joined=5", "prior_start=1"]).train.joined == 5
    assert override(DENSE, ["joined=5"]).train.joined == 5


def test_the_last_setting_of_a_key_wins_and_none_change_nothing() -> None:
    changed = override(DENSE, ["beta=4", "latent_dim=7", "beta=0.5"])
    assert changed.model == dataclasses.replace(DENSE.model, latent_dim=7)
    assert changed.train == dataclasses.replace(DENSE.train, beta=0.5)
    assert override(DENSE, []) == DENSE


@pytest.mark.parametrize(
    "pair",
    [
        ["posterior=delta", "prior.kind=none"],
        ["latent_dim=1", "prior.kind=gmm"],
        ["objective=iwae", "draws=8"],
        ["objective=wae", "posterior=delta"],
        ["noise=0.3", "noise_kind=mask"],
        ["joined=5", "draws=2"],
    ],
    ids=" ".join,
)
def test_settings_that_are_valid_only_together_work_in_any_order(pair: list[str]) -> None:
    preset = override(DENSE, ["prior.kind=flow"]) if "latent_dim=1" in pair else DENSE
    assert override(preset, pair) == override(preset, pair[::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["posterior=delta"], "prior.kind: got standard, wanted none, gmm, flow or flow-gmm"),
        (["prior.kind=none"], "prior.kind: got none, wanted a prior"),
        (
            ["latent_dim=1", "prior.kind=flow-gmm"],
            "prior.kind: got flow-gmm, wanted standard or gmm",
        ),
        (["objective=iwae", "beta=2"], "beta: got 2.0, wanted 1 with objective=iwae"),
        (
            ["objective=iwae", "posterior=delta", "prior.kind=none"],
            "objective: got iwae, wanted elbo with posterior=delta",
        ),
        (["objective=wae", "beta=2"], "beta: got 2.0, wanted 1 with objective=wae"),
        (
            ["objective=wae", "prior.kind=gmm"],
            "prior.kind: got gmm, wanted standard with objective=wae",
        ),
        (
            ["objective=wae", "posterior=delta", "prior.kind=none"],
            "prior.kind: got none, wanted standard with objective=wae",
        ),
        (["objective=wae", "batch_size=1"], "batch_size: got 1, wanted 2 or more with objective"),
        (["objective=iwae", "joined=5"], "joined: got 5, wanted 1 with objective=iwae"),
        (["objective=wae", "joined=5"], "joined: got 5, wanted 1 with objective=wae"),
        (
            ["posterior=delta", "prior.kind=none", "joined=5"],
            "joined: got 5, wanted 1 with posterior=delta",
        ),
        (
            ["prior.kind=gmm", "joined=5"],
            "joined: got 5, wanted 1 with prior.kind=gmm and prior_start=0.33; posteriors are "
            "joined under N(0, I): wanted prior.kind=standard, or prior_start=1",
        ),
        (["noise=1", "noise_kind=mask"], "noise: got 1.0, wanted 0 or more and below 1 with noise"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_combinations_of_settings_that_are_invalid_are_refused(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(DENSE, arguments)


@pytest.mark.parametrize(
    ("setting", "got", "wanted"),
    [
        ("beta=much", "'much'", "a number"),
        ("beta=", "''", "a number"),
        ("batch_size=1.5", "'1.5'", "a whole number"),
        ("seed=x", "'x'", "a whole number"),
        ("binarize=perhaps", "'perhaps'", "true or false"),
        ("scale=cubic", "'cubic'", "log_var, sigmoid"),
        ("posterior=normal", "'normal'", "gaussian, delta"),
        ("objective=vae", "'vae'", "elbo, iwae, wae"),
        ("conditional=maybe", "'maybe'", "true or false"),
        ("joined=0", "0", "1 to 1000"),
        ("joined=two", "'two'", "a whole number"),
        ("noise=-0.1", "-0.1", "0 or more"),
        ("noise=inf", "inf", "0 or more"),
        ("noise_kind=salt", "'salt'", "gaussian, mask"),
        ("mmd_weight=-1", "-1", "0 or more"),
        ("prior.kind=vamp", "'vamp'", "none, standard, gmm, flow, flow-gmm"),
        ("latent_dim=two", "'two'", "a whole number"),
        ("layers=512", "'512'", "512:relu,256:relu"),
        ("layers=wide:relu", "'wide:relu'", "512:relu,256:relu"),
        ("layers=512:relu:2", "'512:relu:2'", "512:relu,256:relu"),
        ("layers=512:relu,", "'512:relu,'", "512:relu,256:relu"),
        ("layers=", "''", "512:relu,256:relu"),
        ("layers=0:relu", "((0, 'relu'),)", "width 1 to 65536"),
        ("layers=65537:relu", "((65537, 'relu'),)", "width 1 to 65536"),
        ("latent_dim=0", "0", "1 to 65536"),
        ("latent_dim=1000000", "1000000", "1 to 65536"),
        ("prior.components=0", "0", "1 to 65536"),
        ("prior.couplings=0", "0", "1 to 1000"),
        ("prior.width=0", "0", "1 to 65536"),
        ("draws=0", "0", "1 to 1000"),
        ("beta=-1", "-1", "0 or more"),
        ("beta=nan", "nan", "0 or more"),
        ("beta=inf", "inf", "0 or more"),
        ("batch_size=0", "0", "1 or more"),
        ("learning_rate=0", "0", "above 0"),
        ("learning_rate=nan", "nan", "above 0"),
        ("learning_rate=inf", "inf", "above 0"),
        ("weight_decay=-0.1", "-0.1", "0 or more"),
        ("weight_decay=inf", "inf", "0 or more"),
        ("warmup=1.1", "1.1", "0 to 1"),
        ("kl_warmup=-0.1", "-0.1", "0 to 1"),
        ("ema=1", "1", "0 or more and below 1"),
        ("clip_factor=0.5", "0.5", "1 or more"),
        ("clip_factor=inf", "inf", "1 or more"),
        ("skip_factor=4", "4", "clip_factor or more"),
        ("skip_factor=nan", "nan", "clip_factor or more"),
        ("max_skipped=-1", "-1", "0 or more"),
        ("prior_start=2", "2", "0 to 1"),
        ("prior_fit=-1", "-1", "0 to 100"),
        ("prior_refit=nan", "nan", "0 to 100"),
        ("prior_batch_size=0", "0", "1 or more"),
        ("prior_learning_rate=0", "0", "above 0"),
        ("label_weight=-1", "-1", "0 or more"),
        ("seed=-1", "-1", "0 or more"),
    ],
)
def test_a_bad_value_is_refused_with_key_got_and_wanted(
    setting: str, got: str, wanted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DENSE, [setting])
    assert_says(str(caught.value), setting, got, wanted)


@pytest.mark.parametrize(
    ("setting", "got", "wanted"),
    [
        ("widths=64,wide", "'64,wide'", "whole numbers such as 64,32"),
        ("widths=", "''", "whole numbers such as 64,32"),
        ("widths=64,1", "(64, 1)", "2 to 65536"),
        ("encoder_blocks=1,-1", "(1, -1)", "0 to 1000"),
        ("decoder_blocks=1;1", "'1;1'", "whole numbers"),
        ("encoder_trunk=-1", "-1", "0 to 65536"),
        ("decoder_trunk=65537", "65537", "0 to 65536"),
        ("patch=0", "0", "one of 1, 2, 4, 8, 16, 32"),
        ("transitions=curved", "'curved'", "one of activated, linear"),
        ("initial_scale=nan", "nan", "-20 to 20"),
        ("coarsest=0", "0", "1 to 65536"),
        ("patch=3", "3", "one of 1, 2, 4, 8, 16, 32"),
    ],
)
def test_a_bad_value_of_a_conv_network_is_refused_with_key_got_and_wanted(
    setting: str, got: str, wanted: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(CONV, [setting])
    assert_says(str(caught.value), setting, got, wanted)


def assert_says(message: str, setting: str, got: str, wanted: str) -> None:
    assert setting.partition("=")[0] in message
    assert f"got {got}" in message
    assert wanted in message.partition("wanted")[2]
    assert "\n" not in message


@pytest.mark.parametrize(
    "setting",
    [
        "depth=3", "beta", "", "=4", "Beta=4", "model=dense", "network=conv", "prior=gmm",
        "kind=conv", "prior.depth=2", "prior=kind=gmm", "widths=64,32",
    ],
)  # fmt: skip
def test_an_unknown_key_is_refused_with_a_list_of_the_keys(setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(DENSE, [setting])
    message = str(caught.value)
    assert f"got {setting!r}" in message
    keys = [setting.partition("=")[0] for setting in typed(DENSE.model, DENSE.train)]
    listed = message.partition("with one of ")[2].split(", ")
    assert sorted(listed) == sorted(keys)


@settings(max_examples=300)
@given(
    st.sampled_from(typed(DENSE.model, DENSE.train)),
    st.integers(0, 12),
    st.integers(0, 3),
    st.text("0123456789", max_size=3) | st.text("-+.,:_einfaTrue ", max_size=3) | st.text(),
)
def test_an_edited_setting_is_refused_by_its_key_or_can_be_set_again(
    setting: str, at: int, removed: int, text: str
) -> None:
    key, _, value = setting.partition("=")
    try:
        changed = override(DENSE, [f"{key}={value[:at]}{text}{value[at + removed :]}"])
    except ConfigError as error:
        message = str(error)
    else:
        assert override(DENSE, typed(changed.model, changed.train)) == changed
        numbers = [number for number in dataclasses.astuple(changed.train) if number is not None]
        assert all(
            math.isfinite(number) for number in numbers if not isinstance(number, str | tuple)
        )
        return
    assert key in message
    assert "\n" not in message


GOOD = dataclasses.asdict(CONV.model)


@pytest.mark.parametrize(
    "damage",
    [
        [],
        "conv",
        None,
        GOOD | {"network": None},
        GOOD | {"network": []},
        GOOD | {"network": {**GOOD["network"], "kind": "transformer"}},
        GOOD | {"network": {key: 1 for key in GOOD["network"] if key != "kind"}},
        GOOD | {"network": {**GOOD["network"], "widths": "wide"}},
        GOOD | {"network": {**GOOD["network"], "widths": [[1]]}},
        GOOD | {"latent_dim": "40"},
        GOOD | {"latent_dim": 40.5},
        GOOD | {"latent_dim": True},
        GOOD | {"latent_dim": 0},
        GOOD | {"posterior": "normal"},
        GOOD | {"posterior": ["gaussian"]},
        GOOD | {"prior": {**GOOD["prior"], "kind": "gnn"}},
        GOOD | {"prior": {"kind": "gmm"}},
        GOOD | {"depth": 3},
        GOOD | {"conditional": 1},
        {key: value for key, value in GOOD.items() if key != "scale"},
    ],
    ids=str,
)
def test_json_of_something_else_is_refused(damage: Any) -> None:
    with pytest.raises((ConfigError, KeyError, TypeError, ValueError)):
        record_from_json(ModelConfig, json.loads(json.dumps(damage)))


def test_an_unknown_preset_is_refused_with_a_list_of_the_presets() -> None:
    with pytest.raises(ConfigError, match="preset: got 'huge', wanted one of") as caught:
        find_preset("huge")
    assert all(name in str(caught.value) for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_found_by_name_and_have_summaries(name: str) -> None:
    assert find_preset(name) is PRESETS[name]
    assert PRESETS[name].summary
    assert "\n" not in PRESETS[name].summary


def test_there_is_a_preset_of_each_type_of_autoencoder() -> None:
    models = [preset.model for preset in PRESETS.values()]
    assert {model.posterior for model in models} == {"gaussian", "delta"}
    assert {type(model.network) for model in models} == {Dense, Conv}
    assert {preset.train.objective for preset in PRESETS.values()} == {"elbo", "iwae"}
    assert any(preset.train.beta > 1 for preset in PRESETS.values())
    assert [name for name, preset in PRESETS.items() if preset.model.conditional] == [
        "cvae", "cvae-fonts"
    ]  # fmt: skip
    article = PRESETS["seed2d"].model
    assert (article.latent_dim, article.scale) == (2, "sigmoid")
    assert article.network.layers == ((512, "relu"), (256, "relu"), (128, "relu"))
    assert CONV.model.prior.kind == "flow-gmm"
    assert 32 <= CONV.model.latent_dim <= 40
