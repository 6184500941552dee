# SPDX-License-Identifier: Apache-2.0
"""`pyccmem selftest`: runs known-answer tests of every usable tier, and tests buffers of every
cipher."""

from __future__ import annotations

import argparse
import sys

from ... import errors
from ...console.command import EXIT_FAILED
from ...process import selftest
from ..output import show_json, show_named

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pyccmem selftest`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Tests, and prints the outcomes."""
    failure = None
    try:
        result = selftest()
    except errors.SelfTestError as error:
        failure = str(error)
        result = error.result
    if arguments.json:
        show_json({"passed": failure is None, **result})
    else:
        rows = [(f"tier {name}", outcome) for name, outcome in result["tiers"].items()]
        rows += [
            (f"{name}, tier {result['tier']}", outcome)
            for name, outcome in result["buffers"].items()
        ]
        show_named("pyccmem self-test", rows)
    if failure is not None:
        print(f"pyccmem: {failure}", file=sys.stderr)
        return EXIT_FAILED
    return 0
