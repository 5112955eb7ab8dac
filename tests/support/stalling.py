"""`latentserve serve` whose gateway gives up bodies that do not go on sooner than it would."""

import sys

from service.gateway import receiving

receiving._STALLED_SECONDS = 0.5  # type: ignore[misc]

if __name__ == "__main__":
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
