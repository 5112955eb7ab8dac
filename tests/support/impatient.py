"""`latentserve serve` whose supervisor kills workers after one second in place of ten."""

import sys

from service.workers import control

# Set before the supervisor imports it.
control.EXIT_SECONDS = 1.0  # type: ignore[misc]

if __name__ == "__main__":
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
