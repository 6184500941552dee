# SPDX-License-Identifier: Apache-2.0
"""A child that talks, seen from the parent."""

from __future__ import annotations

from typing import Any

from ..demo import worker
from .job import Rows, Step, Talk

__all__ = ["ChatWorker"]


class ChatWorker(worker.Worker):
    """Runs a Chat in a process of its own."""

    module = "pyccmem.demo_chat.child"

    def do(self, wish: str) -> Any:
        """Sends a request of child.py and returns its answer; not for TALK and REHEARSE."""
        self._channel.send(wish)
        return self._receive()

    def begin(self, wish: str) -> None:
        """Sends a request, whose answers heard() returns."""
        self._channel.send(wish)

    def heard(self, timeout: float | None = None) -> Step | Talk | Rows | None:
        """The next answer; None when there is none after so many seconds."""
        if timeout is not None and not self._channel.poll(timeout):
            return None
        answer: Step | Talk | Rows = self._receive()
        return answer
