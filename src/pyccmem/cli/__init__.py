# SPDX-License-Identifier: Apache-2.0
"""The command `pyccmem`: what this machine offers, whether it works, how fast it is; keys and
sealed files; a demo on a real model; a search for weights in the memory of a process.

Exit status: 0 success; 1 a self-test or a benchmark's check of its results failed, the demo did not
show what it should, a sealed file was changed, or the audit found something; 2 wrong usage, or any
other error of pyccmem; 130 interrupted.
"""

from .entry import main

__all__ = ["main"]
