"""Bundles of schema 2.0: models that are conditional on the class."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import (
    CONDITIONAL_SCHEMA_VERSION,
    SCHEMA_VERSION,
    Manifest,
    TensorSpec,
    open_bundle,
    schema_version_of,
    tensors_of,
    write_bundle,
)
from tests.bundle.test_bundle import (
    FILES,
    GOLDEN,
    assert_refused,
    edit,
    manifest_of,
    npz,
    replace_golden,
)

LABEL = TensorSpec(name="label", dtype="int64", shape=("N",))
LABELS = {name: np.array([0, 2]) for name in ("encoder.label", "decoder.label")}
STATED: dict[str, Any] = {
    "schema_version": "2.0",
    "conditional": True,
    "labels": ("a", "b", "c"),
    "class_weights": (0.5, 0.2, 0.3),
}


def write_conditional(model: Path, **changes: Any) -> Path:
    """Writes a conditional bundle, whose graphs are no graphs, with fields changed."""
    files = FILES | {"golden.npz": npz(GOLDEN | LABELS)}

    def manifest(version: int) -> Manifest:
        fields = manifest_of(model.name, version).model_dump()
        for graph in fields["graphs"].values():
            graph["inputs"] = (*graph["inputs"], LABEL.model_dump())
        sha256 = hashlib.sha256(files["golden.npz"]).hexdigest()
        fields["golden"] |= {"sha256": sha256, "size_bytes": len(files["golden.npz"])}
        return Manifest(**fields | STATED | changes)

    return write_bundle(model, files, manifest)


@pytest.fixture
def conditional(tmp_path: Path) -> Path:
    """A sound conditional bundle, `models/tiny/1`."""
    return write_conditional(tmp_path / "models" / "tiny")


def test_a_conditional_bundle_opens_with_its_classes_and_labels(conditional: Path) -> None:
    bundle = open_bundle(conditional)
    manifest = bundle.manifest
    assert manifest.conditional
    assert manifest.schema_version == CONDITIONAL_SCHEMA_VERSION == "2.0"
    assert (manifest.labels, manifest.class_weights) == (("a", "b", "c"), (0.5, 0.2, 0.3))
    for name in ("encoder", "decoder"):
        assert manifest.graphs[name].inputs[1] == LABEL
        assert bundle.golden[f"{name}.label"].tolist() == [0, 2]


def test_only_conditional_models_have_schema_2(conditional: Path, tmp_path: Path) -> None:
    assert schema_version_of(conditional=True) == "2.0"
    assert schema_version_of(conditional=False) == SCHEMA_VERSION
    edit(conditional, lambda manifest: manifest.update(schema_version="1.3"))
    wanted = "schema_version: got 1.3, wanted 2.0 with conditional true"
    assert_refused(conditional, "manifest.json", wanted)
    plain = write_bundle(tmp_path / "plain", FILES, lambda version: manifest_of("plain", version))
    fields = json.loads((plain / "manifest.json").read_text())
    assert fields["schema_version"] == SCHEMA_VERSION
    assert (fields["conditional"], fields["class_weights"]) == (False, [])
    edit(plain, lambda manifest: manifest.update(schema_version="2.0"))
    wanted = f"schema_version: got 2.0, wanted {SCHEMA_VERSION} with conditional false"
    assert_refused(plain, "manifest.json", wanted)


def test_a_newer_minor_version_is_read(conditional: Path) -> None:
    edit(conditional, lambda m: m.update(schema_version="2.7", a_field_of_tomorrow=1))
    assert open_bundle(conditional).manifest.schema_version == "2.7"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": []}, "labels: got none, wanted the names of the classes"),
        ({"class_weights": []}, "class_weights: got 0, wanted 3"),
        ({"class_weights": [0.5, 0.5]}, "class_weights: got 2, wanted 3"),
        ({"class_weights": [0.5, 0.3, 0.3]}, "class_weights: got a sum of 1.1, wanted 1"),
        ({"class_weights": [1.2, -0.5, 0.3]}, "class_weights.1: got -0.5"),
        ({"conditional": False}, "graphs.encoder: tensors do not match"),
    ],
)
def test_classes_that_do_not_fit_are_refused(
    change: dict[str, Any], said: str, conditional: Path
) -> None:
    edit(conditional, lambda manifest: manifest.update(change))
    assert_refused(conditional, "manifest.json", said)


def test_class_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "plain", FILES, lambda version: manifest_of("plain", version))
    edit(plain, lambda manifest: manifest.update(class_weights=[1.0]))
    assert_refused(plain, "manifest.json", "class_weights: got 1, wanted 0")


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_both_graphs_take_the_label(graph: str, conditional: Path) -> None:
    edit(conditional, lambda manifest: manifest["graphs"][graph]["inputs"].pop())
    assert_refused(conditional, f"graphs.{graph}: tensors do not match", "conditional True")


@pytest.mark.parametrize(
    "label", [np.zeros(2, np.int32), np.zeros(2, np.float32), np.zeros((2, 1), np.int64)]
)
def test_golden_labels_have_their_dtype_and_shape(label: Any, conditional: Path) -> None:
    replace_golden(conditional, npz(GOLDEN | LABELS | {"decoder.label": label}))
    assert_refused(conditional, "golden.npz", "decoder.label")


def test_golden_rows_without_labels_are_refused(conditional: Path) -> None:
    replace_golden(conditional, npz(GOLDEN))
    assert_refused(conditional, "golden.npz", "wanted ['decoder.image', 'decoder.label'")


@pytest.mark.parametrize("free", [False, True])
def test_the_prior_of_a_conditional_model_has_the_inputs_of_any_prior(free: bool) -> None:
    plain = tensors_of((3, 8, 8), (6, 2, 2), free=free, prior=True)
    given = tensors_of((3, 8, 8), (6, 2, 2), free=free, prior=True, conditional=True)
    for name in ("prior", "prior_density"):
        assert given[name] == plain[name]
    for name in ("encoder", "decoder"):
        assert given[name] == ((*plain[name][0], LABEL), plain[name][1])
