"""Hosts and ports as text."""

import ipaddress


def host_and_port(host: str, port: int | str) -> str:
    """Formats an address for clients, with brackets around IPv6: `[::1]:50051`."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is that of the loopback interface."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
