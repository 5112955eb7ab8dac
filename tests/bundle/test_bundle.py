"""Bundles on disk: what a reader refuses, and that a write is atomic."""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundle import (
    SCHEMA_VERSION,
    BundleError,
    DatasetRef,
    FileRef,
    GraphRef,
    Manifest,
    Parity,
    TensorSpec,
    check_name,
    find_models,
    find_others,
    open_bundle,
    write_bundle,
)
from tests.support import ROOT

GOLDEN = {
    "encoder.image": np.zeros((2, 1, 2, 2), np.float32),
    "encoder.mean": np.zeros((2, 3), np.float32),
    "encoder.log_var": np.zeros((2, 3), np.float32),
    "decoder.z": np.zeros((2, 3), np.float32),
    "decoder.image": np.full((2, 1, 2, 2), 0.5, np.float32),
    "decoder.logits": np.zeros((2, 1, 2, 2), np.float32),
}


def npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


# A reader does not parse the graphs, so that any bytes will do.
FILES = {
    "encoder.onnx": b"the encoder's graph" * 20,
    "decoder.onnx": b"the decoder's graph" * 30,
    "golden.npz": npz(GOLDEN),
}
CHECKED = tuple(FILES)


def file_ref(name: str) -> dict[str, Any]:
    content = FILES[name]
    sha256 = hashlib.sha256(content).hexdigest()
    return {"file": name, "sha256": sha256, "size_bytes": len(content)}


def tensor(name: str, *shape: str | int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


IMAGE, LATENT = ("N", 1, 2, 2), ("N", 3)


def manifest_of(name: str, version: int) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        image_shape=(1, 2, 2),
        latent_dim=3,
        likelihood="bernoulli",
        posterior="gaussian",
        prior="standard",
        graphs={
            "encoder": GraphRef(
                **file_ref("encoder.onnx"),
                opset=18,
                inputs=(tensor("image", *IMAGE),),
                outputs=(tensor("mean", *LATENT), tensor("log_var", *LATENT)),
            ),
            "decoder": GraphRef(
                **file_ref("decoder.onnx"),
                opset=18,
                inputs=(tensor("z", *LATENT),),
                outputs=(tensor("image", *IMAGE), tensor("logits", *IMAGE)),
            ),
        },
        golden=FileRef(**file_ref("golden.npz")),
        tolerances={"cpu": 1e-4, "cuda": 1e-3},
        preprocessing={"scale": 1 / 255},
        noise="none/1",
        dataset=DatasetRef(name="tiny", sha256={"file": "0" * 64}, split={"train": 6}),
        training={"preset": "dense"},
        metrics={"elbo": 1.5},
        parity=Parity(
            batches=(1, 2), max_abs_difference={"x": 0.0}, tolerance=1e-4, batch_invariant=True
        ),
        tools={"numpy": np.__version__},
    )


def write(model: Path, **companions: Callable[[Manifest], bytes]) -> Path:
    return write_bundle(
        model,
        FILES,
        lambda version: manifest_of(model.name, version),
        {"README.md": lambda manifest: f"version {manifest.version}".encode(), **companions},
    )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A sound bundle, `models/tiny/1`."""
    return write(tmp_path / "models" / "tiny")


def edit(version: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the manifest of a bundle in place."""
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_golden(version: Path, content: bytes) -> None:
    """Replaces the golden rows, with the right size and checksum in the manifest."""
    (version / "golden.npz").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    edit(version, lambda m: m["golden"].update(sha256=sha256, size_bytes=len(content)))


