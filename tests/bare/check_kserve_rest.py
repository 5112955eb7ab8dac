"""The whole round of kserve's InferenceRESTClient, in an environment of its own.

    python check_kserve_rest.py ROUND.json IN.npz OUT.npz

The files are those of check_tritonclient.py. Neither pytest nor this project is there.
"""

import asyncio
import json
import sys
from pathlib import Path

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype

ROUND = json.loads(Path(sys.argv[1]).read_text())
HEADERS = {"authorization": f"Bearer {ROUND['token']}"} if ROUND["token"] else {}
SERVER = ROUND["gateway"]


def tensor(name, array, *, binary):
    """An input, with its elements as bytes or in JSON."""
    given = InferInput(name, list(array.shape), from_np_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=binary)
    return given


async def refused(answer, status):
    """Checks that a call fails with a status."""
    try:
        await answer
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == status, error
        return error.response.json()["detail"]
    raise AssertionError(f"no error, wanted {status}")


async def main():
    """Asks everything of every model."""
    given, found = np.load(sys.argv[2]), {}
    config = RESTConfig(protocol="v2", retries=0, verify=ROUND["ca"] or False)
    client = InferenceRESTClient(config)
    assert await client.is_server_live(SERVER)
    assert await client.is_server_ready(SERVER)
    if ROUND["token"]:
        assert not await client.is_model_ready(SERVER, "one.encode")
        await refused(client.infer(SERVER, {"inputs": []}, model_name="one.encode"), 401)

    async def infer(model, operation, inputs, outputs=(), *, binary=True, **parameters):
        request = InferRequest(
            model_name=f"{model}.{operation}",
            infer_inputs=[tensor(name, array, binary=binary) for name, array in inputs.items()],
            request_id="round",
            parameters={**parameters, "binary_data_output": binary},
            request_outputs=[RequestedOutput(name) for name in outputs],
        )
        response = await client.infer(
            SERVER, request, headers=dict(HEADERS), model_name=f"{model}.{operation}"
        )
        assert (response.id, response.model_name) == ("round", f"{model}.{operation}")
        assert not outputs or [output.name for output in response.outputs] == list(outputs)
        return {output.name: output.as_numpy() for output in response.outputs}

    for model, has in ROUND["models"].items():
        for operation in has["operations"]:
            name = f"{model}.{operation}"
            assert await client.is_model_ready(SERVER, name, headers=dict(HEADERS))
        image, label = given[f"{model}.image"], {}
        if has["conditional"]:
            label = {"label": given[f"{model}.label"]}
        pictures = {"image": image, **label}
        answers = {"encode": await infer(model, "encode", pictures)}
        z = answers["encode"]["mean"]
        if image.nbytes < 2**16:
            listed = await infer(model, "encode", pictures, binary=False)
            for name, array in listed.items():
                np.testing.assert_array_equal(array, answers["encode"][name])
        answers["decode"] = await infer(model, "decode", {"z": z, **label}, format="uint8")
        answers["reconstruct"] = await infer(model, "reconstruct", pictures)
        if "sample" in has["operations"]:
            numbers = {"count": np.array([5]), "seed": np.array([7], np.uint64)}
            answers["sample"] = await infer(
                model, "sample", numbers, ("z", "image"), temperature=0.5
            )
        if "score" in has["operations"]:
            answers["score"] = await infer(
                model, "score", pictures, ("elbo", "nll"), draws=3, seed=7
            )
        for operation, arrays in answers.items():
            found |= {f"{model}.{operation}.{name}": array for name, array in arrays.items()}
        message = await refused(infer(model, "decode", {"z": image}), 400)
        assert "inputs.z.shape: got" in message, message
    # Where the server answers 404, it says so.
    assert not await client.is_model_ready(SERVER, "nope.decode", headers=dict(HEADERS))
    np.savez(sys.argv[3], **found)


asyncio.run(main())
