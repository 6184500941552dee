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

#: What the protected server never shows but while it computes, and then only what it computes with.
_NEVER = frozenset({"weights", "keys", "kv", "unrotated", "hidden"})

#: Of how many units (matrices, layers) a request that is under way has samples in the clear. A
#: product opens tiles of one matrix. A layer's products give K and V of its new tokens in the
#: clear; K is rotated, then both are sealed and overwritten before the layer attends, and none is
#: kept for the next layer: so they are of one layer, of a whole prompt at most. Hidden states are
#: what a layer is given, which transformers holds until it has returned, and what it returns.
_IN_USE = {"weights": 1, "kv": 1, "unrotated": 1, "hidden": 2}

#: Requests that are under way when the series of looks is taken.
_UNDER_WAY = 1


class Rules:
    """Those of the demo server: a request that is under way has its text, its tokens and what is
    computed of them in the clear."""

    def certain(self, moment: str, wanted: dict[str, int]) -> frozenset[str]:
        """Returns the kinds of which the twin must show every sample."""
        return _CERTAIN.get(moment, frozenset())

    def least(self, of: int) -> int:
        """Returns how many of `of` samples of a certain kind the twin must show: all."""
        return of

    def allowed(self, kind: str, moment: str, of: int) -> int:
        """Returns how many of `of` samples of the other process may be found."""
        if moment == SERIES and kind in _IN_USE:
            return of
        if moment in (SERIES, DURING):
            return 0 if kind in _NEVER else of
        return 0

    def units(self, kind: str, moment: str) -> int | None:
        """Returns of how many units, which are layers or matrices, they may be; None: of any."""
        if moment == SERIES and kind in _IN_USE:
            return _IN_USE[kind] * _UNDER_WAY
        return None


class OwnRules(Rules):
    """Those of a process of one's own: the twin holds all, and nothing may be found. `real`: the
    twin is a process of one's own, too, which may keep things in another form: an eighth of each
    kind must be found of it."""

    def __init__(self, *, real: bool = False) -> None:
        self._real = real

    def least(self, of: int) -> int:
        """Returns all, or an eighth."""
        return max(1, of // 8) if self._real else of

    def certain(self, moment: str, wanted: dict[str, int]) -> frozenset[str]:
        """Returns all kinds."""
        return frozenset(wanted) - {MARKER}

    def allowed(self, kind: str, moment: str, of: int) -> int:
        """Returns 0."""
        return 0

    def units(self, kind: str, moment: str) -> int | None:
        """Returns None."""
        return None
