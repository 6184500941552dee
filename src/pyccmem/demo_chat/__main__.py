# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.demo_chat`: the same as `pyccmem demo-chat`."""

from __future__ import annotations

import argparse
import sys

from .. import errors
from ..console.command import EXIT_ERROR, carry_out, complain
from . import add_arguments, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="pyccmem demo-chat")
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except errors.PyccmemError as error:
        complain(str(error))
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(carry_out(main))
