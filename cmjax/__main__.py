"""`python -m cmjax` is the command `cmjax`."""

import sys

from cmjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
