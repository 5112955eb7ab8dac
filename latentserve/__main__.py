"""Entry point of `python -m latentserve`."""

import sys

from latentserve.cli import main

sys.exit(main())
