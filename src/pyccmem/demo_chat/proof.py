# SPDX-License-Identifier: Apache-2.0
"""Looks for rows of keys and values in the memory of a child, from the parent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .. import audit
from .worker import ChatWorker

__all__ = ["Count", "Finding", "Samples", "look", "samples"]

#: Places that one search describes: more than there are.
_MOST_HITS = 10_000_000
#: A row of a mapping's addresses in /proc/PID/smaps.
_ADDRESSES = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


@dataclass(frozen=True)
class Count:
    """Samples of one kind of rows: how many there are, and how many of them were found."""

    samples: int
    found: int

    @property
    def all(self) -> bool:
        """True when every one was found, and there are any."""
        return 0 < self.samples == self.found


@dataclass(frozen=True)
class Finding:
    """What one search found, while `cached` tokens were in the cache.

    `prompt` and `answers` are samples of rows of these tokens, of the first question and of what
    followed; found anywhere but in memory that pyccmem has open. `opened`: all that were found in
    that memory. `in_work`: of rows of later tokens, found anywhere. `before`: of the keys of the
    first question before their rotation, which the cache does not hold.
    """

    moment: str
    cached: int
    prompt: Count
    answers: Count
    opened: Count
    in_work: Count
    before: Count
    bytes_scanned: int
    unreadable_bytes: int

    @property
    def found_out(self) -> bool:
        """True when all of the cache lies there in the clear, as it must in the plain process."""
        return self.prompt.all and (self.answers.all or not self.answers.samples)

    @property
    def clean(self) -> bool:
        """True when nothing that the cache holds was found outside of what is open."""
        return self.prompt.found == self.answers.found == 0


class Samples:
    """What to look for: 16 bytes of each row, where a search would know them again."""

    def __init__(self, native: audit.Samples, prompt: int) -> None:
        self.native = native
        #: Tokens of the first question.
        self.prompt = prompt
        self.rows = native.per_tensor(native.usable())

    def count(self, kinds: str, first: int, last: int, found: set[tuple[str, int]]) -> Count:
        """The samples of rows of these kinds, of tokens from `first` to before `last`, and those
        found of them, as (row, offset)."""

        def is_of(row: str) -> bool:
            kind, _, _, token = row.split(".")
            return kind in kinds.split() and first <= int(token) < last

        return Count(
            sum(number for row, number in self.rows.items() if is_of(row)),
            sum(is_of(row) for row, _ in found),
        )


def samples(rows: Mapping[str, bytes], prompt: int) -> Samples:
    """Makes a sample of each row, of a conversation whose first question has `prompt` tokens."""
    return Samples(audit.samples_from_parts(rows, "rows"), prompt)


def look(worker: ChatWorker, wanted: Samples, moment: str, cached: int) -> Finding:
    """Searches all memory of a child, which must be halted or at rest."""
    report = audit.scan(worker.pid, wanted.native, max_hits=_MOST_HITS)
    pool = list(_pool(worker.pid))
    inside: set[tuple[str, int]] = set()
    outside: set[tuple[str, int]] = set()
    for hit in report.hits:
        is_open = any(start <= hit.address < stop for start, stop in pool)
        (inside if is_open else outside).add((hit.tensor, hit.offset))
    last = 1 << 62
    done = min(cached, wanted.prompt)
    return Finding(
        moment=moment,
        cached=cached,
        prompt=wanted.count("k v", 0, done, outside),
        answers=wanted.count("k v", wanted.prompt, cached, outside),
        opened=wanted.count("k v", 0, last, inside),
        in_work=wanted.count("k v", cached, last, outside | inside),
        before=wanted.count("before", 0, done, outside | inside),
        bytes_scanned=report.bytes_scanned,
        unreadable_bytes=sum(part.nbytes for part in report.unreadable),
    )


def _pool(pid: int) -> Iterator[tuple[int, int]]:
    """The mappings in which pyccmem keeps what it has open: those that are left out of dumps and
    that a forked child finds zeros in (dd and wf, see proc(5)). torch's and Python's memory is
    neither."""
    addresses = (0, 0)
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _ADDRESSES.match(line)
            if found:
                addresses = (int(found[1], 16), int(found[2], 16))
            elif line.startswith("VmFlags:") and {"dd", "wf"} <= set(line.split()[1:]):
                yield addresses
