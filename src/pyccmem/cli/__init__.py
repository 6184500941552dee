# SPDX-License-Identifier: Apache-2.0
"""The command `pyccmem`: shows what this machine offers, whether it works and how fast it is; makes
keys and sealed files; runs a demo on a real model; searches the memory of a process for weights.

Exit status: 0 success; 1 a self-test or a benchmark's check of its results failed, the demo did not
show what it should, a sealed file was changed, or the audit found something; 2 wrong usage, or any
other error of pyccmem; 130 interrupted.
"""

from .entry import main

__all__ = ["main"]
