"""`latentserve serve` that tells, on SIGUSR1, what is left for the garbage collector to find."""

import gc
import signal
import sys
from collections import Counter


def tell(*_: object) -> None:
    """Prints the types of all objects that nothing refers to but each other."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = Counter(type(each).__name__ for each in gc.garbage)
    gc.garbage.clear()
    gc.collect()
    print(sorted(found.items()), flush=True)


if __name__ == "__main__":
    from service.cli import main

    signal.signal(signal.SIGUSR1, tell)
    sys.exit(main(sys.argv[1:]))
