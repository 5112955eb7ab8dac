"""Tensors inside a graph that are called as its outputs are."""

import numpy as np
import torch
from torch import Tensor, nn

from export.graphs import export_module
from export.verify import ALLOWED_OPERATORS, check_structure
from service.models.onnx import Device, Graph


class _Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_var = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        centred = image - image.mean(1, keepdim=True)
        return centred, centred * self.log_var


def test_outputs_keep_their_names() -> None:
    module = _Centred().eval()
    graph = export_module("encoder", module, {"image": torch.rand(2, 3)}, ("mean", "log_var"))
    check_structure(graph, ALLOWED_OPERATORS | {"ReduceMean"})
    image = np.random.default_rng(0).random((4, 3), np.float32)
    answers = Graph(graph.content, Device("cpu")).run({"image": image})
    with torch.inference_mode():
        wanted = module(torch.from_numpy(image))
    for name, tensor in zip(("mean", "log_var"), wanted, strict=True):
        np.testing.assert_allclose(answers[name], tensor, atol=1e-6)
