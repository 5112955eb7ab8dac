"""Keeps Ray Serve's gRPC ports on this machine: it listens on all addresses and has no setting.

Python imports this by its name in every process of Ray, since its folder is in PYTHONPATH.
"""

from typing import Any

from grpc.aio import Server

_add = Server.add_insecure_port


def _add_here(self: Server, address: str) -> int:
    return _add(self, address.replace("[::]", "127.0.0.1"))


patched: Any = Server
patched.add_insecure_port = _add_here
