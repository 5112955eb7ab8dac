"""The whole round of kserve's InferenceGRPCClient, in an environment of its own.

    python check_kserve.py ROUND.json IN.npz OUT.npz

The files are those of check_tritonclient.py. Neither pytest nor this project is there.
"""

import asyncio
import json
import sys
from pathlib import Path

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput
from kserve.utils.numpy_codec import from_np_dtype

ROUND = json.loads(Path(sys.argv[1]).read_text())
HEADERS = (("authorization", f"Bearer {ROUND['token']}"),) if ROUND["token"] else None


def tensor(name, array, *, typed):
    """An input, with raw or typed contents."""
    given = InferInput(name, list(array.shape), from_np_dtype(array.dtype))
    given.set_data_from_numpy(array, binary_data=not typed)
    return given


async def refused(answer, status):
    """Checks that a call fails with a status."""
    try:
        await answer
    except grpc.RpcError as error:
        assert error.code().name == status, error
        return error.details()
    raise AssertionError(f"no error, wanted {status}")


async def main():
    """Asks everything of every model."""
    given, found = np.load(sys.argv[2]), {}
    more = {"use_ssl": True, "root_certificates": ROUND["ca"]} if ROUND["ca"] else {}
    async with InferenceGRPCClient(ROUND["target"], **more) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        if ROUND["token"]:
            await refused(client.is_model_ready("x.encode"), "UNAUTHENTICATED")

        async def infer(model, operation, inputs, outputs=(), *, typed=False, **parameters):
            request = InferRequest(
                model_name=f"{model}.{operation}",
                infer_inputs=[tensor(name, array, typed=typed) for name, array in inputs.items()],
                request_id="round",
                parameters=parameters,
                request_outputs=[RequestedOutput(name) for name in outputs],
            )
            response = await client.infer(request, headers=HEADERS)
            assert (response.id, response.model_name) == ("round", f"{model}.{operation}")
            assert not outputs or [output.name for output in response.outputs] == list(outputs)
            return {output.name: output.as_numpy() for output in response.outputs}

        for model, has in ROUND["models"].items():
            for operation in has["operations"]:
                assert await client.is_model_ready(f"{model}.{operation}", headers=HEADERS)
            image, label = given[f"{model}.image"], {}
            if has["conditional"]:
                label = {"label": given[f"{model}.label"]}
            pictures = {"image": image, **label}
            answers = {"encode": await infer(model, "encode", pictures)}
            z = answers["encode"]["mean"]
            typed = await infer(model, "encode", pictures, typed=True)
            for name, array in typed.items():
                np.testing.assert_array_equal(array, answers["encode"][name])
            answers["decode"] = await infer(model, "decode", {"z": z, **label}, format="uint8")
            typed = await infer(model, "decode", {"z": z, **label}, typed=True, format="uint8")
            np.testing.assert_array_equal(typed["image"], answers["decode"]["image"])
            answers["reconstruct"] = await infer(model, "reconstruct", pictures)
            if "sample" in has["operations"]:
                numbers = {"count": np.array([5]), "seed": np.array([7], np.uint64)}
                # Its parameters have no field for fractions.
                answers["sample"] = await infer(
                    model, "sample", numbers, ("z", "image"), temperature="0.5"
                )
            if "score" in has["operations"]:
                answers["score"] = await infer(
                    model, "score", pictures, ("elbo", "nll"), draws=3, seed=7
                )
            for operation, arrays in answers.items():
                found |= {f"{model}.{operation}.{name}": array for name, array in arrays.items()}
            half = await infer(model, "decode", {"z": z, **label}, format="float16")
            assert half["image"].dtype == np.float16
            message = await refused(infer(model, "decode", {"z": image}), "INVALID_ARGUMENT")
            assert "inputs.z.shape: got" in message, message
        await refused(client.is_model_ready("nope.decode", headers=HEADERS), "NOT_FOUND")
    np.savez(sys.argv[3], **found)


asyncio.run(main())