def assert_refused(version: Path, *parts: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(version)
    said = str(caught.value)
    assert str(version) in said
    # The path has the name of the test in it.
    said = said.replace(str(version), "")
    for part in parts:
        assert part in said


def names_under(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_a_written_bundle_reads_back_unchanged(tiny: Path) -> None:
    bundle = open_bundle(tiny)
    assert bundle.path == tiny
    assert bundle.graphs == {
        "encoder": FILES["encoder.onnx"], "decoder": FILES["decoder.onnx"]
    }  # fmt: skip
    assert bundle.golden.keys() == GOLDEN.keys()
    for key, array in GOLDEN.items():
        np.testing.assert_array_equal(bundle.golden[key], array)
    assert (bundle.manifest.name, bundle.manifest.version) == ("tiny", 1)
    assert bundle.manifest.schema_version == SCHEMA_VERSION
    assert (tiny / "README.md").read_text() == "version 1"
    assert {path.name for path in tiny.iterdir()} == {*FILES, "README.md", "manifest.json"}


def test_an_exported_bundle_opens(models: Path) -> None:
    bundle = open_bundle(models / "mnist" / "1")
    assert bundle.manifest.image_shape == (1, 28, 28)
    assert bundle.manifest.latent_dim == 32
    rows = {len(array) for array in bundle.golden.values()}
    assert rows == {8}
    assert [(model.name, model.versions) for model in find_models(models)] == [("mnist", (1,))]


def test_a_bundle_opens_by_a_relative_path(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    assert open_bundle(Path()).manifest.name == "tiny"


@pytest.mark.parametrize("file", CHECKED)
def test_a_truncated_file_is_refused(file: str, tiny: Path) -> None:
    content = FILES[file]
    (tiny / file).write_bytes(content[:-1])
    assert_refused(tiny, file, f"{len(content) - 1} bytes, wanted {len(content)}")


@pytest.mark.parametrize("file", CHECKED)
def test_a_flipped_bit_anywhere_in_a_file_is_refused(file: str, tiny: Path) -> None:
    content = FILES[file]
    for at in range(0, len(content), 37):
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        (tiny / file).write_bytes(flipped)
        assert_refused(tiny, file, "SHA-256", hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("file", [*CHECKED, "manifest.json"])
def test_a_missing_file_is_refused(file: str, tiny: Path) -> None:
    (tiny / file).unlink()
    assert_refused(tiny, file, "No such file")


@pytest.mark.parametrize("file", [*CHECKED, "manifest.json"])
def test_a_folder_in_place_of_a_file_is_refused(file: str, tiny: Path) -> None:
    (tiny / file).unlink()
    (tiny / file).mkdir()
    assert_refused(tiny, file)


@pytest.mark.parametrize("schema", ["3.0", "0.9", "10.0", "one", "", None])
def test_an_unknown_major_schema_is_refused(schema: str | None, tiny: Path) -> None:
    edit(tiny, lambda manifest: manifest.update(schema_version=schema))
    assert_refused(tiny, "manifest.json", f"schema {schema}")


def test_an_unknown_major_schema_is_reported_before_other_problems(tiny: Path) -> None:
    (tiny / "manifest.json").write_text('{"schema_version": "3.0", "models": []}')
    assert_refused(tiny, "manifest.json", "schema 3.0, wanted major of 1.3 or 2.0")


def test_a_newer_minor_schema_with_extra_fields_is_read(tiny: Path) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest.update(schema_version="1.9", a_field_of_tomorrow={"x": 1})
        manifest["graphs"]["encoder"]["another"] = 5

    edit(tiny, newer)
    assert open_bundle(tiny).manifest.schema_version == "1.9"


@pytest.mark.parametrize(
    "file",
    ["../encoder.onnx", "../../secret", "/etc/hostname", "a/../encoder.onnx", "./encoder.onnx",
     "sub/encoder.onnx", "..", ".", "", "encoder.onnx/", "enc\0oder.onnx"],
)  # fmt: skip
@pytest.mark.parametrize("part", ["encoder", "golden"])
def test_a_file_name_with_a_path_is_refused(part: str, file: str, tiny: Path) -> None:
    def leave(manifest: dict[str, Any]) -> None:
        (manifest["golden"] if part == "golden" else manifest["graphs"][part])["file"] = file

    (tiny / "sub").mkdir()
    for folder in (tiny.parent, tiny / "sub"):
        shutil.copy(tiny / "encoder.onnx", folder)
    edit(tiny, leave)
    assert_refused(tiny)


@pytest.mark.parametrize("file", CHECKED)
def test_a_link_that_leaves_the_folder_is_refused(file: str, tiny: Path, tmp_path: Path) -> None:
    (tiny / file).rename(tmp_path / file)
    (tiny / file).symlink_to(tmp_path / file)
    assert_refused(tiny, file, "link")


def test_a_dangling_or_circular_link_is_refused(tiny: Path) -> None:
    for target in ("nothing", "encoder.onnx"):
        (tiny / "encoder.onnx").unlink()
        (tiny / "encoder.onnx").symlink_to(tiny / target)
        assert_refused(tiny, "encoder.onnx")


@pytest.mark.parametrize("moved", ["other/1", "tiny/2", "tiny/01"])
def test_a_bundle_in_folders_of_other_names_is_refused(
    moved: str, tiny: Path, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere" / moved
    shutil.copytree(tiny, target)
    assert_refused(target, "tiny/1")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "manifest.json"),
        (b"not json", "manifest.json"),
        (b"[]", "manifest.json"),
        (b"null", "manifest.json"),
        (b"\xff\xfe{}", "manifest.json"),
        (b"{}", "schema"),
        (b'{"schema_version": "1.0"}', "manifest.json"),
        (b"[" * 100_000, "manifest.json"),
    ],
    ids=["empty", "text", "list", "null", "no utf-8", "object", "fields missing", "deep"],
)
def test_a_malformed_manifest_is_refused(content: bytes, said: str, tiny: Path) -> None:
    (tiny / "manifest.json").write_bytes(content)
    assert_refused(tiny, said)


def test_a_manifest_truncated_anywhere_is_refused(tiny: Path) -> None:
    raw = (tiny / "manifest.json").read_bytes()
    # Without its last newline it is still complete.
    for length in range(len(raw) - 1):
        (tiny / "manifest.json").write_bytes(raw[:length])
        assert_refused(tiny, "manifest.json")


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_a_manifest_without_a_graph_is_refused(graph: str, tiny: Path) -> None:
    edit(tiny, lambda manifest: manifest["graphs"].pop(graph))
    assert_refused(tiny, "manifest.json", "graphs", f"no {graph}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_shape", [1, 2]),
        ("image_shape", [1, 0, 2]),
        ("latent_dim", 0),
        ("latent_dim", "three"),
        ("version", 0),
        ("name", "Bad Name"),
        ("likelihood", "poisson"),
        ("likelihood", "gaussian"),  # of other outputs than its decoder has
        ("tolerances", {"cpu": float("nan")}),
        ("tolerances", {"cpu": float("inf")}),
        ("score_percentiles", [0.0] * 100),
        ("score_percentiles", [*range(100, -1, -1)]),
        ("golden", {"file": "golden.npz", "sha256": "short", "size_bytes": 5}),
        ("created_at", "yesterday"),
    ],
)
def test_a_field_with_a_wrong_value_is_refused_by_name(
    field: str, value: object, tiny: Path
) -> None:
    edit(tiny, lambda manifest: manifest.update({field: value}))
    assert_refused(tiny, "manifest.json")
    if not (isinstance(value, dict) and "cpu" in value):  # NaN is not JSON
        assert_refused(tiny, field)


