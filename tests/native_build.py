# SPDX-License-Identifier: Apache-2.0
"""How the native module is compiled, for tests that compile some of it: the compiler and the flags,
as the proof of constant time (ct/run.py) finds them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"

_spec = importlib.util.spec_from_file_location("ct_run", ROOT / "tests" / "ct" / "run.py")
_run = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _run
_spec.loader.exec_module(_run)

compiler = _run.compiler
flags = _run.flags
