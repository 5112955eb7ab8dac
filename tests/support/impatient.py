"""`latentserve serve` whose supervisor waits for its workers for shorter than it would."""

import sys

from service import stop

# Before the supervisor imports it.
stop.EXIT_SECONDS = 1.0  # type: ignore[misc]

if __name__ == "__main__":
    from service.workers import process

    process._BEAT_SECONDS = 0.3
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
