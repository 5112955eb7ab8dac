"""Raw stubs and messages, for tests that look at the wire."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.rpc import status_pb2

from latentserve._client import codec
from latentserve.v1 import latent_service_pb2_grpc, tensor_pb2


@contextmanager
def stub_of(target: str) -> Iterator[Any]:
    """A stub without the client's retries and limits."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        yield latent_service_pb2_grpc.LatentServiceStub(channel)


def images(array: Any) -> tensor_pb2.Images:
    """Images as a tensor."""
    return tensor_pb2.Images(tensor=codec.to_tensor(array))


def files(*contents: bytes, resize: bool = False) -> tensor_pb2.Images:
    """Images as files."""
    return tensor_pb2.Images(encoded=tensor_pb2.EncodedImages(files=contents, resize=resize))


def tensor(array: Any) -> tensor_pb2.Tensor:
    """An array on the wire."""
    return codec.to_tensor(np.asarray(array, np.float32))


def array(message: tensor_pb2.Tensor) -> Any:
    """An array off the wire."""
    return codec.to_array(message)


def details(error: grpc.RpcError, kind: Any) -> Any:
    """One of the google.rpc details of an error."""
    trailers: Any = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")
