"""The export: graphs against torch, refusals, manifest and model card."""

import io
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from torch import Tensor, nn

from bundle import Bundle, find_models, open_bundle
from export.cli import main_export
from export.errors import ExportError
from export.graphs import OPSET, ExportedGraph, export_graphs, export_module
from export.invariance import check_batch_invariance
from export.verify import (
    ALLOWED_OPERATORS,
    check_parity,
    check_structure,
    measure_parity,
)
from service.models.onnx import Device, Graph
from training.arguments import parser
from training.data.datasets import load_dataset
from training.data.targets import binarize
from training.model.config import Dense, ModelConfig
from training.model.vae import Vae
from training.run_folder import RunFolder

TOLERANCE = 1e-4

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    """The bundle exported from the trained run."""
    return open_bundle(models / "mnist" / "1")


@pytest.fixture(scope="module")
def graphs(bundle: Bundle) -> dict[str, Graph]:
    return {name: Graph(raw, Device("cpu")) for name, raw in bundle.graphs.items()}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Array]:
    """Inputs by graph: test images, grey and binarized, and widely spread latents."""
    images = load_dataset("mnist").test.images[:64]
    grey = images.astype(np.float32) / np.float32(255)
    z = 2 * np.random.default_rng(0).standard_normal((128, 32), np.float32)
    return {"encoder": np.concatenate([grey, binarize(images, seed=5)]), "decoder": z}


def run(graph: Graph, name: str, rows: Array) -> dict[str, Array]:
    return graph.run({"encoder": {"image": rows}, "decoder": {"z": rows}}[name])


@pytest.mark.parametrize("rows", [1, 2, 3, 64])
def test_onnxruntime_agrees_with_the_torch_model_of_the_run(
    rows: int, run_folder: Path, graphs: dict[str, Graph], inputs: dict[str, Array]
) -> None:
    model = RunFolder(run_folder).load_model()
    images, z = inputs["encoder"][-rows:], inputs["decoder"][:rows]
    with torch.inference_mode():
        posterior = model.encode(torch.from_numpy(images))
        logits = model.decode(torch.from_numpy(z))
    wanted = {
        "encoder": {"mean": posterior.mean, "log_var": posterior.log_var},
        "decoder": {"image": torch.sigmoid(logits), "logits": logits},
    }
    for name, tensors in wanted.items():
        answers = run(graphs[name], name, inputs["encoder"][-rows:] if name == "encoder" else z)
        assert answers.keys() == tensors.keys()
        for output, tensor in tensors.items():
            assert (answers[output].dtype, answers[output].shape) == (np.float32, tensor.shape)
            assert np.abs(answers[output] - tensor.numpy()).max() <= TOLERANCE


