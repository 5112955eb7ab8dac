"""Whether rows may be batched, and how much memory they take: what an export measures."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from bundle import Sizes, open_bundle, tensors_of
from export.errors import ExportError
from export.graphs import ExportedGraph, export_module
from export.invariance import find_difference, measure_rows, size_cases, trial_sizes
from export.memory import bytes_per_pixel
from export.verify import ADOPTED_OPSETS, ALLOWED_OPERATORS, check_structure, verify_graphs
from tests.support.spatial import Spatial, write_spatial

PICTURE = ("N", 3, "H", "W")


def graph_of(*nodes, outputs=PICTURE, opset=18, **constants) -> bytes:
    """A graph from `image` to `mean`."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, PICTURE)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, outputs)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return model.SerializeToString()


def normalized(channels: int) -> bytes:
    # After another operator, whose output is aligned.
    nodes = (
        helper.make_node("Relu", ["image"], ["x"]),
        helper.make_node("InstanceNormalization", ["x", "scale", "bias"], ["mean"]),
    )
    ones = np.ones(channels, np.float32)
    return graph_of(*nodes, scale=ones, bias=0 * ones)


IMAGES = {"image": np.random.default_rng(0).random((8, 3, 20, 12), np.float32)}


@pytest.mark.parametrize("kind", [Spatial(), Spatial(free=False), Spatial(posterior="none")])
def test_convolutions_may_be_batched_at_every_size(kind: Spatial, tmp_path) -> None:
    bundle = open_bundle(write_spatial(tmp_path / "m", kind))
    cases = {name: size_cases(name, bundle.graphs[name], bundle.manifest) for name in bundle.graphs}
    assert {len(found) for found in cases.values()} == {3 if kind.free else 1}
    limit = measure_rows(bundle.graphs, cases)
    assert (limit.rows, limit.bit_invariant, limit.reason) == (0, True, "")


def test_a_graph_that_mixes_rows_is_computed_one_row_at_a_time() -> None:
    mixing = graph_of(
        helper.make_node("Slice", ["image", "from", "to"], ["first"]),
        helper.make_node("Add", ["image", "first"], ["mean"]),
        **{"from": np.array([0]), "to": np.array([1])},
    )
    limit = measure_rows({"encoder": mixing}, {"encoder": [IMAGES]})
    assert (limit.rows, limit.bit_invariant) == (1, False)
    assert limit.reason == "encoder.mean: rows differ between batches of 1 and of 8"


def test_a_normalization_of_other_than_a_multiple_of_4_channels_is_not_trusted() -> None:
    limit = measure_rows({"encoder": normalized(3)}, {"encoder": [IMAGES]})
    assert (limit.rows, limit.bit_invariant) == (1, False)
    assert limit.reason == "encoder: InstanceNormalization of 3 channels, not a multiple of 4"
    wide = {"image": np.random.default_rng(0).random((8, 4, 20, 12), np.float32)}
    model = onnx.load_from_string(normalized(4))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = 4
    content = model.SerializeToString()
    assert measure_rows({"encoder": content}, {"encoder": [wide]}).rows == 0


def test_slow_rows_are_not_batched_but_keep_their_bits(monkeypatch) -> None:
    monkeypatch.setattr("export.invariance.SLOW_SECONDS", 0.0)
    copy = graph_of(helper.make_node("Identity", ["image"], ["mean"]))
    limit = measure_rows({"encoder": copy}, {"encoder": [IMAGES]})
    assert (limit.rows, limit.bit_invariant) == (1, True)
    assert limit.reason.startswith("encoder: a row takes 0.00 s")


def test_buffers_of_several_alignments_are_tried() -> None:
    sums = graph_of(
        helper.make_node("ReduceSum", ["image", "last"], ["mean"], keepdims=1),
        outputs=("N", 3, "H", 1),
        last=np.array([3]),
    )
    rows = np.random.default_rng(0).standard_normal((1, 3, 4, 50)).astype(np.float32)
    # A batch of one row: only where its buffer starts differs.
    assert "rows differ" in find_difference("encoder", sums, {"image": rows})


