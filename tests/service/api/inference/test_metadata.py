"""Descriptions of models and server, and that they agree with what ModelInfer takes and returns."""

import numpy as np
import pytest

from latentserve import __version__
from service.api.inference import inference_service_pb2 as pb
from service.engine.call import Call
from service.errors import InvalidArgument
from service.models.repository import Refused
from tests.support.inference import InProcess, infer_request

#: Operations of each model.
HAS = {
    "one": ["decode", "encode", "reconstruct", "sample", "score"],
    "classes": ["decode", "encode", "reconstruct", "sample", "score"],
    "plain": ["decode", "encode", "reconstruct", "sample"],
    "raw": ["decode", "encode", "reconstruct", "sample"],
    "half": ["decode"],
}
ROWS = [-1]
NUMPY = {"FP32": np.float32, "INT64": np.int64, "UINT64": np.uint64}


async def metadata(running: InProcess, name: str) -> pb.ModelMetadataResponse:
    request = pb.ModelMetadataRequest(name=name)
    return await running.servicer.model_metadata(request, Call())


async def config(running: InProcess, name: str) -> pb.ModelConfig:
    return (await running.servicer.model_config(pb.ModelConfigRequest(name=name), Call())).config


def shapes(tensors) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.shape) for tensor in tensors}


async def test_the_index_has_every_operation_of_every_version(running, loaded):
    reply = await running.servicer.repository_index(pb.RepositoryIndexRequest(), Call())
    listed = [(entry.name, entry.version) for entry in reply.models]
    assert sorted(listed) == sorted(
        (f"{name.split('/')[0]}.{operation}", name.split("/")[1])
        for name in loaded
        for operation in HAS[name.split("/")[0]]
    )
    assert [name for name, _ in listed] == sorted(name for name, _ in listed)
    assert {(entry.state, entry.reason) for entry in reply.models} == {("READY", "")}


async def test_the_index_lists_refused_models_unless_only_ready_ones_are_wanted(loaded):
    running = InProcess()
    refused = (Refused("bad", 3, "/secret/path"), Refused("worse", 0, "x"))
    running.serve(loaded["half/1"], refused=refused)
    reply = await running.servicer.repository_index(pb.RepositoryIndexRequest(), Call())
    got = [(entry.name, entry.version, entry.state) for entry in reply.models]
    assert got == [
        ("bad", "3", "UNAVAILABLE"), ("half.decode", "1", "READY"), ("worse", "", "UNAVAILABLE"),
    ]  # fmt: skip
    assert "log says why" in reply.models[0].reason
    ready = pb.RepositoryIndexRequest(ready=True)
    (only,) = (await running.servicer.repository_index(ready, Call())).models
    assert only.name == "half.decode"
    running.health.lame_duck()
    assert not (await running.servicer.repository_index(ready, Call())).models
    named = pb.RepositoryIndexRequest(repository_name="x")
    with pytest.raises(InvalidArgument, match=r"^repository_name: got 'x', wanted none"):
        await running.servicer.repository_index(named, Call())
    running.close()


