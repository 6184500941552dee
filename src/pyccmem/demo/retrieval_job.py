# SPDX-License-Identifier: Apache-2.0
"""What the parent tells a process of `pyccmem demo --search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .worker import Job

__all__ = ["Embed", "Find", "Open", "RetrievalJob", "Search"]


@dataclass(frozen=True)
class RetrievalJob:
    """What a child must load, and where its store will lie."""

    model: Job
    store: str

    @property
    def threads(self) -> int:
        return self.model.threads


@dataclass(frozen=True)
class Embed:
    """Passages of token ids become vectors."""

    passages: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Open:
    """The store is loaded."""


@dataclass(frozen=True)
class Find:
    """The `k` passages nearest to each query of token ids are found."""

    queries: Sequence[Sequence[int]]
    k: int


@dataclass(frozen=True)
class Search:
    """The search of the last Find is repeated."""

    seconds: float
    k: int
