"""Binds Ray Serve's gRPC ports to 127.0.0.1 instead of all addresses; Ray has no setting for it.

Python imports a module of this name at start-up, and Ray's processes have this folder in their
PYTHONPATH.
"""

from typing import Any

from grpc.aio import Server

_add = Server.add_insecure_port


def _add_here(self: Server, address: str) -> int:
    return _add(self, address.replace("[::]", "127.0.0.1"))


patched: Any = Server
patched.add_insecure_port = _add_here