def test_manifest_states_the_parity_that_was_measured(bundle: Bundle) -> None:
    parity = bundle.manifest.parity
    assert parity.batches == (1, 2, 3, 64)
    assert parity.max_abs_difference.keys() == {
        "encoder.mean", "encoder.log_var", "decoder.image", "decoder.logits"
    }  # fmt: skip
    assert all(0 <= value <= TOLERANCE for value in parity.max_abs_difference.values())
    assert parity.tolerance == bundle.manifest.tolerances["cpu"] == TOLERANCE
    assert parity.batch_invariant is True


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_graphs_are_standard_onnx_with_a_dynamic_batch_and_no_noise(
    name: str, bundle: Bundle
) -> None:
    model = onnx.load_from_string(bundle.graphs[name])
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    assert not model.functions
    operators = {node.op_type for node in model.graph.node}
    assert operators <= ALLOWED_OPERATORS
    assert not any("Random" in operator or "Dropout" in operator for operator in operators)
    assert not {"RandomNormal", "Multinomial", "Bernoulli", "Dropout"} & ALLOWED_OPERATORS
    stated = bundle.manifest.graphs[name]  # type: ignore[index]
    assert stated.opset == OPSET
    for values, specs in ((model.graph.input, stated.inputs), (model.graph.output, stated.outputs)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for value, spec in zip(values, specs, strict=True):
            kind = value.type.tensor_type
            assert kind.elem_type == TensorProto.FLOAT
            assert kind.shape.dim[0].dim_param == "N" == spec.shape[0]
            assert tuple(axis.dim_value for axis in kind.shape.dim[1:]) == spec.shape[1:]


def test_graphs_have_the_names_and_shapes_of_the_contract(bundle: Bundle) -> None:
    image, latent = ("N", 1, 28, 28), ("N", 32)
    shapes = {
        f"{name}.{tensor.name}": tensor.shape
        for name, graph in bundle.manifest.graphs.items()
        for tensor in (*graph.inputs, *graph.outputs)
    }
    assert shapes == {
        "encoder.image": image, "encoder.mean": latent, "encoder.log_var": latent,
        "decoder.z": latent, "decoder.image": image, "decoder.logits": image,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_graphs_disclose_no_source_locations(name: str, bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.graphs[name])
    graph = model.graph
    records = (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for record in (model, graph, *records):
        assert not record.doc_string
        assert not record.metadata_props
    for place in ("site-packages", ".py", str(Path.cwd()), str(Path.home())):
        assert place.encode() not in bundle.graphs[name]


@settings(max_examples=60)
@given(
    name=st.sampled_from(["encoder", "decoder"]),
    chosen=st.lists(st.integers(0, 127), min_size=1, max_size=128),
)
def test_a_row_has_the_same_bits_in_every_batch(
    name: str, chosen: list[int], graphs: dict[str, Graph], inputs: dict[str, Array]
) -> None:
    whole = run(graphs[name], name, inputs[name])
    part = run(graphs[name], name, inputs[name][chosen])
    for output, answers in whole.items():
        assert part[output].tobytes() == answers[chosen].tobytes()


def test_image_is_the_sigmoid_of_logits(graphs: dict[str, Graph], inputs: dict[str, Array]) -> None:
    answers = run(graphs["decoder"], "decoder", inputs["decoder"])
    wanted = 1 / (1 + np.exp(-answers["logits"].astype(np.float64)))
    assert np.abs(answers["image"] - wanted).max() < 1e-6
    assert answers["image"].min() >= 0
    assert answers["image"].max() <= 1
    assert np.ptp(answers["logits"]) > 5


def test_golden_rows_are_real_inputs_with_the_outputs_of_torch(
    bundle: Bundle, run_folder: Path, graphs: dict[str, Graph]
) -> None:
    golden = bundle.golden
    images, _ = RunFolder(run_folder).read_golden_inputs()
    np.testing.assert_allclose(golden["encoder.image"], images[:8] / 255, atol=1e-7)
    answers = {
        **{f"encoder.{key}": value
           for key, value in graphs["encoder"].run({"image": golden["encoder.image"]}).items()},
        **{f"decoder.{key}": value
           for key, value in graphs["decoder"].run({"z": golden["decoder.z"]}).items()},
    }  # fmt: skip
    assert golden.keys() == {*answers, "encoder.image", "decoder.z"}
    for key, value in answers.items():
        assert np.abs(value - golden[key]).max() <= bundle.manifest.tolerances["cpu"]


def test_manifest_states_data_training_metrics_and_tools(bundle: Bundle, run_folder: Path) -> None:
    manifest = bundle.manifest
    config = json.loads((run_folder / "config.json").read_text())
    assert manifest.dataset.name == "mnist"
    assert manifest.dataset.sha256 == config["data_sha256"]
    assert manifest.dataset.split == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert manifest.training["preset"] == "dense"
    assert manifest.training["steps"] == config["steps"] == 500
    assert manifest.precision == "fp32"
    assert manifest.dataset.spec == config["data"]
    assert manifest.metrics["measured_on"] == "onnxruntime"
    trained = json.loads((run_folder / "metrics.json").read_text())
    assert abs(manifest.metrics["elbo"] - trained["elbo"]) < 0.01
    assert 0 < manifest.metrics["fid"] < 1000
    assert manifest.created_at.tzinfo is not None
    assert {"latentserve", "torch", "onnx", "onnxruntime", "numpy"} <= manifest.tools.keys()


class Identity(nn.Module):
    """Returns its input."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.clone(),)


def value(name: str, axes: Sequence[str | int | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)


def graph_of(
    nodes: list[onnx.NodeProto],
    axes: Sequence[str | int | None] = ("N", 4),
    answer: Sequence[str | int | None] = ("N", 4),
    module: nn.Module | None = None,
    opsets: Sequence[tuple[str, int]] = (("", OPSET),),
    **constants: NDArray[Any],
) -> ExportedGraph:
    """A graph from `x` to `y`, with the torch module it claims to compute."""
    graph = helper.make_graph(
        nodes,
        "test",
        [value("x", axes)],
        [value("y", answer)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid(*opset) for opset in opsets]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return ExportedGraph("encoder", module or Identity(), ("x",), ("y",), model.SerializeToString())


def node(operator: str, *inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), [output], **attributes)


def verify(graph: ExportedGraph, rows: Array, tolerance: float) -> None:
    """Runs the checks of an export, in the same order."""
    check_structure(graph)
    inputs = {graph.inputs[0]: rows}
    check_parity(measure_parity(graph, inputs), tolerance)
    check_batch_invariance(graph.name, graph.content, inputs)


ROWS = np.random.default_rng(0).standard_normal((64, 4), np.float32)


def test_a_sound_graph_passes_every_check() -> None:
    graph = graph_of([node("Identity", "x")])
    verify(graph, ROWS, 0.0)
    assert measure_parity(graph, {"x": ROWS}) == {"encoder.y": 0.0}


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (
            graph_of([node("RandomNormal", output="r", shape=[1, 4]), node("Add", "x", "r")]),
            "RandomNormal",
        ),
        (
            graph_of([node("RandomNormalLike", "x", output="r"), node("Add", "x", "r")]),
            "RandomNormalLike",
        ),
        (graph_of([node("Softplus", "x")]), "Softplus"),
        (
            graph_of(
                [node("ReduceMean", "x", "rows", output="m", keepdims=1), node("Sub", "x", "m")],
                rows=np.array([0]),
            ),
            "ReduceMean",
        ),
        (
            graph_of(
                [node("ReduceSum", "x", "columns", keepdims=1)],
                answer=("N", 1),
                columns=np.array([1]),
            ),
            "ReduceSum of x, wanted whole numbers",
        ),
        (graph_of([node("Identity", "x")], axes=(2, 4), answer=(2, 4)), "first axis"),
        (graph_of([node("Identity", "x")], axes=(2, 4)), "first axis"),
        (graph_of([node("Identity", "x")], axes=("N", "M"), answer=("N", "M")), "first axis"),
        (
            graph_of(
                [node("Gelu", "x", domain="com.microsoft")],
                opsets=(("", OPSET), ("com.microsoft", 1)),
            ),
            "com.microsoft",
        ),
        (graph_of([node("Identity", "x")], opsets=(("", 17),)), "wanted {'': 18}"),
        (graph_of([node("Identity", "z")]), "checker"),
        (graph_of([node("Identity", "x")], answer=("N", 5)), "checker"),
    ],
    ids=["RandomNormal", "RandomNormalLike", "Softplus", "mean over rows", "sum", "fixed batch",
         "fixed batch in", "two dynamic axes", "custom domain", "older opset", "unknown input",
         "wrong shape"],
)  # fmt: skip
def test_a_graph_that_breaks_the_contract_is_refused(graph: ExportedGraph, said: str) -> None:
    with pytest.raises(ExportError, match=re.escape(said)) as caught:
        check_structure(graph)
    assert str(caught.value).startswith("encoder: ")


@pytest.mark.parametrize(
    "value_info", [("N", 4), (None, 4), ("batch", 4)], ids=["N", "no name", "another name"]
)
def test_the_batch_axis_must_have_a_name(value_info: tuple[str | None, int]) -> None:
    graph = graph_of([node("Identity", "x")], axes=value_info, answer=value_info)
    if value_info[0] is None:
        with pytest.raises(ExportError, match="first axis"):
            check_structure(graph)
    else:
        check_structure(graph)


def test_parity_fails_for_a_graph_that_differs_from_torch() -> None:
    graph = graph_of([node("Add", "x", "shift")], shift=np.array([0, 0, 3e-4, 0], np.float32))
    check_structure(graph)
    differences = measure_parity(graph, {"x": ROWS})
    assert differences["encoder.y"] == pytest.approx(3e-4, rel=1e-2)
    with pytest.raises(
        ExportError, match=r"encoder\.y: .* differ by 0\.0003, wanted at most 0\.0001"
    ):
        check_parity(differences, 1e-4)
    check_parity(differences, 1e-3)


def test_parity_finds_a_difference_in_one_row_of_the_largest_batch() -> None:
    rows = ROWS.copy()
    rows[63, 3] = 1e6
    graph = graph_of([node("Min", "x", "most")], most=np.array(10, np.float32))
    with pytest.raises(ExportError, match=r"encoder\.y"):
        check_parity(measure_parity(graph, {"x": rows}), 1e-4)


class Nan(nn.Module):
    """Returns its input with one NaN."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        answer = x.clone()
        answer[0, 0] = float("nan")
        return (answer,)


def test_parity_fails_on_nan() -> None:
    differences = measure_parity(graph_of([node("Identity", "x")], module=Nan()), {"x": ROWS})
    assert np.isnan(differences["encoder.y"])
    with pytest.raises(ExportError, match="differ by nan"):
        check_parity(differences, 1e9)


class Zeros(nn.Module):
    """Returns zeros."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.zeros_like(x),)


def test_parity_fails_on_an_output_of_another_shape() -> None:
    # [N, 1] against [N, 4], which NumPy would broadcast.
    graph = graph_of(
        [node("Slice", "x", "from", "to", "axis", output="s"), node("Sub", "s", "s")],
        answer=("N", 1),
        module=Zeros(),
        **{"from": np.array([0]), "to": np.array([1]), "axis": np.array([1])},
    )
    with pytest.raises(ExportError, match=r"encoder\.y"):
        verify(graph, ROWS, 1e-4)


def mixing(kind: str) -> ExportedGraph:
    if kind == "mean":
        return graph_of(
            [node("ReduceMean", "x", "rows", output="m", keepdims=1), node("Sub", "x", "m")],
            rows=np.array([0]),
        )
    # Adds the first row to every row, by allowed operators only.
    return graph_of(
        [node("Slice", "x", "from", "to", output="first"), node("Add", "x", "first")],
        **{"from": np.array([0]), "to": np.array([1])},
    )


@pytest.mark.parametrize("kind", ["mean", "first row"])
def test_a_graph_that_mixes_rows_is_not_batch_invariant(kind: str) -> None:
    with pytest.raises(ExportError, match=r"encoder\.y: rows differ between batches"):
        check_batch_invariance("encoder", mixing(kind).content, {"x": ROWS})


@pytest.mark.parametrize("width", [3, 5, 7, 50])
def test_batch_invariance_fails_for_sums_that_depend_on_memory_alignment(width: int) -> None:
    graph = graph_of(
        [node("ReduceSum", "x", "columns", keepdims=1)],
        axes=("N", width),
        answer=("N", 1),
        columns=np.array([1]),
    )
    rows = np.random.default_rng(0).standard_normal((64, width), np.float32)
    if width < 4:  # too short for another order of summation
        check_batch_invariance("prior", graph.content, {"x": rows})
        return
    with pytest.raises(ExportError, match=r"prior\.y: rows differ between batches of 1 and of 64"):
        check_batch_invariance("prior", graph.content, {"x": rows})


class Sums(nn.Module):
    """Sums over the last axis, like the priors."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x * x).sum(dim=1),)


@pytest.mark.parametrize("width", [1, 5, 50])
def test_exported_sums_do_not_depend_on_memory_alignment(width: int) -> None:
    rows = np.random.default_rng(0).standard_normal((64, width), np.float32)
    graph = export_module("prior", Sums(), {"x": torch.randn(2, width)}, ("y",))
    verify(graph, rows, 1e-4)


def test_a_graph_with_a_constant_batch_size_is_refused() -> None:
    graph = graph_of([node("Reshape", "x", "shape")], shape=np.array([64, 4]))
    with pytest.raises(ExportError, match="encoder"):
        verify(graph, ROWS, 1e-4)


@pytest.mark.slow
def test_every_activation_and_the_sigmoid_scale_pass_every_check() -> None:
    torch.manual_seed(0)
    shape = (1, 7, 5)
    layers = tuple((19, name) for name in ("gelu", "leaky_relu", "relu", "sigmoid", "silu", "tanh"))
    vae = Vae(ModelConfig(Dense(layers), latent_dim=3, scale="sigmoid"), shape).eval()
    graphs = export_graphs(vae)
    assert list(graphs) == ["encoder", "decoder"]
    draw = np.random.default_rng(0)
    verify(graphs["encoder"], draw.random((64, *shape), np.float32), 1e-5)
    verify(graphs["decoder"], 3 * draw.standard_normal((64, 3), np.float32), 1e-5)


def assert_one_line(text: str, *parts: str) -> None:
    assert text.count("\n") == 1, text
    assert text.startswith("latentserve export: "), text
    for part in parts:
        assert part in text


def test_export_of_an_unfinished_run_fails_with_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("metrics.json"))
    for path in (run, tmp_path / "nothing"):
        assert main_export([str(path), "--to", str(tmp_path / "models" / "x")]) == 1
        assert_one_line(capsys.readouterr().err, str(path), "metrics.json")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "file", ["checkpoint.pt", "golden_inputs.npz", "score_percentiles.json", "config.json"]
)
def test_export_of_a_damaged_run_fails_with_one_line_and_writes_nothing(
    file: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    (run / file).write_bytes((run / file).read_bytes()[:100])
    assert main_export([str(run), "--to", str(tmp_path / "models" / "x")]) == 1
    said = capsys.readouterr().err.splitlines(keepends=True)
    assert_one_line(said[-1], file)
    assert not (tmp_path / "models").exists() or find_models(tmp_path / "models") == ()


def test_export_refuses_an_invalid_model_name(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_export([str(run_folder), "--to", str(tmp_path / "Bad Name")]) == 1
    last = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert_one_line(last, "'Bad Name'", "wanted 1 to 63")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_second_export_becomes_version_2_and_keeps_version_1_unchanged(
    run_folder: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    first = {path.name: path.read_bytes() for path in (copy / "mnist" / "1").iterdir()}
    assert main_export([str(run_folder), "--to", str(copy / "mnist"), "--samples", "0"]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "mnist" / "2")
    second = open_bundle(copy / "mnist" / "2")
    assert second.manifest.version == 2
    assert {path.name: path.read_bytes() for path in (copy / "mnist" / "1").iterdir()} == first
    assert second.graphs == open_bundle(copy / "mnist" / "1").graphs
    assert "mnist, version 2" in (second.path / "README.md").read_text()


def test_model_card_states_metrics_data_and_commands(bundle: Bundle) -> None:
    card = (bundle.path / "README.md").read_text()
    metrics = bundle.manifest.metrics
    assert f"| {metrics['elbo']:.2f} ± {metrics['elbo_stderr']:.2f} |" in card
    assert f"| classifier-FID of 500 samples | {metrics['fid']:.2f} |" in card
    for name, sha256 in bundle.manifest.dataset.sha256.items():
        assert f"| `{name}` | `{sha256}` |" in card
    again, train, export = commands(card)
    options = parser().parse_args(train[2:])
    assert (options.preset, options.data, options.steps) == ("dense", "mnist", 500)
    assert export == ["latentserve", "export", "RUN", "--to", "MODELS/mnist", "--samples", "500"]
    assert again == ["latentserve", "evaluate", "MODELS/mnist/1", "--samples", "500"]
    assert "Seed 0; " in card
    assert "of CPU time on " in card
    assert "None" not in card
    assert max(len(line) for line in card.splitlines() if not line.startswith("|")) <= 100


def commands(card: str) -> list[list[str]]:
    """The commands of a model card, split as by a shell."""
    blocks = re.findall(r"```bash\n(.*?)\n```", card, re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines()]


def test_model_card_shows_pictures_of_digits(bundle: Bundle) -> None:
    card = (bundle.path / "README.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card)
    assert sorted(pictures) == ["reconstructions.png", "samples.png"]
    for picture in pictures:
        with Image.open(io.BytesIO((bundle.path / picture).read_bytes())) as image:
            image.load()
            assert image.format == "PNG"
            pixels = np.asarray(image)
        assert min(pixels.shape[:2]) >= 2 * 28
        # Digits: neither blank nor noise.
        assert pixels.max() > 200
        assert pixels.min() < 50
        assert 0.02 < (pixels > 128).mean() < 0.6
