# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo_torch`: the same as `pyccmem demo-torch`."""

from __future__ import annotations

import sys

from ..demo.command import main
from . import add_arguments, run

if __name__ == "__main__":
    sys.exit(main("demo-torch", add_arguments, run))
