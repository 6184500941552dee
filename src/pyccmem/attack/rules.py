# SPDX-License-Identifier: Apache-2.0
"""What must be found of the unprotected twin, and what may be found of the other process."""

from __future__ import annotations

from .trial import AFTER, BEFORE, DURING, SERIES
from .wanted import MARKER

__all__ = ["OwnRules", "Rules"]

#: What lies in the twin's memory for certain, by moment.
_ALWAYS = frozenset({"weights", "keys"})
_REQUEST = frozenset({"kv", "unrotated", "hidden", "prompt", "ids", "answer", "answer ids"})
_CERTAIN = {BEFORE: _ALWAYS, DURING: _ALWAYS | _REQUEST, AFTER: _ALWAYS}

#: What the protected server never shows, and what of that may be in use while it computes: tiles of
#: one product, blocks of one attention.
_NEVER = frozenset({"weights", "keys", "kv"})
_IN_USE = frozenset({"weights", "kv"})


class Rules:
    """Those of the demo server: a request that is under way has its text, its tokens and what is
    computed of them in the clear."""

    def certain(self, moment: str, wanted: dict[str, int]) -> frozenset[str]:
        """Returns the kinds of which the twin must show every sample."""
        return _CERTAIN.get(moment, frozenset())

    def allowed(self, kind: str, moment: str, of: int) -> int:
        """Returns how many of `of` samples of the other process may be found."""
        if moment == SERIES:
            return of // 10 if kind in _IN_USE else 0 if kind in _NEVER else of
        if moment == DURING:
            return 0 if kind in _NEVER else of
        return 0


class OwnRules(Rules):
    """Those of a process of one's own: the twin holds all, and nothing may be found."""

    def certain(self, moment: str, wanted: dict[str, int]) -> frozenset[str]:
        """Returns all kinds."""
        return frozenset(wanted) - {MARKER}

    def allowed(self, kind: str, moment: str, of: int) -> int:
        """Returns 0."""
        return 0
