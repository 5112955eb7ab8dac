"""Raw gRPC stubs and messages, for tests of the wire format."""

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
    """Opens a stub that has neither the client's retries nor its limits."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        yield latent_service_pb2_grpc.LatentServiceStub(channel)


def images(array: Any) -> tensor_pb2.Images:
    """An array as `Images` with a tensor."""
    return tensor_pb2.Images(tensor=codec.to_tensor(array))


def files(*contents: bytes, resize: bool = False) -> tensor_pb2.Images:
    """PNG or JPEG files as encoded `Images`."""
    return tensor_pb2.Images(encoded=tensor_pb2.EncodedImages(files=contents, resize=resize))


def tensor(array: Any) -> tensor_pb2.Tensor:
    """An array as a FLOAT32 tensor message."""
    return codec.to_tensor(np.asarray(array, np.float32))


def array(message: tensor_pb2.Tensor) -> Any:
    """A tensor message as an array."""
    return codec.to_array(message)


def details(error: grpc.RpcError, kind: Any) -> Any:
    """Returns the google.rpc detail of a type from an error."""
    trailers: Any = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")
