# SPDX-License-Identifier: Apache-2.0
"""Options of commands that are whole numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["whole"]


def whole(what: str, least: int, most: int) -> Callable[[str], int]:
    """Returns the type of an option that is a whole number from `least` to `most`; `what` says
    in its errors what the number is, such as "a count". For argparse, which reports
    ArgumentTypeError as wrong usage."""

    def parse(text: str) -> int:
        # A text that is longer than any number allowed may be too long for int(), too.
        digits = text.isascii() and text.isdigit() and len(text) <= len(str(most))
        if not digits or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {what}; use a whole number from {least} to {most}"
            )
        return int(text)

    return parse