@pytest.mark.parametrize(
    ("sizes", "pixels", "wanted"),
    [
        (Sizes(factor=8, multiple=8, least=8, most_pixels=1 << 20), 1 << 20, (256, 264)),
        (Sizes(factor=8, multiple=8, least=8, most_pixels=1 << 20), 128 * 128, (128, 136)),
        (Sizes(factor=8, multiple=8, least=8, most_pixels=1 << 20), 1, (32, 40)),
        (Sizes(factor=8, multiple=64, least=128, most_pixels=1 << 20), 1, (256, 320)),
        (Sizes(factor=4, multiple=4, least=4, most_pixels=256), 1 << 20, None),
    ],
)
def test_one_size_is_odd_and_one_is_large(sizes: Sizes, pixels: int, wanted) -> None:
    tried = trial_sizes(sizes, pixels)
    odd = tried[0]
    assert all(side // sizes.multiple % 2 == 1 for side in odd)
    assert tried[1:] == ([] if wanted is None else [wanted])
    for height, width in tried:
        assert height != width
        assert min(height, width) >= sizes.least
        assert height * width <= sizes.most_pixels


class Halved(nn.Module):
    """A convolution of stride 4 with normalized groups, in two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GroupNorm(4, 16), nn.GELU())

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(self.layers(image).split((8, 8), dim=1))


def free_graph() -> ExportedGraph:
    inputs, outputs = tensors_of((3, 16, 16), (8, 4, 4), free=True)["encoder"]
    heads = tuple(spec.name for spec in outputs)
    example = {"image": torch.rand(2, 3, 16, 24)}
    return export_module("encoder", Halved().eval(), example, heads, (*inputs, *outputs))


def test_a_module_is_exported_with_free_height_and_width() -> None:
    graph = free_graph()
    model = onnx.load_from_string(graph.content)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    small = ["N", 8, "h", "w"]
    assert axes == {"image": ["N", 3, "H", "W"], "mean": small, "log_var": small}
    cases = [
        {"image": np.random.default_rng(0).random((8, 3, *size), np.float32)}
        for size in ((8, 8), (12, 20), (64, 40))
    ]
    differences = verify_graphs({"encoder": graph}, {"encoder": cases}, 1e-4)
    assert set(differences) == {"encoder.mean", "encoder.log_var"}
    assert measure_rows({"encoder": graph.content}, {"encoder": cases}).rows == 0


def test_free_and_fixed_sizes_are_not_mistaken_for_each_other() -> None:
    graph = free_graph()
    fixed = ExportedGraph("encoder", graph.module, graph.inputs, graph.outputs, graph.content)
    with pytest.raises(ExportError, match="image: wanted only the first axis dynamic"):
        check_structure(fixed)
    content = graph_of(helper.make_node("Flatten", ["image"], ["mean"]), outputs=("N", "D"))
    with pytest.raises(ExportError, match="mean: wanted the first axis, height and width dynamic"):
        check_structure(
            ExportedGraph("encoder", graph.module, ("image",), ("mean",), content, free=True)
        )


@pytest.mark.parametrize("opset", [12, 13, 17, 18, 23, 24])
def test_adopted_graphs_may_have_opset_13_to_23(opset: int) -> None:
    content = graph_of(helper.make_node("Relu", ["image"], ["mean"]), opset=opset)
    graph = ExportedGraph("encoder", nn.ReLU(), ("image",), ("mean",), content, free=True)
    if 13 <= opset <= 23:
        check_structure(graph, opsets=ADOPTED_OPSETS)
    else:
        with pytest.raises(ExportError, match=r"opsets .* wanted {'': 13 to 23}"):
            check_structure(graph, opsets=ADOPTED_OPSETS)
    if opset != 18:
        with pytest.raises(ExportError, match=r"wanted {'': 18}"):
            check_structure(graph)


def test_operators_of_others_models_are_worth_a_try() -> None:
    """Those that diffusers' autoencoders and DCGAN-like decoders are exported with."""
    assert {"InstanceNormalization", "Resize", "Softmax", "ConvTranspose", "ArgMin"} <= (
        ALLOWED_OPERATORS
    )
    assert not {"Elu", "Selu", "Mish", "Softplus", "RandomNormal", "Dropout"} & ALLOWED_OPERATORS


def test_memory_grows_with_the_channels_at_full_resolution(tmp_path) -> None:
    measured = []
    for width in (8, 32):
        bundle = open_bundle(write_spatial(tmp_path / f"m{width}", Spatial(width=width, depth=2)))
        measured.append(bytes_per_pixel(bundle.graphs, bundle.manifest))
    # At least the input and the output of one convolution, in float32.
    assert measured[0] >= 2 * 4 * 8
    assert measured[1] >= 2 * 4 * 32
    assert measured[1] > 1.5 * measured[0]
    assert measured[1] < 20 * 4 * 32


def test_memory_of_a_graph_that_cannot_be_computed_is_not_known(tmp_path) -> None:
    bundle = open_bundle(write_spatial(tmp_path / "m"))
    graphs = dict(bundle.graphs) | {"decoder": b"no graph"}
    assert bytes_per_pixel(graphs, bundle.manifest) == 0.0
