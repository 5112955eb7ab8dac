"""Graphs have no unused initializers, of which onnxruntime would warn at every load."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from bundle import open_bundle
from export.graphs import ExportedGraph
from export.variants import convert_decoder
from tests.support import ROOT
from tests.support.untrained import KINDS

# Opens sessions as any program would, with the default log level, which includes warnings.
LOAD = """
import sys
import onnxruntime

for path in sys.argv[1:]:
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
"""


@pytest.fixture(scope="module")
def graphs(kinds: Path) -> dict[str, bytes]:
    """Graphs by a file name: of the shipped models and all kinds, decoders in every precision."""
    found = {
        f"shipped-{path.parent.name}.{graph}": content
        for path in (ROOT / "models").glob("*/*")
        for graph, content in open_bundle(path).graphs.items()
    }
    assert found
    for name, kind in KINDS.items():
        bundle = open_bundle(kinds / "models" / name / "1")
        contents, output = bundle.graphs, bundle.manifest.likelihood_output
        found |= {f"{name}.{graph}": content for graph, content in contents.items()}
        z = np.random.default_rng(1).standard_normal((64, kind.model.latent_dim), np.float32)
        inputs = {"z": z}
        if kind.model.conditional:
            inputs |= {"label": np.arange(64) % kind.classes}
        decoder = ExportedGraph(
            "decoder", nn.Identity(), tuple(inputs), ("image", output), contents["decoder"]
        )
        found |= {
            f"{name}.decoder-{precision}": convert_decoder(decoder, precision, inputs).content
            for precision in ("fp16", "int8")
        }
    return found


def used_by(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors that a node, an output or a subgraph reads."""
    used = {output.name for output in graph.output}
    for node in graph.node:
        used |= set(node.input)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                used |= used_by(inner)
    return used


def test_each_initializer_is_used(graphs: dict[str, bytes]) -> None:
    for name, content in graphs.items():
        graph = onnx.load_from_string(content).graph
        initializers = {initializer.name for initializer in graph.initializer}
        assert initializers, name
        assert initializers - used_by(graph) == set(), name


def test_onnxruntime_loads_the_graphs_without_a_warning(
    graphs: dict[str, bytes], tmp_path: Path
) -> None:
    paths = []
    for name, content in graphs.items():
        paths.append(tmp_path / f"{name}.onnx")
        paths[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
