# SPDX-License-Identifier: Apache-2.0
"""An over-read from inside: what a bug gives away that goes on reading behind a block of the
heap."""

from __future__ import annotations

from ... import audit
from ..job import OVER_READ
from ..scratch import wipe
from .way import Subject, Untried, Way

__all__ = ["OverRead"]


class OverRead(Way):
    """From blocks of several sizes on, up to the first address that is not mapped."""

    name, title = "over-read", "over-read from inside"
    whole = False

    def reports(self, subject: Subject) -> list[audit.Report]:
        if subject.target is None:
            raise Untried("nobody can ask this process to read beyond a block")
        path = subject.directory / "over-read"
        try:
            subject.target.do(OVER_READ, str(path))
            return [audit.scan_file(path, subject.wanted.native, max_hits=0, wide=True)]
        finally:
            wipe(path)
