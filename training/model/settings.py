"""Parses configuration: `--set` options of the command line, and records in JSON."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from training.errors import ConfigError
from training.model.config import Conv, Counts, Layers, ModelConfig
from training.model.preset import Preset
from training.model.train_config import Augmentations, TrainConfig

T = TypeVar("T")

_AUGMENTATION = typing.get_args(Augmentations)[0]

# Fields that were added since, with what holds for records without them.
_ADDED: Mapping[type, Mapping[str, Any]] = {
    Conv: {"patch": 2, "coarsest": 8, "transitions": "activated"},
    ModelConfig: {
        "likelihood": "bernoulli",
        "mixture": 1,
        "initial_scale": 0.0,
        "conditional": False,
    },
    TrainConfig: {
        "clip_factor": 5.0,
        "skip_factor": 100.0,
        "augment": [],
        "augment_share": 1.0,
        "train_on_validation": False,
        "augment_until": 1.0,
        "iwae_from": 0.0,
        "gradient": "total",
        "mmd_weight": 500.0,
        "class_offset_weight": 0.0,
        "noise": 0.0,
        "noise_kind": "gaussian",
        "joined": 1,
    },
}
# Fields of older records that are no more.
_GONE: Mapping[type, frozenset[str]] = {
    TrainConfig: frozenset({"clip_grad_norm", "skip_grad_norm"}),
}


def override(preset: Preset, settings: Sequence[str]) -> Preset:
    """Applies `--set` options to a preset.

    Args:
        preset: The preset to start from.
        settings: Assignments `key=value`. A key is a field of ModelConfig, TrainConfig or
            the preset's network, or `prior.` and a field of PriorConfig. Layers are
            written `512:relu,256:relu`, lists of numbers `64,32`.

    Raises:
        ConfigError: A key does not exist, or a value cannot be parsed or is out of range.
    """
    changes: dict[tuple[str, ...], Any] = {}
    keys = _keys(preset)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in keys:
            raise ConfigError(
                f"--set: got {setting!r}, wanted KEY=VALUE with one of {', '.join(keys)}"
            )
        path, kind = keys[key]
        changes[path] = _parse(key, text, kind)
    # All at once, since two changes may be valid only together.
    changed: Preset = _replaced(preset, changes)
    return changed


def record_from_json(kind: type[T], data: Any) -> T:
    """Makes a record from parsed JSON, the inverse of `dataclasses.asdict`.

    Args:
        kind: ModelConfig or TrainConfig.
        data: The parsed JSON.

    Raises:
        ConfigError: A value is out of range.
        KeyError: A field is missing.
        TypeError: There is an unknown field, or a value of the wrong type.
        ValueError: A value is not one of the field's choices.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise TypeError(f"got {data!r}, wanted an object of {', '.join(hints)}")
    if surplus := data.keys() - hints.keys() - _GONE.get(kind, frozenset()):
        raise TypeError(f"unknown fields {sorted(surplus)}")
    data = {**_ADDED.get(kind, {}), **data}
    return kind(**{name: _from_json(hint, data[name]) for name, hint in hints.items()})


def _keys(preset: Preset) -> dict[str, tuple[tuple[str, ...], Any]]:
    """The keys that `--set` accepts, with the path to each field and its type."""
    model = preset.model
    return {
        prefix + name: ((*path, name), kind)
        for prefix, path, record in (
            ("", ("model", "network"), model.network),
            ("", ("model",), model),
            ("prior.", ("model", "prior"), model.prior),
            ("", ("train",), preset.train),
        )
        for name, kind in typing.get_type_hints(type(record)).items()
        if not dataclasses.is_dataclass(getattr(record, name))
        and (prefix + name) != "kind"  # the network's type, which decides its other fields
    }


def _replaced(record: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """Copies nested records, replacing the fields at the paths in `changes`."""
    new = {}
    for name in {path[0] for path in changes}:
        below = {path[1:]: value for path, value in changes.items() if path[0] == name}
        new[name] = below[()] if () in below else _replaced(getattr(record, name), below)
    return dataclasses.replace(record, **new)


def _from_json(hint: Any, value: Any) -> Any:
    """Converts a value from JSON to the type of its field."""
    if isinstance(hint, types.UnionType):
        hint = {network.kind: network for network in typing.get_args(hint)}[value["kind"]]
    if dataclasses.is_dataclass(hint):
        return record_from_json(hint, value)  # type: ignore[arg-type]
    if hint == Layers:
        return tuple((int(width), str(activation)) for width, activation in value)
    if hint == Counts:
        return tuple(int(count) for count in value)
    if hint == Augmentations:
        return tuple(_from_json(_AUGMENTATION, name) for name in value)
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise ValueError(f"got {value!r}, wanted {_wanted(hint)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"got {value!r}, wanted {_wanted(hint)}")
    return value


def _parse(key: str, text: str, kind: Any) -> Any:
    """Parses the value of a `--set` option by the type of its field."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind == Layers:
            pairs = [layer.split(":") for layer in text.split(",")]
            return tuple((int(width), activation) for width, activation in pairs)
        if kind == Counts:
            return tuple(int(count) for count in text.split(","))
        if kind == Augmentations:
            return tuple(_parse(key, name, _AUGMENTATION) for name in text.split(",") if name)
        if typing.get_origin(kind) is Literal:
            if text not in typing.get_args(kind):
                raise ValueError
            return text
        return kind(text)
    except (ValueError, KeyError):
        raise ConfigError(f"--set {key}: got {text!r}, wanted {_wanted(kind)}") from None


def _wanted(kind: Any) -> str:
    """Describes the values of a type in words, for error messages."""
    if kind == Layers:
        return "layers such as 512:relu,256:relu"
    if kind == Counts:
        return "whole numbers such as 64,32"
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}[kind]