def plain_member() -> bytes:
    """A zip file whose members are not arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key in GOLDEN:
            archive.writestr(key, b"no array")
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, GOLDEN["encoder.image"])
    return buffer.getvalue()


def damaged_npz() -> bytes:
    """A zip file with an intact directory and overwritten members."""
    raw = bytearray(npz(GOLDEN))
    for info in zipfile.ZipFile(io.BytesIO(raw)).infolist():
        start = info.header_offset + 30 + len(info.filename) + 20
        raw[start : start + 12] = b"\xff" * 12
    return bytes(raw)


@pytest.mark.parametrize(
    "content",
    [
        npz(GOLDEN | {"encoder.mean": np.array([{"a": 1}], dtype=object)}),
        pickle.dumps(GOLDEN),
        npz(GOLDEN | {"encoder.mean": GOLDEN["encoder.mean"].astype(np.float64)}),
        npz(GOLDEN | {"decoder.z": GOLDEN["decoder.z"].astype(np.int64)}),
        npz({key: array for key, array in GOLDEN.items() if key != "decoder.z"}),
        npz(GOLDEN | {"prior.z": GOLDEN["decoder.z"]}),
        b"no archive",
        npz(GOLDEN)[:-30],
        npy(),
        plain_member(),
        damaged_npz(),
    ],
    ids=["pickled array", "pickle", "float64", "int64", "array missing", "array too many",
         "no archive", "cut short", "one npy", "no arrays", "damaged inside"],
)  # fmt: skip
def test_malformed_golden_rows_are_refused(content: bytes, tiny: Path) -> None:
    replace_golden(tiny, content)
    assert_refused(tiny, "golden.npz")


@pytest.mark.parametrize("name", ["mnist", "0", "a" * 63, "mnist-int8", "v1.2_x"])
def test_valid_model_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "Mnist", "Bad Name", "-a", ".a", "..", "a/b", "a" * 64, "é", "a\n", "a\0"]
)
def test_invalid_model_names_are_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"model name: got .*, wanted 1 to 63"):
        check_name(name)


OPERATIONS = ("encode", "decode", "sample", "reconstruct", "score")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_names_that_end_in_an_operation_are_refused(operation: str) -> None:
    with pytest.raises(BundleError, match=rf"got 'mnist\.{operation}', wanted another end"):
        check_name(f"mnist.{operation}")
    for name in (operation, f"mnist-{operation}", f"mnist.{operation}2", f"{operation}.mnist"):
        assert check_name(name) == name


def test_a_folder_whose_name_ends_in_an_operation_is_a_model_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "mnist.score" / "1").mkdir(parents=True)
    (tmp_path / "none.score").mkdir()
    (found,) = find_models(tmp_path)
    assert (found.name, found.versions) == ("mnist.score", (1,))
    assert "model name: got 'mnist.score'" in found.problem


def test_writing_under_an_invalid_name_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="model name: got 'Bad Name'"):
        write(tmp_path / "models" / "Bad Name")
    assert list(tmp_path.iterdir()) == []


def test_find_models_lists_only_models_and_their_versions(tmp_path: Path) -> None:
    for folder in (
        "mnist/1", "mnist/2", "mnist/10", "mnist/.export-abc", "mnist/03", "mnist/latest",
        "mnist/0", "mnist/-1", "empty", "hidden/.export-1", ".cache/1", "Big/1", "a-b/7",
    ):  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "a-b" / "8").write_text("a file")
    found = [(model.name, model.versions) for model in find_models(tmp_path)]
    assert found == [("a-b", (7,)), ("mnist", (1, 2, 10))]
    assert find_others(tmp_path) == (
        "Big", "empty", "hidden", "mnist/-1", "mnist/0", "mnist/03", "mnist/latest",
    )  # fmt: skip


def test_find_models_refuses_a_missing_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(BundleError, match=str(path)):
            find_models(path)


def test_the_next_version_follows_the_highest(tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    assert [write(model).name for _ in range(3)] == ["1", "2", "3"]
    shutil.rmtree(model / "2")
    assert write(model).name == "4"
    (model / "41").mkdir()
    assert write(model) == model / "42"
    assert open_bundle(model / "42").manifest.version == 42


def test_concurrent_exports_get_distinct_versions(tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    racers = 8
    # All find the same version free before the first of them takes it.
    barrier = threading.Barrier(racers)
    met = threading.local()

    def wait_once(_manifest: Manifest) -> bytes:
        if not hasattr(met, "once"):
            met.once = True
            barrier.wait(30)
        return b"ready"

    with ThreadPoolExecutor(racers) as pool:
        written = [pool.submit(write, model, notes=wait_once) for _ in range(racers)]
        folders = {future.result() for future in written}
    assert folders == {model / str(version) for version in range(1, racers + 1)}
    for folder in folders:
        assert open_bundle(folder).manifest.version == int(folder.name)
        assert (folder / "README.md").read_text() == f"version {folder.name}"
    assert {path.name for path in model.iterdir()} == {folder.name for folder in folders}


class Trouble(Exception):
    """Raised in the middle of a write."""


def raise_trouble(_manifest: Manifest) -> bytes:
    raise Trouble


def test_a_write_that_fails_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with pytest.raises(Trouble):
        write(models / "tiny", notes=raise_trouble)
    assert find_models(models) == ()
    assert names_under(models) <= {"tiny"}
    kept = write(models / "tiny")
    before = names_under(models)
    with pytest.raises(Trouble):
        write(models / "tiny", notes=raise_trouble)
    assert names_under(models) == before
    assert open_bundle(kept).manifest.version == 1


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(BundleError, match=f"cannot write a bundle into {tmp_path}/models/tiny"):
        write(tmp_path / "models" / "tiny")


BLOCKED = """
import sys, time
from pathlib import Path
from tests.bundle.test_bundle import write

