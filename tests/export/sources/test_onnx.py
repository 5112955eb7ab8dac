"""Pairs of ONNX graphs: adopted with the contract's tensors, and refused in one line if not fit."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bundle import tensors_of
from export.errors import ExportError
from export.graphs import ExportedGraph
from export.sources import onnx as source
from export.sources import onnx_graph
from export.sources.imported import Imported, ImportOptions
from export.verify import ADOPTED_OPSETS, check_structure
from tests.support.onnx_pairs import (
    conv_decoder,
    conv_encoder,
    dense_decoder,
    dense_encoder,
    write_optimum,
    write_pair,
)

_PLAIN = ImportOptions()


def _run(content: bytes | Path, inputs: dict) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(
        content if isinstance(content, bytes) else str(content)
    ).run(None, inputs)


def _check(imported: Imported) -> None:
    """The structure that the common steps want."""
    specs = tensors_of(
        imported.image_shape,
        imported.latent_shape,
        free=imported.sizes is not None,
        posterior=imported.posterior,
        likelihood=imported.likelihood,
    )
    assert specs.keys() == imported.graphs.keys()
    for name, (inputs, outputs) in specs.items():
        graph = ExportedGraph(
            name,
            None,  # type: ignore[arg-type] - not run
            tuple(spec.name for spec in inputs),
            tuple(spec.name for spec in outputs),
            imported.graphs[name],
            imported.sizes is not None,
        )
        check_structure(graph, opsets=ADOPTED_OPSETS)
        got = onnx.load_from_string(graph.content).graph
        for value, spec in zip((*got.input, *got.output), (*inputs, *outputs), strict=True):
            axes = value.type.tensor_type.shape.dim
            assert tuple(axis.dim_param or axis.dim_value for axis in axes) == spec.shape


def test_optimums_layout(tmp_path: Path) -> None:
    folder = write_optimum(tmp_path / "sd")
    assert source.find(folder)
    imported = source.load(folder, _PLAIN)
    _check(imported)
    assert imported.sizes is not None
    assert (imported.sizes.factor, imported.posterior) == (2, "gaussian")
    assert (imported.image_shape, imported.latent_shape) == ((3, 64, 64), (4, 32, 32))
    assert imported.latent_scaling is not None
    assert imported.latent_scaling.scale == 0.5
    assert imported.origin.class_name == "AutoencoderKL"
    assert set(imported.origin.sha256) == {
        "vae_encoder/model.onnx",
        "vae_decoder/model.onnx",
        "vae_decoder/model.onnx_data",
        "vae_decoder/config.json",
    }
    image = np.random.default_rng(0).random((2, 3, 6, 10), np.float32)
    (moments,) = _run(folder / "vae_encoder" / "model.onnx", {"sample": 2 * image - 1})
    mean, log_var = _run(imported.graphs["encoder"], {"image": image})
    np.testing.assert_allclose(mean, moments[:, :4], atol=1e-6)
    np.testing.assert_allclose(log_var, np.clip(moments[:, 4:], -30, 20), atol=1e-6)
    (picture,) = _run(folder / "vae_decoder" / "model.onnx", {"latent_sample": mean})
    (got,) = _run(imported.graphs["decoder"], {"z": mean})
    np.testing.assert_allclose(got, (picture + 1) / 2, atol=1e-6)


def test_log_variances_are_clamped(tmp_path: Path) -> None:
    encoder = conv_encoder()
    bias = onnx.numpy_helper.from_array(np.full(8, 100, np.float32), "b")
    encoder.graph.initializer[1].CopyFrom(bias)
    imported = source.load(write_optimum(tmp_path / "sd", encoder), _PLAIN)
    image = np.zeros((1, 3, 8, 8), np.float32)
    assert _run(imported.graphs["encoder"], {"image": image})[1].max() == 20


def test_a_fixed_size(tmp_path: Path) -> None:
    folder = write_optimum(
        tmp_path / "sd", conv_encoder(sides=(16, 24)), conv_decoder(sides=(8, 12))
    )
    imported = source.load(folder, _PLAIN)
    _check(imported)
    assert (imported.sizes, imported.image_shape) == (None, (3, 16, 24))
    with pytest.raises(ExportError, match=r"--size: wanted 16x24, which .* is fixed at"):
        source.load(folder, ImportOptions(size="any"))
    free = source.load(write_optimum(tmp_path / "free"), ImportOptions(size=(32, 48)))
    _check(free)
    assert (free.sizes, free.latent_shape) == (None, (4, 16, 24))


def test_dynamic_channels_are_those_of_the_first_convolution(tmp_path: Path) -> None:
    folder = write_optimum(tmp_path / "sd", conv_encoder(channels="num_channels"))
    imported = source.load(folder, _PLAIN)
    _check(imported)
    assert imported.image_shape[0] == 3


def test_as_many_channels_as_the_decoder_takes_are_the_mean(tmp_path: Path) -> None:
    folder = write_optimum(tmp_path / "sd", conv_encoder(outputs=4, name="latent_sample"))
    imported = source.load(folder, _PLAIN)
    _check(imported)
    assert imported.posterior == "delta"


def test_a_decoder_alone(tmp_path: Path) -> None:
    folder = write_optimum(tmp_path / "sd")
    (folder / "vae_encoder" / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"no vae_encoder/model.onnx; wanted --decoder-only"):
        source.load(folder, _PLAIN)
    imported = source.load(folder, ImportOptions(decoder_only=True))
    _check(imported)
    assert (imported.posterior, imported.image_shape) == ("none", (3, 64, 64))


@pytest.mark.parametrize("sigmoid_last", [True, False])
def test_the_sigmoid_is_cut_off_for_a_likelihood(sigmoid_last: bool, tmp_path: Path) -> None:
    decoder = dense_decoder()
    if sigmoid_last:
        _, sigmoid, reshape = decoder.graph.node
        reshape.input[0], reshape.output[0] = "hidden", "shaped"
        sigmoid.input[0], sigmoid.output[0] = "shaped", "out"
        nodes = [decoder.graph.node[0], reshape, sigmoid]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del decoder.graph.node[:]
        decoder.graph.node.extend(copies)
    folder = write_pair(tmp_path / "mlp", dense_encoder(), decoder)
    imported = source.load(folder, ImportOptions(likelihood="bernoulli", prior="standard"))
    _check(imported)
    assert (imported.prior, imported.likelihood) == ("standard", "bernoulli")
    z = np.random.default_rng(0).standard_normal((3, 5), np.float32)
    image, logits = _run(imported.graphs["decoder"], {"z": z})
    (wanted,) = _run(folder / "decoder.onnx", {"z": z})
    np.testing.assert_allclose(image, wanted, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), wanted, atol=1e-6)
    operators = [
        node.op_type for node in onnx.load_from_string(imported.graphs["decoder"]).graph.node
    ]
    assert operators.count("Sigmoid") == 1


def test_a_flat_pair_with_named_heads(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "mlp", dense_encoder(), dense_decoder())
    imported = source.load(folder, _PLAIN)
    _check(imported)
    assert (imported.latent_shape, imported.posterior) == ((5,), "gaussian")
    assert "--likelihood bernoulli allows Score" in imported.notes[0]
    image = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    _, mean, log_var = _run(folder / "encoder.onnx", {"x": image})
    got = _run(imported.graphs["encoder"], {"image": image})
    np.testing.assert_allclose(got, [mean, log_var], atol=1e-6)


def _random() -> onnx.ModelProto:
    encoder = conv_encoder()
    noise = onnx.helper.make_node("RandomNormalLike", ["latent_parameters"], ["noise"])
    encoder.graph.node.append(noise)
    return encoder


def _foreign() -> onnx.ModelProto:
    encoder = conv_encoder()
    encoder.graph.node[0].domain = "com.microsoft"
    return encoder


def _half() -> onnx.ModelProto:
    encoder = conv_encoder()
    encoder.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return encoder


@pytest.mark.parametrize(
    ("encoder", "decoder", "problem"),
    [
        (conv_encoder(rows=1), conv_decoder(), "the batch axis of sample is fixed at 1; export it"),
        (conv_encoder(opset=11), conv_decoder(), "opset 11, wanted 13 to 23; export it again with"),
        (
            conv_encoder(),
            conv_decoder(channels=16),
            r"returns latent_parameters \[8, 32, 32\], and .* takes \[16, height, width\]: they do",
        ),
        (
            conv_encoder(sides=(16, 16)),
            conv_decoder(sides=(16, 16)),
            r"makes latents \[4, 8, 8\], and .* takes \[4, 16, 16\]: they do not fit each other",
        ),
        (_random(), conv_decoder(), "it draws random numbers itself"),
        (_foreign(), conv_decoder(), "operators of com.microsoft, wanted those of ONNX alone"),
        (_half(), conv_decoder(), "sample is float16; export it again in float32"),
        (conv_encoder(sides=("h", 16)), conv_decoder(), "either both fixed or both dynamic"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    encoder: onnx.ModelProto, decoder: onnx.ModelProto, problem: str, tmp_path: Path
) -> None:
    folder = write_optimum(tmp_path / "sd", encoder, decoder)
    with pytest.raises(ExportError, match=problem) as refused:
        source.load(folder, _PLAIN)
    assert "\n" not in str(refused.value)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    folder = write_optimum(tmp_path / "sd")
    data = folder / "vae_decoder" / "model.onnx_data"
    data.unlink()
    with pytest.raises(ExportError, match=r"no model.onnx_data, which holds its external data"):
        source.load(folder, _PLAIN)
    (folder / "vae_decoder" / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError, match="not an ONNX file"):
        source.load(folder, _PLAIN)


def test_external_data_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = write_optimum(tmp_path / "sd")
    file = folder / "vae_decoder" / "model.onnx"
    model = onnx.load(file, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../../secret"
    (tmp_path / "secret").write_bytes(bytes(1000))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"external data ../../secret outside its folder"):
        source.load(folder, _PLAIN)


def test_graphs_of_more_than_a_file_holds_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_graph, "_MOST_BYTES", 100)
    with pytest.raises(
        ExportError, match=r"0.0 GB with its external data, wanted less than 2.1 GB"
    ):
        source.load(write_optimum(tmp_path / "sd"), _PLAIN)


def test_a_likelihood_needs_a_sigmoid(tmp_path: Path) -> None:
    folder = write_pair(tmp_path / "mlp", dense_encoder(), dense_decoder(sigmoid=False))
    with pytest.raises(ExportError, match=r"decoder.onnx does not end in a sigmoid$"):
        source.load(folder, ImportOptions(likelihood="bernoulli"))


def test_constants_become_weights(tmp_path: Path) -> None:
    decoder = conv_decoder()
    weight = decoder.graph.initializer.pop()
    decoder.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    folder = write_pair(tmp_path / "pair", conv_encoder(), decoder)
    imported = source.load(folder, _PLAIN)
    _check(imported)
    graph = onnx.load_from_string(imported.graphs["decoder"]).graph
    assert [node.op_type for node in graph.node] == ["ConvTranspose", "Tanh"]


def test_attention_bounds_the_pixels(tmp_path: Path) -> None:
    decoder = conv_decoder()
    decoder.graph.node[1].op_type = "Softmax"
    imported = source.load(write_pair(tmp_path / "pair", conv_encoder(), decoder), _PLAIN)
    assert imported.sizes is not None
    assert imported.sizes.most_pixels == 128**2
