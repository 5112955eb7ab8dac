"""The whole round of tritonclient.http or tritonclient.http.aio, in an environment of its own.

    python check_tritonclient_http.py ROUND.json IN.npz OUT.npz

The files are those of check_tritonclient.py. Neither pytest nor this project is there.
"""

import asyncio
import inspect
import json
import ssl
import sys
from pathlib import Path

import numpy as np
import tritonclient.http as blocking
import tritonclient.http.aio as asynchronous
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

ROUND = json.loads(Path(sys.argv[1]).read_text())
AIO = ROUND["flavour"] == "aio"
MODULE = asynchronous if AIO else blocking
HEADERS = {"authorization": f"Bearer {ROUND['token']}"} if ROUND["token"] else None


async def done(answer):
    """The answer of either flavour."""
    return await answer if inspect.isawaitable(answer) else answer


def tensor(name, array, *, binary):
    """An input, with its elements as bytes or in JSON."""
    given = MODULE.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=binary)
    return given


async def refused(answer, status):
    """Checks that a call fails with a status."""
    try:
        await done(answer())
    except InferenceServerException as error:
        assert status in str(error.status()), error
        return error.message()
    raise AssertionError(f"no error, wanted {status}")


def connect():
    """A client."""
    target = ROUND["gateway"].partition("://")[2]
    if not ROUND["ca"]:
        return MODULE.InferenceServerClient(target)
    if AIO:
        context = ssl.create_default_context(cafile=ROUND["ca"])
        return MODULE.InferenceServerClient(target, ssl=True, ssl_context=context)
    return MODULE.InferenceServerClient(target, ssl=True, ssl_options={"ca_certs": ROUND["ca"]})


async def main():
    """Asks everything of every model."""
    given, found = np.load(sys.argv[2]), {}
    client = connect()
    assert await done(client.is_server_live())
    assert await done(client.is_server_ready())
    server = await done(client.get_server_metadata(headers=HEADERS))
    assert server["name"] == "latentserve"
    if ROUND["token"]:
        message = await refused(client.get_server_metadata, "401")
        assert "no token" in message, message
    index = await done(client.get_model_repository_index(headers=HEADERS))
    listed = {model["name"] for model in index}

    async def infer(model, operation, inputs, outputs=None, *, binary=True, **parameters):
        wanted = outputs and [
            MODULE.InferRequestedOutput(name, binary_data=binary) for name in outputs
        ]
        result = await done(
            client.infer(
                f"{model}.{operation}",
                [tensor(name, array, binary=binary) for name, array in inputs.items()],
                outputs=wanted,
                request_id="round",
                timeout=50_000_000,
                # A copy: the client adds the length of this request's JSON.
                headers=dict(HEADERS or {}),
                parameters=parameters,
            )
        )
        reply = result.get_response()
        assert (reply["id"], reply["model_name"]) == ("round", f"{model}.{operation}")
        names = [output["name"] for output in reply["outputs"]]
        assert outputs is None or names == outputs
        return {name: result.as_numpy(name) for name in names}

    for model, has in ROUND["models"].items():
        for operation in has["operations"]:
            name = f"{model}.{operation}"
            assert name in listed, listed
            assert await done(client.is_model_ready(name, headers=HEADERS))
            described = await done(client.get_model_metadata(name, headers=HEADERS))
            stated = await done(client.get_model_config(name, headers=HEADERS))
            assert [one["name"] for one in described["inputs"]] == [
                one["name"] for one in stated["input"]
            ]
        image, label = given[f"{model}.image"], {}
        if has["conditional"]:
            label = {"label": given[f"{model}.label"]}
        pictures = {"image": image, **label}
        answers = {"encode": await infer(model, "encode", pictures)}
        z = answers["encode"]["mean"]
        if image.nbytes < 2**16:
            listed_too = await infer(model, "encode", pictures, ["mean", "log_var"], binary=False)
            np.testing.assert_array_equal(listed_too["mean"], z)
        answers["decode"] = await infer(model, "decode", {"z": z, **label}, format="uint8")
        answers["reconstruct"] = await infer(model, "reconstruct", pictures)
        if "sample" in has["operations"]:
            numbers = {"count": np.array([5]), "seed": np.array([7], np.uint64)}
            answers["sample"] = await infer(
                model, "sample", numbers, ["z", "image"], temperature=0.5
            )
        if "score" in has["operations"]:
            answers["score"] = await infer(
                model, "score", pictures, ["elbo", "nll"], draws=3, seed=7
            )
        for operation, arrays in answers.items():
            found |= {f"{model}.{operation}.{name}": array for name, array in arrays.items()}
        half = await infer(model, "encode", {"image": image.astype(np.float16), **label})
        np.testing.assert_allclose(half["mean"], z, atol=0.05)
        message = await refused(lambda m=model, i=image: infer(m, "decode", {"z": i}), "400")
        assert "inputs.z.shape: got" in message, message
    await refused(lambda: infer("nope", "decode", {"z": z}), "404")
    await done(client.close())
    np.savez(sys.argv[3], **found)


asyncio.run(main())
