"""`latentserve serve` in a process that may open few files, whatever its workers then do."""

import resource
import sys

MOST = 160

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST // 2, MOST))
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
