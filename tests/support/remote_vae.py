"""Servers whose gateway stands in for the remote VAE of diffusers."""

from tests.support.processes import Server


def gateway_of(server: Server) -> str:
    """http://host:port of the gateway of a server started with `--gateway-port 0`; read once."""
    assert server.process.stdout is not None
    for line in server.process.stdout:
        if "gateway on" in line:
            return line.split()[-1]
    raise AssertionError(f"no gateway: {server.log.read_text()}")
