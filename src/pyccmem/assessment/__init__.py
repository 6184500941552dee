# SPDX-License-Identifier: Apache-2.0
"""What protects a process: a table of lines, each good, weak, bad or unknown, and levels of them
that a program can insist on. `posture()` looks; the lines are found by

machine    what holds for the whole system, below a root that tests lay out
guarding   what pyccmem.guard() takes care of, from inside and from outside
library    pyccmem itself: kernels, keys, integrity, plaintext
models     models and caches of PyTorch and transformers, if the program has them
"""

from .gate import posture
from .levels import LEVELS
from .line import STATES, Line
from .report import Posture
from .table import NAMES

__all__ = ["LEVELS", "NAMES", "STATES", "Line", "Posture", "posture"]
