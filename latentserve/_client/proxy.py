"""HTTP proxies of the environment: which connections go through one, and which never should.

gRPC takes a proxy from `grpc_proxy`, `https_proxy` or `http_proxy` for every target, also for
`localhost`: wherever Docker injects a proxy into containers, a health check would leave the
container. Targets on the same machine need no proxy, and a proxy elsewhere cannot reach them.
"""

import ipaddress
import os
import re
from urllib.parse import urlsplit

# In gRPC's order of precedence; gRPC ignores these names in upper case.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_SCHEME = re.compile(
    r"(?:dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):(?://[^/]*/)?(?P<rest>.*)", re.S
)
_LOCAL_SCHEMES = ("unix:", "unix-abstract:", "vsock:")
_LOCAL_NAMES = frozenset(("localhost", "ip6-localhost", "ip6-loopback"))


def channel_arguments(target: str) -> list[tuple[str, object]]:
    """Returns gRPC's channel arguments, which disable proxies if `target` is reached directly."""
    return [] if proxy_of(target) else [("grpc.enable_http_proxy", 0)]


def note(target: str) -> str:
    """Returns the end of a connection error: the proxy on the way to `target`, or nothing."""
    found = proxy_of(target)
    if found is None:
        return ""
    variable, proxy = found
    return f"; {variable} leads through the proxy {proxy}, and no_proxy={_host(target)} around it"


def proxy_of(target: str) -> tuple[str, str] | None:
    """Returns the proxy that a target is reached through, if there is one.

    Returns:
        Name of the environment variable and host:port of the proxy, without the password that
        the variable may have; None for a direct connection.
    """
    variable = next((name for name in _PROXIES if name in os.environ), None)
    if variable is None or is_local(target):
        return None
    try:
        proxy = urlsplit(os.environ[variable])
        address = proxy.netloc.rpartition("@")[2]
    except ValueError:
        return None
    # gRPC supports no other scheme, and then connects directly.
    if proxy.scheme != "http" or not address:
        return None
    exceptions = next((os.environ[name] for name in _EXCEPTIONS if name in os.environ), "")
    host = _host(target)
    if any(_matches(host, entry.strip()) for entry in exceptions.split(",")):
        return None
    return variable, address


def is_local(target: str) -> bool:
    """Returns whether a target is on this machine: a loopback address or a Unix socket."""
    if target.startswith(_LOCAL_SCHEMES):
        return True
    addresses = _addresses(target)
    return all(_is_loopback(_without_port(address)) for address in addresses)


def _host(target: str) -> str:
    return _without_port(_addresses(target)[0])


def _addresses(target: str) -> list[str]:
    """Splits a target, without its scheme, into addresses; `ipv4:` and `ipv6:` have several."""
    parts = _SCHEME.fullmatch(target)
    return (parts["rest"] if parts else target).split(",")


def _without_port(address: str) -> str:
    """Returns the host of an address, which may end in a port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, port = address.rpartition(":")
    # More than one colon without brackets: an IPv6 address without a port.
    return host if colon and ":" not in host and port.isdecimal() else address


def _is_loopback(host: str) -> bool:
    name = host.rstrip(".").lower()
    if name in _LOCAL_NAMES or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    # Connecting to the unspecified address reaches the machine itself.
    return bool(mapped.is_loopback or mapped.is_unspecified)


def _matches(host: str, entry: str) -> bool:
    """Returns whether an entry of `no_proxy` covers a host: `*`, a suffix, an IP or a network."""
    if not entry:
        return False
    if entry == "*" or host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
