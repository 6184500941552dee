# SPDX-License-Identifier: Apache-2.0
"""Prints which parts of guard() hold in the process that runs it: `python -m
pyccmem.hardening.show [--json]`."""

from __future__ import annotations

import dataclasses
import json
import sys

from ..console.command import carry_out
from .guarding import table
from .parts import parts


def main(words: list[str]) -> int:
    """Prints the table, or JSON."""
    found = parts()
    if words == ["--json"]:
        print(json.dumps({"parts": [dataclasses.asdict(part) for part in found]}, indent=2))
    else:
        print("\n".join(table(found)))
    return 0


if __name__ == "__main__":
    sys.exit(carry_out(lambda: main(sys.argv[1:])))
