# SPDX-License-Identifier: Apache-2.0
"""Job: what the parent tells a child to load."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BATCH", "IN_PLACE", "PLAIN", "SEALED", "Job"]

#: The ways to hold the model's weights.
PLAIN, IN_PLACE, SEALED = "plain", "encrypted in place", "sealed directory"

#: Passages that the model takes at once.
BATCH = 32


@dataclass(frozen=True)
class Job:
    """What a child must load."""

    directory: str  # a sealed one for the way SEALED
    way: str
    threads: int  # of torch and of pyccmem
    most_tokens: int  # of a passage