def block(manifest):
    print("blocked", flush=True)
    time.sleep(600)

write(Path(sys.argv[1]), notes=block)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Path]:
    """A models folder whose writer, a child process, was killed in the middle of a write."""
    models = tmp_path / "models"
    child = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, str(models / "tiny")],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "blocked\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
        yield models
    finally:
        child.kill()
        child.communicate()


def test_a_write_killed_midway_leaves_no_readable_bundle(killed: Path) -> None:
    (rest,) = (killed / "tiny").iterdir()
    assert {path.name for path in rest.iterdir()} >= set(FILES)
    assert find_models(killed) == ()
    with pytest.raises(BundleError):
        open_bundle(rest)
    assert write(killed / "tiny") == killed / "tiny" / "1"
    assert open_bundle(killed / "tiny" / "1").manifest.version == 1
    assert find_models(killed)[0].versions == (1,)


# ------------------------------------------------- schema 1.1: priors, labels, points

LABEL = TensorSpec(name="label", dtype="int64", shape=("N",))
PRIOR_FILES = {"prior.onnx": b"the prior's graph", "prior_density.onnx": b"its density's graph"}
PRIOR_GOLDEN = {
    "prior.eps": np.zeros((2, 3), np.float32),
    "prior.u": np.zeros((2, 1), np.float32),
    "prior.label": np.array([-1, 0], np.int64),
    "prior.z": np.zeros((2, 3), np.float32),
    "prior_density.z": np.zeros((2, 3), np.float32),
    "prior_density.label": np.array([-1, 0], np.int64),
    "prior_density.log_prob": np.zeros(2, np.float32),
}


