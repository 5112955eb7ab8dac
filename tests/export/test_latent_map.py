"""The map of the latent space that an export writes, and bundles that are written again."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bundle import SCHEMA_VERSION, LatentMap, open_bundle
from export.card import model_card
from export.cli import main_evaluate, main_export
from export.export import export
from export.invariance import RowLimit
from export.latent_map import build_map
from export.subject import subject_of_bundle, subject_of_graphs
from service.models.onnx import Device, Graph
from tests.support.blobs import write_blobs
from tests.support.spatial import Spatial, write_spatial
from training.data.datasets import load_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data of `kinds`, in another place."""
    return write_blobs(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", ["gmm", "iwae", "delta"])
def test_an_export_with_the_data_has_a_map(name: str, kinds: Path, data: str) -> None:
    bundle = open_bundle(kinds / "models" / name / "1")
    found = bundle.latent_map
    assert found is not None
    images = load_dataset(data).test.images
    answers = Graph(bundle.graphs["encoder"], Device("cpu")).run(
        {"image": images.astype(np.float32) / 255}
    )
    np.testing.assert_allclose(found.mean, answers["mean"], atol=0.01, rtol=1e-3)
    assert set(found.labels) == {0, 1, 2}
    if name == "delta":
        assert found.kl.shape == (0,)
        return
    variance = np.exp(answers["log_var"])
    kl = 0.5 * (answers["mean"] ** 2 + variance - 1 - answers["log_var"]).mean(axis=0)
    np.testing.assert_allclose(found.kl, kl, rtol=1e-4)


def test_an_export_without_the_data_has_none(kinds: Path) -> None:
    assert open_bundle(kinds / "models" / "rgb" / "1").latent_map is None


def test_a_map_of_many_dimensions_has_fewer_images(kinds: Path, data: str, monkeypatch) -> None:
    bundle = open_bundle(kinds / "models" / "gmm" / "1")
    subject = subject_of_graphs(
        bundle.graphs,
        latent_dim=3,
        likelihood="bernoulli",
        prior="gmm",
        labels=3,
        binarized=False,
    )
    dataset = load_dataset(data)
    whole = build_map(subject, dataset)
    monkeypatch.setattr("export.latent_map._MAX_VALUES", 3 * 10)
    part = build_map(subject, dataset)
    assert part.mean.shape == (10, 3)
    shown = np.arange(10) * len(whole.mean) // 10
    np.testing.assert_array_equal(part.mean, whole.mean[shown])
    np.testing.assert_array_equal(part.kl, whole.kl)


def test_a_map_of_more_classes_than_it_can_number_has_none(kinds: Path, data: str) -> None:
    bundle = open_bundle(kinds / "models" / "gmm" / "1")
    subject = subject_of_bundle(bundle)
    dataset = load_dataset(data)
    for count in (32_767, 32_768):
        names = tuple(map(str, range(count)))
        found = build_map(subject, dataclasses.replace(dataset, class_names=names))
        assert (set(found.labels) == {-1}) == (count > 32_767)


def test_a_new_bundle_states_shape_tolerance_rows_and_memory(kinds: Path) -> None:
    manifest = open_bundle(kinds / "models" / "gmm" / "1").manifest
    assert manifest.latent_shape == (3,)
    assert (manifest.tolerance_kind, manifest.rows_at_once) == ("relative", 0)
    assert manifest.bytes_per_pixel > 4


@pytest.mark.parametrize("kind", ["flow", "conditional"])
def test_a_bundle_is_written_again_with_the_same_graphs(
    kind: str, kinds: Path, data: str, tmp_path: Path, capsys
) -> None:
    old = kinds / "models" / kind / "1"
    to = ("--to", str(tmp_path / "models" / "again"))
    assert main_export([str(old), *to]) == 1
    assert "Remedy: --data idx:PATH, where it is now" in capsys.readouterr().err
    assert main_export([str(old), *to, "--data", data]) == 0
    new = tmp_path / "models" / "again" / "1"
    assert capsys.readouterr().out == f"{new}\n"
    first, second = open_bundle(old), open_bundle(new)
    assert second.graphs == first.graphs
    assert second.golden.keys() == first.golden.keys()
    assert isinstance(second.latent_map, LatentMap)
    assert second.manifest.name == "again"
    for name in (
        "schema_version", "metrics", "parity", "training", "dataset", "score_percentiles", "labels",
        "conditional", "class_weights",
    ):  # fmt: skip
        assert getattr(second.manifest, name) == getattr(first.manifest, name)
    assert {path.name for path in new.iterdir()} == {path.name for path in old.iterdir()}
    assert (new / "README.md").read_text().startswith("# again, version 1\n")


def test_a_bundle_written_again_says_anew_whether_its_rows_have_the_same_bits(
    kinds: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = RowLimit(1, bit_invariant=False, reason="they differ")
    monkeypatch.setattr("export.reissue.measure_rows", lambda *_arguments: limit)
    old, to = kinds / "models" / "flow" / "1", tmp_path / "again"
    assert main_export([str(old), "--to", str(to), "--data", data]) == 0
    new = open_bundle(to / "1").manifest
    assert new.rows_at_once == 1
    assert new.parity is not None
    assert not new.parity.batch_invariant
    assert "are the same in all of them" not in (to / "1" / "README.md").read_text()


def test_a_bundle_written_again_keeps_its_decoder(kinds: Path, tmp_path: Path, capsys) -> None:
    old, to = str(kinds / "models" / "flow" / "1"), str(tmp_path / "again")
    assert main_export([old, "--to", to, "--decoder", "int8"]) == 1
    said = capsys.readouterr().err
    assert said == "latentserve export: --decoder: got int8; a bundle keeps its graphs\n"
    assert not (tmp_path / "again").exists()


def test_a_bundle_without_data_is_neither_written_again_nor_measured(
    tmp_path: Path, capsys
) -> None:
    path = write_spatial(tmp_path / "spatial")
    assert main_export([str(path), "--to", str(tmp_path / "spatial")]) == 1
    assert "its manifest names no data set" in capsys.readouterr().err
    assert main_evaluate([str(path)]) == 1
    assert "its manifest names no data set" in capsys.readouterr().err
    assert [folder.name for folder in (tmp_path / "spatial").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Spatial(), "A variational autoencoder: RGB images of any size in multiples of 4 pixels"),
        (Spatial(free=False), "16 x 16 pixels to latents of 2 x 4 x 4"),
        (Spatial(likelihood="none", posterior="delta"), "there is no likelihood"),
        (Spatial(posterior="none"), "images = client.decode(latents"),
        (Spatial(), "Imported: Spatial of onnx; licence: MIT."),
    ],
)
def test_a_card_of_an_imported_model_says_what_is_known(
    kind: Spatial, said: str, tmp_path: Path
) -> None:
    manifest = open_bundle(write_spatial(tmp_path / "m", kind)).manifest
    card = " ".join(model_card(manifest).decode().split())
    assert said in card
    assert "None" not in card
    assert "## Training" not in card


def test_the_manifest_on_disk_has_no_empty_fields(tmp_path: Path) -> None:
    path = write_spatial(tmp_path / "m", Spatial(scaling=None, free=False))
    fields = json.loads((path / "manifest.json").read_text())
    assert fields["schema_version"] == SCHEMA_VERSION
    assert not {"sizes", "latent_scaling", "dataset", "parity", "latent_map"} & fields.keys()


@pytest.mark.slow
def test_a_model_whose_rows_differ_is_exported_for_one_row_at_a_time(
    kinds: Path, tmp_path: Path, monkeypatch
) -> None:
    limit = RowLimit(1, bit_invariant=False, reason="decoder.image: rows differ")
    monkeypatch.setattr("export.export.measure_rows", lambda _graphs, _cases: limit)
    lines: list[str] = []
    path = export(kinds / "runs" / "iwae", tmp_path / "iwae", report=lines.append)
    assert "rows are to be computed one at a time. decoder.image: rows differ" in lines
    manifest = open_bundle(path).manifest
    assert manifest.rows_at_once == 1
    assert manifest.parity is not None
    assert not manifest.parity.batch_invariant
    card = " ".join((path / "README.md").read_text().split())
    assert "are not the same in all of them, so that a server computes rows one at a time" in card
