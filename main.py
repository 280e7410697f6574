"""The seed's entry point: the paper's agents at once on one model. See ``aios.cli.seed``."""

import sys

from aios.cli.seed import main

if __name__ == "__main__":
    sys.exit(main())
