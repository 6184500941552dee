# SPDX-License-Identifier: Apache-2.0
"""What a process leaves behind, and who may look: freed memory overwritten; no dump, no debugger,
no swap. `guard()` takes the measures, `parts()` looks which of them hold now."""

from .guarding import Guard, guard
from .parts import Part, parts

__all__ = ["Guard", "Part", "guard", "parts"]
