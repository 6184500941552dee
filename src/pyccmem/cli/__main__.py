# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.cli` is the command `pyccmem`."""

import sys

from .entry import main

if __name__ == "__main__":
    sys.exit(main())
