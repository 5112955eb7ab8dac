"""The whole round of tritonclient.grpc or tritonclient.grpc.aio, in an environment of its own.

    python check_tritonclient.py ROUND.json IN.npz OUT.npz

The first file says which server and models, the second has the inputs, and the outputs go to the
third, by model, operation and name. Neither pytest nor this project is there.
"""

import asyncio
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as asynchronous
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ROUND = json.loads(Path(sys.argv[1]).read_text())
MODULE = asynchronous if ROUND["flavour"] == "aio" else blocking
HEADERS = {"authorization": f"Bearer {ROUND['token']}"} if ROUND["token"] else None


async def done(answer):
    """The answer of either flavour."""
    return await answer if inspect.isawaitable(answer) else answer


def tensor(name, array):
    """An input."""
    given = MODULE.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array)
    return given


async def refused(answer, status):
    """Checks that a call fails with a status."""
    try:
        await done(answer())
    except InferenceServerException as error:
        assert status in str(error.status()), error
        return error.message()
    raise AssertionError(f"no error, wanted {status}")


async def main():
    """Asks everything of every model."""
    given, found = np.load(sys.argv[2]), {}
    more = {"ssl": True, "root_certificates": ROUND["ca"]} if ROUND["ca"] else {}
    client = MODULE.InferenceServerClient(ROUND["target"], **more)
    assert await done(client.is_server_live())
    assert await done(client.is_server_ready())
    server = await done(client.get_server_metadata(headers=HEADERS))
    assert server.name == "latentserve"
    if ROUND["token"]:
        await refused(client.get_server_metadata, "UNAUTHENTICATED")
        await refused(lambda: client.is_model_ready("x.encode"), "UNAUTHENTICATED")
    index = await done(client.get_model_repository_index(headers=HEADERS))
    listed = {model.name for model in index.models}

    async def infer(model, operation, inputs, outputs=None, **parameters):
        wanted = outputs and [MODULE.InferRequestedOutput(name) for name in outputs]
        result = await done(
            client.infer(
                f"{model}.{operation}",
                [tensor(name, array) for name, array in inputs.items()],
                outputs=wanted,
                request_id="round",
                timeout=50_000_000,
                headers=HEADERS,
                parameters=parameters,
            )
        )
        reply = result.get_response()
        assert (reply.id, reply.model_name) == ("round", f"{model}.{operation}")
        names = [output.name for output in reply.outputs]
        assert outputs is None or names == outputs
        return {name: result.as_numpy(name) for name in names}

    for model, has in ROUND["models"].items():
        for operation in has["operations"]:
            name = f"{model}.{operation}"
            assert name in listed, listed
            assert await done(client.is_model_ready(name, headers=HEADERS))
            described = await done(client.get_model_metadata(name, headers=HEADERS))
            stated = await done(client.get_model_config(name, headers=HEADERS))
            assert [one.name for one in described.inputs] == [
                one.name for one in stated.config.input
            ]
        image, label = given[f"{model}.image"], {}
        if has["conditional"]:
            label = {"label": given[f"{model}.label"]}
        answers = {"encode": await infer(model, "encode", {"image": image, **label})}
        z = answers["encode"]["mean"]
        answers["decode"] = await infer(model, "decode", {"z": z, **label}, format="uint8")
        answers["reconstruct"] = await infer(model, "reconstruct", {"image": image, **label})
        if "sample" in has["operations"]:
            numbers = {"count": np.array([5]), "seed": np.array([7], np.uint64)}
            answers["sample"] = await infer(
                model, "sample", numbers, ["z", "image"], temperature=0.5
            )
        if "score" in has["operations"]:
            answers["score"] = await infer(
                model, "score", {"image": image, **label}, ["elbo", "nll"], draws=3, seed=7
            )
        for operation, arrays in answers.items():
            found |= {f"{model}.{operation}.{name}": array for name, array in arrays.items()}
        half = await infer(model, "encode", {"image": image.astype(np.float16), **label})
        np.testing.assert_allclose(half["mean"], z, atol=0.05)
        half = await infer(model, "decode", {"z": z, **label}, format="float16")
        assert half["image"].dtype == np.float16
        message = await refused(lambda m=model, i=image: infer(m, "decode", {"z": i}), "INVALID")
        assert "inputs.z.shape: got" in message, message
    await refused(lambda: infer("nope", "decode", {"z": z}), "NOT_FOUND")
    await done(client.close())
    np.savez(sys.argv[3], **found)


asyncio.run(main())
