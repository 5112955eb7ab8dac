"""latentserve: variational autoencoders behind gRPC.

The client library, which needs only grpcio, protobuf and numpy::

    from latentserve.client import Client

    with Client("localhost:50051") as client:
        digits = client.sample(100, seed=7)

This module imports nothing: the server and the trainer use the generated stubs in this
package, and should not have to load the client.
"""

__version__ = "0.2.0"
