"""Decoders in reduced precision: structure, cost, refusals, and serving."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic

from bundle import Bundle, open_bundle
from export.errors import ExportError
from export.export import export
from export.graphs import ExportedGraph, export_graphs
from export.invariance import check_batch_invariance
from export.precisions import PRECISIONS
from export.variants import VARIANT_OPERATORS, convert_decoder, differences_of
from export.verify import ALLOWED_OPERATORS, check_structure
from latentserve.client import Client
from service.models.model import ModelRefused, load_model
from service.models.onnx import Device, Graph
from tests.support.processes import Server, latentserve
from tests.support.shared import cached, made_once
from tests.support.untrained import KINDS, random_model
from training.model.config import Dense, ModelConfig
from training.model.vae import Vae
from training.run_folder import RunFolder

pytestmark = pytest.mark.slow

FEWER = [precision for precision in PRECISIONS if precision != "fp32"]

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def variants(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the `gmm` model in fp32, fp16 and int8."""

    def make(folder: Path) -> None:
        for precision in FEWER:
            done = latentserve(
                "export", kinds / "runs" / "gmm", "--to", folder / f"gmm-{precision}",
                "--decoder", precision,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (folder / f"{precision}.log").write_text(done.stderr)
            assert done.stdout == f"{folder / f'gmm-{precision}' / '1'}\n"
        shutil.copytree(kinds / "models" / "gmm", folder / "gmm")

    return made_once(tmp_path_factory, "variants", cached("variants", make))


@pytest.fixture(params=FEWER)
def variant(request: pytest.FixtureRequest, variants: Path) -> Bundle:
    return open_bundle(variants / f"gmm-{request.param}" / "1")


@pytest.fixture(scope="module")
def plain(kinds: Path) -> Bundle:
    return open_bundle(kinds / "models" / "gmm" / "1")


@pytest.fixture(scope="module")
def decoder() -> ExportedGraph:
    """A convolutional decoder."""
    return export_graphs(random_model(KINDS["gmm"]))["decoder"]


def latents(rows: int, dim: int = 3) -> Array:
    return np.random.default_rng(1).standard_normal((rows, dim), np.float32)


def operators(content: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(content).graph.node}


def test_a_variant_changes_only_the_decoder(variant: Bundle, plain: Bundle) -> None:
    assert variant.graphs.keys() == plain.graphs.keys()
    for name, content in plain.graphs.items():
        assert (variant.graphs[name] == content) == (name != "decoder")
    assert plain.manifest.precision == "fp32"
    assert variant.manifest.precision in FEWER
    assert variant.manifest.name == f"gmm-{variant.manifest.precision}"


def test_a_variant_holds_allowed_operators_and_no_source_locations(variant: Bundle) -> None:
    model = onnx.load_from_string(variant.graphs["decoder"])
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    assert operators(variant.graphs["decoder"]) <= VARIANT_OPERATORS
    assert ALLOWED_OPERATORS | {"QuantizeLinear", "DequantizeLinear"} == VARIANT_OPERATORS
    assert "Cast" in ALLOWED_OPERATORS
    assert not model.metadata_props
    assert not model.functions
    for node in model.graph.node:
        assert not node.doc_string
        assert not node.metadata_props
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


def test_int8_is_static_and_per_channel_and_excludes_the_ends(variants: Path) -> None:
    graph = onnx.load_from_string(open_bundle(variants / "gmm-int8" / "1").graphs["decoder"]).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Gemm", "Conv", "MatMul")]

    def quantised(node: onnx.NodeProto) -> bool:
        return node.input[1] not in weights

    assert [(node.op_type, quantised(node)) for node in layers] == [
        ("Gemm", False), ("Gemm", True), ("Conv", False), ("Conv", True), ("Conv", False)
    ]  # fmt: skip
    for node in filter(quantised, layers):
        restored = producers[node.input[1]]
        values, scales, zeros = (
            onnx.numpy_helper.to_array(weights[name]) for name in restored.input
        )
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() <= 64  # seven bits: no saturation without VNNI
        assert scales.ndim == 1 < len(scales)  # a scale for each channel
        assert not zeros.any()
        # The scales of activations are constants, not computed over the batch.
        steps = producers[node.input[0]]
        assert steps.op_type == "DequantizeLinear"
        assert steps.input[1] in weights
    assert "DynamicQuantizeLinear" not in {node.op_type for node in graph.node}


def test_fp16_has_no_float32_initializers(variants: Path) -> None:
    graph = onnx.load_from_string(open_bundle(variants / "gmm-fp16" / "1").graphs["decoder"]).graph
    dtypes = {tensor.data_type for tensor in graph.initializer}
    assert TensorProto.FLOAT16 in dtypes
    assert TensorProto.FLOAT not in dtypes


def test_a_variant_is_smaller_than_the_fp32_decoder() -> None:
    vae = Vae(ModelConfig(Dense(((256, "relu"), (128, "silu"))), 8), (1, 28, 28)).eval()
    decoder = export_graphs(vae)["decoder"]
    size = {
        precision: len(convert_decoder(decoder, precision, {"z": latents(64, 8)}).content)
        for precision in FEWER
    }
    assert size["fp16"] < 0.55 * len(decoder.content)
    weights = 8 * 128 + 128 * 256 + 256 * 784
    # int8 takes a quarter of the bytes of the inner layers.
    assert size["int8"] < len(decoder.content) * (1 - 0.7 * 128 * 256 / weights)


def test_a_row_of_a_variant_has_the_same_bits_in_every_batch(variant: Bundle) -> None:
    rows = latents(100)
    whole = Graph(variant.graphs["decoder"], Device("cpu"), rows=100).run({"z": rows})
    for threads in (1, 2):
        graph = Graph(variant.graphs["decoder"], Device("cpu"), threads)
        for chosen in ([0], [99], [5, 3], list(range(17)), list(range(99, -1, -1))):
            part = graph.run({"z": rows[chosen]})
            for name, answers in whole.items():
                assert part[name].tobytes() == answers[chosen].tobytes()


def test_manifest_and_card_state_parity_and_cost_of_a_variant(
    variant: Bundle, plain: Bundle, kinds: Path, variants: Path
) -> None:
    manifest, precision = variant.manifest, variant.manifest.precision
    # Parity is that of the fp32 graphs; the variant has a difference of its own.
    assert manifest.parity.max_abs_difference == plain.manifest.parity.max_abs_difference
    stated = manifest.parity.precision_difference
    assert stated.keys() == {"decoder.image", "decoder.logits"}
    model = RunFolder(kinds / "runs" / "gmm").load_model()
    z = variant.golden["decoder.z"]
    with torch.inference_mode():
        logits = model.decode(torch.from_numpy(z)).numpy()
    answers = Graph(variant.graphs["decoder"], Device("cpu")).run({"z": z})
    assert 0 < np.abs(answers["logits"] - logits).max() <= stated["decoder.logits"]
    assert (
        stated["decoder.image"] < stated["decoder.logits"] < {"fp16": 0.02, "int8": 0.5}[precision]
    )
    metrics = manifest.metrics
    assert metrics["elbo_fp32"] == plain.manifest.metrics["elbo"]
    cost = metrics["elbo"] - metrics["elbo_fp32"]
    assert 0 < abs(cost) < {"fp16": 0.01, "int8": 0.5}[precision]
    said = (variants / f"{precision}.log").read_text()
    assert f"of the fp32 one {metrics['elbo_fp32']:.3f}: {cost:+.3f}" in said
    card = (variant.path / "README.md").read_text()
    assert f"| {metrics['elbo_fp32']:.2f}; {cost:+.3f} |" in card
    assert f"The decoder computes in {precision}" in card
    assert f"--decoder {precision}" in card
    assert re.search(rf"the {precision} one\s+differs\s+from\s+torch", card)


def test_golden_rows_of_a_variant_are_its_own_and_only_its_decoder_has_wide_tolerances(
    variant: Bundle,
) -> None:
    manifest = variant.manifest
    answers = Graph(variant.graphs["decoder"], Device("cpu")).run(
        {"z": variant.golden["decoder.z"]}
    )
    for name, answer in answers.items():
        assert np.abs(answer - variant.golden[f"decoder.{name}"]).max() < 1e-6
    assert manifest.tolerances == {"cpu": 1e-4, "cuda": 1e-3}
    for name, graph in manifest.graphs.items():
        assert bool(graph.tolerances) == (name == "decoder")
    assert min(manifest.graphs["decoder"].tolerances.values()) > 1e-3


def test_output_of_the_converters_is_suppressed(variants: Path) -> None:
    for precision in FEWER:
        lines = (variants / f"{precision}.log").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["torch", "test", "there", "test"], lines


def test_a_server_of_variants_samples_nearly_the_same_images(
    variants: Path, tmp_path: Path
) -> None:
    with (
        Server(variants, tmp_path / "log") as server,
        Client(server.wait_until_serving().target) as client,
    ):
        models = {model.name: model for model in client.info().models}
        assert {name: model.precision for name, model in models.items()} == {
            "gmm": "fp32", "gmm-fp16": "fp16", "gmm-int8": "int8"
        }  # fmt: skip
        wanted = client.sample_with_latents(50, seed=7, label=1, model="gmm")
        for precision, apart in (("fp16", 0.01), ("int8", 0.1)):
            name = f"gmm-{precision}"
            samples = client.sample_with_latents(50, seed=7, label=1, model=name)
            assert (samples.latents == wanted.latents).all()
            assert 0 < np.abs(samples.images - wanted.images).max() < apart
            halves = [
                client.sample(25, seed=7, offset=start, label=1, model=name) for start in (0, 25)
            ]
            assert (np.concatenate(halves) == samples.images).all()


def test_a_dynamically_quantised_decoder_is_refused(decoder: ExportedGraph, tmp_path: Path) -> None:
    quantize_dynamic(onnx.load_from_string(decoder.content), tmp_path / "dynamic.onnx")
    content = (tmp_path / "dynamic.onnx").read_bytes()
    with pytest.raises(ExportError, match=r"decoder\.image: rows differ between batches of 1 and"):
        check_batch_invariance("decoder", content, {"z": latents(64)})
    dynamic = dataclasses.replace(decoder, content=content)
    with pytest.raises(ExportError, match=r"opsets|DynamicQuantizeLinear"):
        check_structure(dynamic, VARIANT_OPERATORS)


@pytest.mark.parametrize("operator", ["RandomNormalLike", "Softplus", "DynamicQuantizeLinear"])
def test_a_variant_with_a_disallowed_operator_is_refused(
    operator: str, decoder: ExportedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotaged(model: onnx.ModelProto) -> onnx.ModelProto:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        outputs = ["q", "s", "o"] if operator == "DynamicQuantizeLinear" else ["q"]
        changed.graph.node.append(helper.make_node(operator, ["z"], outputs))
        return changed

    monkeypatch.setattr("export.variants._to_fp16", sabotaged)
    with pytest.raises(ExportError, match=rf"decoder: operators \['{operator}'\] are not on"):
        convert_decoder(decoder, "fp16", {"z": latents(64)})


def test_quantisation_operators_are_allowed_only_in_variants(decoder: ExportedGraph) -> None:
    variant = convert_decoder(decoder, "int8", {"z": latents(64)})
    with pytest.raises(ExportError, match="DequantizeLinear"):
        check_structure(variant)


def test_int8_refuses_a_decoder_without_inner_layers() -> None:
    vae = Vae(ModelConfig(Dense(((16, "relu"),)), 2), (1, 4, 4)).eval()
    decoder = export_graphs(vae)["decoder"]
    with pytest.raises(ExportError, match="int8: the decoder has 2 layers"):
        convert_decoder(decoder, "int8", {"z": latents(8, 2)})
    few = {"z": latents(8, 2)}
    assert max(differences_of(convert_decoder(decoder, "fp16", few), few).values()) < 1e-2


def test_a_variant_is_not_exported_without_the_data(kinds: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"int8: its cost in nats .* wanted --data"):
        export(kinds / "runs" / "rgb", tmp_path / "rgb-int8", decoder="int8")
    assert not (tmp_path / "rgb-int8").exists()


def test_a_variant_beyond_its_tolerances_is_refused(
    variants: Path,
) -> None:
    """Only the decoder has a wide tolerance; that of the other graphs is the bundle's."""
    bundle = open_bundle(variants / "gmm-int8" / "1")
    for key, error, refused in (
        ("decoder.logits", 0.1, False),
        ("decoder.logits", 1.0, True),
        ("encoder.mean", 0.01, True),
        ("prior.z", 0.01, True),
        ("prior_density.log_prob", 0.01, True),
        ("prior_density.log_prob", 0.0002, False),  # of three latent dimensions
    ):
        golden = bundle.golden | {key: bundle.golden[key] + np.float32(error)}
        changed = dataclasses.replace(bundle, golden=golden)
        if refused:
            with pytest.raises(ModelRefused, match=re.escape(key)):
                load_model(changed, Device("cpu"))
        else:
            load_model(changed, Device("cpu"))
