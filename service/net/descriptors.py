"""File descriptors: the process's limit, and a reserve that connections may not use."""

import resource
from contextlib import suppress

# Left for the HTTP port, the log, and reloading models, certificates and tokens.
_RESERVE = 64


def raise_limit() -> None:
    """Raises the soft limit of open files to the hard one, as far as the system allows.

    The soft limit is 1024 on most systems, for programs that use `select`.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_reserved(descriptor: int) -> bool:
    """Whether a new descriptor is in the reserve, so that its connection has to be refused.

    The system assigns the lowest free number, so a high number means that all below are in use.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and descriptor >= soft - min(_RESERVE, soft // 4)