def ref(name: str, content: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {"file": name, "sha256": sha256, "size_bytes": len(content)}


def write_kind(
    model: Path, *, posterior: str = "gaussian", prior: str = "standard", **fields: Any
) -> Path:
    """Writes a bundle with the graphs of a posterior and a prior."""
    golden = dict(GOLDEN)
    graphs = dict(manifest_of("x", 1).graphs)
    files = dict(FILES)
    if posterior == "delta":
        del golden["encoder.log_var"]
        graphs["encoder"] = graphs["encoder"].model_copy(
            update={"outputs": graphs["encoder"].outputs[:1]}
        )
    if prior not in ("standard", "none"):
        golden |= PRIOR_GOLDEN
        files |= PRIOR_FILES
        specs = {
            "prior": (
                (tensor("eps", *LATENT), tensor("u", "N", 1), LABEL),
                (tensor("z", *LATENT),),
            ),
            "prior_density": ((tensor("z", *LATENT), LABEL), (tensor("log_prob", "N"),)),
        }
        for name, (inputs, outputs) in specs.items():
            file = ref(f"{name}.onnx", PRIOR_FILES[f"{name}.onnx"])
            graphs[name] = GraphRef(**file, opset=18, inputs=inputs, outputs=outputs)
    files["golden.npz"] = npz(golden)

    def manifest(version: int) -> Manifest:
        plain = manifest_of(model.name, version).model_dump(
            exclude={"posterior", "prior", "graphs"}
        )
        plain["golden"] = ref("golden.npz", files["golden.npz"])
        return Manifest(**plain | fields, posterior=posterior, prior=prior, graphs=graphs)

    return write_bundle(model, files, manifest)


KINDS = [
    ("gaussian", "standard"), ("gaussian", "gmm"), ("gaussian", "flow"), ("gaussian", "flow-gmm"),
    ("delta", "none"), ("delta", "gmm"), ("delta", "flow"), ("delta", "flow-gmm"),
    ("gaussian", "none"), ("delta", "standard"),
]  # fmt: skip


@pytest.mark.parametrize(("posterior", "prior"), KINDS)
def test_every_kind_of_bundle_opens_with_its_graphs(
    posterior: str, prior: str, tmp_path: Path
) -> None:
    labels = ("zero", "one") if "gmm" in prior else ()
    version = write_kind(tmp_path / "kind", posterior=posterior, prior=prior, labels=labels)
    bundle = open_bundle(version)
    learned = prior not in ("standard", "none")
    assert bundle.manifest.learned_prior is learned
    wanted = {"encoder", "decoder"} | ({"prior", "prior_density"} if learned else set())
    assert bundle.graphs.keys() == bundle.manifest.graphs.keys() == wanted
    assert ("encoder.log_var" in bundle.golden) == (posterior == "gaussian")
    assert bundle.manifest.labels == labels
    if learned:
        assert bundle.golden["prior.label"].dtype == np.int64
        assert bundle.golden["prior.label"].tolist() == [-1, 0]


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """A sound bundle with a learned prior conditional on the class, `models/tiny/1`."""
    return write_kind(tmp_path / "models" / "tiny", prior="gmm", labels=("a", "b"))


@pytest.mark.parametrize("graph", ["prior", "prior_density"])
def test_a_learned_prior_needs_both_of_its_graphs(graph: str, learned: Path) -> None:
    edit(learned, lambda manifest: manifest["graphs"].pop(graph))
    assert_refused(learned, "manifest.json", f"graphs: no {graph}")


@pytest.mark.parametrize("prior", ["standard", "none"])
def test_graphs_of_a_prior_without_weights_are_refused(prior: str, learned: Path) -> None:
    edit(learned, lambda manifest: manifest.update(prior=prior, labels=[]))
    assert_refused(learned, "manifest.json", f"prior and prior_density with prior {prior}")


def test_an_unknown_graph_is_refused(tiny: Path) -> None:
    edit(tiny, lambda m: m["graphs"].update(oracle=m["graphs"]["encoder"]))
    assert_refused(tiny, "manifest.json", "oracle")


@pytest.mark.parametrize(("posterior", "prior"), [("gaussian", "standard"), ("gaussian", "flow")])
def test_labels_without_a_mixture_are_refused(posterior: str, prior: str, tmp_path: Path) -> None:
    version = write_kind(tmp_path / "kind", posterior=posterior, prior=prior)
    edit(version, lambda manifest: manifest.update(labels=["a", "b"]))
    assert_refused(version, "manifest.json", f"labels: got 2, wanted none with prior {prior}")


@pytest.mark.parametrize(("posterior", "other"), [("gaussian", "delta"), ("delta", "gaussian")])
def test_an_encoder_of_another_posterior_is_refused(
    posterior: str, other: str, tmp_path: Path
) -> None:
    version = write_kind(tmp_path / "kind", posterior=posterior, prior="flow")
    edit(version, lambda manifest: manifest.update(posterior=other))
    assert_refused(version, "manifest.json", "graphs.encoder: tensors do not match")


def test_an_unknown_prior_is_refused(tmp_path: Path) -> None:
    version = write_kind(tmp_path / "kind")
    edit(version, lambda manifest: manifest.update(prior="vamp"))
    assert_refused(version, "manifest.json", "prior: got 'vamp'")


@pytest.mark.parametrize(
    ("key", "array"),
    [
        ("prior.label", np.array([-1, 0], np.int32)),
        ("prior.label", np.array([-1.0, 0.0], np.float32)),
        ("prior.label", np.array([[-1], [0]], np.int64)),
        ("prior.label", np.array(-1, np.int64)),
        ("prior.u", np.zeros(2, np.float32)),
        ("prior.eps", np.zeros((2, 3), np.int64)),
        ("prior_density.log_prob", np.zeros((2, 1), np.float32)),
        ("prior_density.log_prob", np.zeros(0, np.float32)),
    ],
)
def test_golden_rows_of_a_prior_have_its_dtypes_and_shapes(
    key: str, array: np.ndarray[Any, Any], learned: Path
) -> None:
    replace_golden(learned, npz(GOLDEN | PRIOR_GOLDEN | {key: array}))
    assert_refused(learned, "golden.npz", key)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_precision_and_tolerances_are_read(precision: str, tiny: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["precision"] = precision
        manifest["graphs"]["decoder"]["tolerances"] = {"cpu": 0.25}

    edit(tiny, change)
    manifest = open_bundle(tiny).manifest
    assert manifest.precision == precision
    assert manifest.graphs["decoder"].tolerances == {"cpu": 0.25}
    assert manifest.graphs["encoder"].tolerances == {}


@pytest.mark.parametrize("field", [("precision", "int4"), ("posterior", "laplace")])
def test_an_unknown_precision_or_posterior_is_refused_by_name(
    field: tuple[str, str], tiny: Path
) -> None:
    edit(tiny, lambda manifest: manifest.update([field]))
    assert_refused(tiny, "manifest.json", *field)


def test_a_bundle_of_schema_1_0_opens(tmp_path: Path) -> None:
    """A manifest of the first release, verbatim except for the checksums."""
    version = tmp_path / "old" / "1"
    version.mkdir(parents=True)
    for name, content in FILES.items():
        (version / name).write_bytes(content)

    def tensors(*specs: tuple[str, list[str | int]]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": "float32", "shape": shape} for name, shape in specs]

    image, latent = ["N", 1, 2, 2], ["N", 3]
    manifest = {
        "schema_version": "1.0",
        "name": "old",
        "version": 1,
        "created_at": "2026-11-23T06:30:00Z",
        "image_shape": [1, 2, 2],
        "latent_dim": 3,
        "likelihood": "bernoulli",
        "posterior": "gaussian",
        "prior": "standard",
        "labels": [],
        "class_names": ["0", "1"],
        "graphs": {
            "encoder": file_ref("encoder.onnx") | {
                "opset": 18,
                "inputs": tensors(("image", image)),
                "outputs": tensors(("mean", latent), ("log_var", latent)),
            },
            "decoder": file_ref("decoder.onnx") | {
                "opset": 18,
                "inputs": tensors(("z", latent)),
                "outputs": tensors(("image", image), ("logits", image)),
            },
        },
        "golden": file_ref("golden.npz"),
        "tolerances": {"cpu": 0.0001, "cuda": 0.001},
        "preprocessing": {"channels": "grey", "size": [2, 2], "scale": 0.00392156862745098},
        "noise": "philox4x64-10/as241/1",
        "dataset": {"name": "mnist", "sha256": {"file": "0" * 64}, "split": {"train": 55000}},
        "training": {"preset": "dense", "settings": [], "total_steps": 500},
        "metrics": {"protocol": "test split", "elbo": 95.7, "measured_on": "onnxruntime"},
        "score_percentiles": [float(value) for value in range(101)],
        "parity": {
            "batches": [1, 2, 3, 64],
            "max_abs_difference": {"encoder.mean": 1e-06},
            "tolerance": 0.0001,
            "batch_invariant": True,
        },
        "tools": {"latentserve": "0.1.0"},
    }  # fmt: skip
    (version / "manifest.json").write_text(json.dumps(manifest))
    opened = open_bundle(version).manifest
    assert (opened.schema_version, opened.posterior, opened.prior) == (
        "1.0",
        "gaussian",
        "standard",
    )
    assert (opened.precision, opened.labels, opened.dataset.spec) == ("fp32", (), {})
    assert opened.parity.precision_difference == {}
    assert opened.graphs["encoder"].tolerances == {}
