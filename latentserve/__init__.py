"""latentserve: variational autoencoders behind gRPC.

The library that other services install. It needs grpcio, protobuf and numpy::

    from latentserve.client import Client

    with Client("localhost:50051") as client:
        digits = client.sample(100, seed=7)

This module imports nothing, so that the server and the trainer, which share the
generated stubs beneath it, do not pay for a client.
"""

__version__ = "0.2.0"
