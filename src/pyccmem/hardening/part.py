# SPDX-License-Identifier: Apache-2.0
"""What is said of one thing that guard() takes care of."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Part"]


@dataclass(frozen=True)
class Part:
    """One thing that guard() takes care of, and whether it holds now."""

    name: str
    active: bool
    detail: str  #: what was found
    remedy: str  #: how to have it, or more of it; "" when nothing is left to do
