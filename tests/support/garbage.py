"""`latentserve serve` that prints, on SIGUSR1, the objects in unreachable reference cycles."""

import gc
import signal
import sys
from collections import Counter


def report(*_: object) -> None:
    """Prints the type and number of all objects that only the garbage collector would free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = Counter(type(garbage).__name__ for garbage in gc.garbage)
    gc.garbage.clear()
    gc.collect()
    print(sorted(found.items()), flush=True)


if __name__ == "__main__":
    from service.cli import main

    signal.signal(signal.SIGUSR1, report)
    sys.exit(main(sys.argv[1:]))