async def test_the_server_names_itself_and_only_what_it_has(running):
    reply = await running.servicer.server_metadata(pb.ServerMetadataRequest(), Call())
    assert (reply.name, reply.version) == ("latentserve", __version__)
    assert list(reply.extensions) == ["model_configuration", "model_repository", "parameters"]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("one.encode", {"image": [-1, 1, 4, 4]},
         {"mean": [-1, 3], "log_var": [-1, 3], "z": [-1, 3]}),
        ("plain.encode", {"image": [-1, 1, 4, 4], "label": [-1]}, {"mean": [-1, 3]}),
        ("one.decode", {"z": [-1, 3]}, {"image": [-1, 1, 4, 4]}),
        ("half.decode", {"z": [-1, 2, -1, -1]}, {"image": [-1, 3, -1, -1]}),
        ("raw.reconstruct", {"image": [-1, 3, -1, -1]}, {"image": [-1, 3, -1, -1]}),
        ("one.sample", {"count": [1], "seed": [1], "offset": [1], "temperature": [1]},
         {"image": [-1, 1, 4, 4], "z": [-1, 3]}),
        ("classes.sample",
         {"count": [1], "seed": [1], "offset": [1], "temperature": [1], "label": [1]},
         {"image": [-1, 1, 4, 4], "z": [-1, 3], "label": [-1]}),
        ("one.score", {"image": [-1, 1, 4, 4]},
         dict.fromkeys(("reconstruction", "kl", "elbo", "nll"), ROWS)),
        ("classes.score", {"image": [-1, 1, 4, 4], "label": [-1]},
         dict.fromkeys(("reconstruction", "kl", "elbo", "nll", "percentile"), ROWS)),
    ],
)  # fmt: skip
async def test_a_model_states_the_shapes_of_its_inputs_and_outputs(running, name, inputs, outputs):
    reply = await metadata(running, name)
    assert (reply.name, reply.platform) == (name, "latentserve_onnx")
    assert list(reply.versions) == (["1", "2"] if name.startswith("one.") else ["1"])
    assert shapes(reply.inputs) == inputs
    assert shapes(reply.outputs) == outputs


@pytest.mark.parametrize(
    "name", [f"{name}.{operation}" for name, has in HAS.items() for operation in has]
)
async def test_a_request_made_from_the_metadata_is_answered_as_they_say(running, name):
    """As perf_analyzer does: every input, and every output by name."""
    described, stated = await metadata(running, name), await config(running, name)
    assert stated.backend == "latentserve"
    assert (stated.max_batch_size == 0) == name.endswith(".sample")
    for tensors, in_config in (
        (described.inputs, stated.input),
        (described.outputs, stated.output),
    ):
        assert [tensor.name for tensor in tensors] == [tensor.name for tensor in in_config]
        for tensor, also in zip(tensors, in_config, strict=True):
            rows = 1 if stated.max_batch_size else 0
            assert list(tensor.shape)[rows:] == list(also.dims)
            assert pb.DataType.Name(also.data_type).removeprefix("TYPE_") in tensor.datatype
    # Free sides take any multiple of 4: here 8 pixels, or 2 of a latent.
    inputs, rows = {}, 2
    for tensor in described.inputs:
        side = 2 if tensor.name == "z" else 8
        shape = [rows if not axis else side if length < 0 else length
                 for axis, length in enumerate(tensor.shape)]  # fmt: skip
        shape = shape if stated.max_batch_size else [1]
        value = rows if tensor.name == "count" else 1
        inputs[tensor.name] = np.full(shape, value, NUMPY[tensor.datatype])
    names = [tensor.name for tensor in described.outputs]
    reply = await running.infer(infer_request(name, inputs, names))
    assert [output.name for output in reply.outputs] == names
    for output, tensor in zip(reply.outputs, described.outputs, strict=True):
        assert output.datatype == tensor.datatype
        assert len(output.shape) == len(tensor.shape)
        assert output.shape[0] == rows
        for length, wanted in zip(output.shape[1:], tensor.shape[1:], strict=True):
            assert wanted in (-1, length)


async def test_only_inputs_that_may_be_absent_are_optional(running):
    stated = await config(running, "classes.sample")
    assert [tensor.name for tensor in stated.input if not tensor.optional] == ["count"]
    stated = await config(running, "classes.encode")
    assert not any(tensor.optional for tensor in stated.input)
    assert stated.WhichOneof("scheduling_choice") == "dynamic_batching"


async def test_readiness_and_liveness_are_those_of_health(running):
    servicer, health = running.servicer, running.health

    async def states() -> tuple[bool, bool, bool]:
        live = await servicer.server_live(pb.ServerLiveRequest(), Call())
        ready = await servicer.server_ready(pb.ServerReadyRequest(), Call())
        model = await servicer.model_ready(pb.ModelReadyRequest(name="one.encode"), Call())
        return live.live, ready.ready, model.ready

    assert await states() == (True, True, True)
    health.show(running.models, device_ok=False)
    assert await states() == (False, False, False)
    health.show(running.models, device_ok=True)
    health.lame_duck()
    assert await states() == (True, False, False)
