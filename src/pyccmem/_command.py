# SPDX-License-Identifier: Apache-2.0
"""How the command `pyccmem` ends when the package itself cannot start."""

from __future__ import annotations

import os
import sys

__all__ = ["EXIT_ERROR", "end_with"]

#: Exit status for wrong usage and for every exception of pyccmem.errors but SelfTestError.
EXIT_ERROR = 2


def _is_the_command() -> bool:
    """True in `pyccmem ...` and `python -m pyccmem ...`, also before the command's code runs."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == "pyccmem":
        return True
    # While runpy imports the package of `-m pyccmem`, argv[0] is still "-m".
    options = sys.orig_argv[1 : -len(sys.argv) + 1 or None]
    return sys.argv[:1] == ["-m"] and options[-1:] in (["pyccmem"], ["-mpyccmem"])


def end_with(error: Exception) -> None:
    """Ends the process with one line on standard error if it is the command `pyccmem`.

    Its code lies in the package, so a wrong PYCCMEM_TIER fails before any of it can catch that.
    """
    if _is_the_command():
        print(f"pyccmem: {error}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None
