"""`latentserve serve` whose supervisor gives its workers one second to exit, and not ten."""

import sys

from service.workers import control

# Before the supervisor imports it.
control.EXIT_SECONDS = 1.0  # type: ignore[misc]

if __name__ == "__main__":
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
