# SPDX-License-Identifier: Apache-2.0
"""Looks for samples in all the memory of a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import errors
from ..binding.arguments import integer
from .processes import PAGE, WAYS, Mapping, ProcessMemory, Range, subtract
from .report import Place, Report, Unreadable
from .samples import Samples
from .search import Found, Search
from .tally import Tally, check_samples

__all__ = ["Progress", "scan"]

#: A function that is called now and then with the bytes read so far and the total.
Progress = Callable[[int, int], None]

#: After this many unreadable pages in a row the rest of a mapping counts as unreadable too: devices
#: map more than can be tried page by page.
_GIVE_UP_PAGES = 4096

_REFUSED = (
    "the kernel refuses to read it (secret memory, a device, the kernel's own page, or beyond the "
    "end of a file)"
)
_UNSEEN = (
    "shared memory that this process has not used; only CAP_CHECKPOINT_RESTORE tells whether "
    "another one has"
)


@dataclass(frozen=True)
class _Part:
    """A piece of one mapping that is to be read."""

    start: int
    end: int
    mapping: Mapping


def scan(
    pid: int,
    samples: Samples,
    progress: Progress | None = None,
    *,
    max_hits: int = 1000,
    way: str = "mem",
    wide: bool = False,
    files: bool = True,
) -> Report:
    """Looks for the samples in all memory of process `pid`, at every offset.

    The process goes on running: data that it moves during the scan may be seen twice or not at all
    (stop it with SIGSTOP for an exact result). A second pass reads memory that came into use during
    the scan. Private and shared memory that was never used is not read, because that would make the
    kernel allocate it; mapped files are read in full.

    `progress(done, total)` is called with bytes; both may grow. At most `max_hits` places are
    described in Report.hits; all are counted. `way` is how memory is read: "mem", through
    /proc/PID/mem, or "readv", by process_vm_readv(2). `wide` finds samples also where they are
    written as wider numbers: int32 as int64, text as UTF-16 or in 32 bits a character, bfloat16 as
    float32. Without `files`, pages of private mappings of files that hold what the file holds are
    left out.

    Raises NoProcessError (also when the process ends meanwhile), NoPermissionError,
    ProcessAccessError, OutOfMemoryError, ArgumentError, ArgumentTypeError.
    """
    pid, max_hits = integer("pid", pid), integer("max_hits", max_hits)
    if not 0 < pid < 2**31:
        raise errors.ArgumentError(f"pid is {pid}; the number of a process is from 1 to 2^31 - 1.")
    if way not in WAYS:
        raise errors.ArgumentError(f"way is {way!r}; it must be one of {', '.join(WAYS)}.")
    check_samples(samples)
    if max_hits < 0:
        raise errors.ArgumentError(f"max_hits is {max_hits}; it must be at least 0.")
    with ProcessMemory(pid, way) as memory, Search(samples, wide=wide) as search:
        return _Scan(memory, search, samples, progress, max_hits, files).run()


class _Scan:
    def __init__(
        self,
        memory: ProcessMemory,
        search: Search,
        samples: Samples,
        progress: Progress | None,
        max_hits: int,
        files: bool,
    ) -> None:
        self.memory, self.search, self.samples = memory, search, samples
        self.progress, self.files = progress, files
        self.report = Report(
            pid=memory.pid,
            command=memory.command(),
            weights=samples.path,
            samples=len(samples),
            without_samples=samples.without_samples(),
        )
        self.tally = Tally(self.report, samples, max_hits)
        self.seen: list[Range] = []  # ranges that were read, or found to be unreadable
        self.unseen: dict[Range, Unreadable] = {}
        self.done = self.total = 0

    def run(self) -> Report:
        began = time.perf_counter()
        report = self.report
        own: list[Range] = []
        if self.memory.is_this_process():
            # The scratch memory has what was read last, so each hit would be found in it once more.
            scratch = self.search.scratch
            begin = scratch.address // PAGE * PAGE
            until = -(-(scratch.address + scratch.nbytes) // PAGE) * PAGE
            own = [(begin, until)]
            report.bytes_excluded = until - begin
        self.seen += own
        for _ in range(2):
            mappings = self.memory.mappings()
            self.drop_vanished(mappings)
            parts = self.plan(mappings)
            self.total += sum(part.end - part.start for part in parts)
            for part in parts:
                self.read(part)
        # This also notices a process that ended just after it had been read to its end.
        self.drop_vanished(self.memory.mappings())
        self.tell()
        report.unreadable += sorted(self.unseen.values(), key=lambda part: part.start)
        report.unreadable.sort(key=lambda part: part.start)
        self.tally.conclude()
        report.seconds = time.perf_counter() - began
        return report

    # ---- which addresses to read

    def plan(self, mappings: list[Mapping]) -> list[_Part]:
        """Returns what must still be read."""
        in_memory = self.memory.memory_devices(mappings)
        self.report.bytes_untouched = self.report.bytes_of_files = 0
        self.unseen = {}
        # [vsyscall] is the only mapping beyond 2^63, and is never read.
        self.starts = np.array([m.start for m in mappings if m.start < 2**63], dtype=np.int64)
        self.mappings = mappings
        self.in_file = {
            mapping.start: self.memory.maps_file(mapping, self.samples.file_id)
            for mapping in mappings
        }
        parts = []
        for mapping in mappings:
            whole = [(mapping.start, mapping.end)]
            ranges = whole
            if not self.files and mapping.inode and mapping.permissions.endswith("p"):
                written = self.memory.resident(mapping, written=True)
                if written is not None:
                    self.report.bytes_of_files += mapping.end - mapping.start
                    ranges = written
            elif mapping.anonymous or mapping.device in in_memory:
                resident = self.memory.resident(mapping)
                if resident is not None:
                    ranges = resident
                    if not mapping.anonymous:
                        ranges = self.shared(mapping, resident)
                unused = sum(end - start for start, end in subtract(whole, ranges))
                self.report.bytes_untouched += unused
            parts += [_Part(start, end, mapping) for start, end in subtract(ranges, self.seen)]
        return parts

    def shared(self, mapping: Mapping, resident: list[Range]) -> list[Range]:
        """Returns what to read of a file that lies in memory, in which other processes may have put
        data."""
        whole = [(mapping.start, mapping.end)]
        absent = subtract(whole, resident)
        if not absent:
            return whole
        data = self.memory.file_data(mapping)
        if data is not None:
            return subtract(whole, subtract(absent, data))
        for start, end in subtract(absent, self.seen):
            self.unseen[start, end] = Unreadable(start, end, label(mapping), _UNSEEN)
        return resident

    def drop_vanished(self, mappings: list[Mapping]) -> None:
        """Removes from the unreadable ranges what the process has unmapped."""
        there = [(mapping.start, mapping.end) for mapping in mappings]
        kept = []
        for part in self.report.unreadable:
            gone = subtract([(part.start, part.end)], there)
            self.report.bytes_vanished += sum(end - start for start, end in gone)
            kept += [
                Unreadable(start, end, part.mapping, part.reason)
                for start, end in subtract([(part.start, part.end)], gone)
            ]
        self.report.unreadable = kept

    # ---- reading

    def read(self, part: _Part) -> None:
        at, failed = part.start, 0
        while at < part.end:
            wanted = min(self.search.room, part.end - at)
            got = self.memory.read(self.search.scratch, self.search.at, at, wanted)
            if got:
                for found in self.search(at, got):
                    self.note(found)
                self.report.bytes_scanned += got
                failed = 0
            else:
                failed += 1
                got = min(PAGE, part.end - at) if failed < _GIVE_UP_PAGES else part.end - at
                self.refuse(part.mapping, at, at + got)
            at += got
            self.done += got
            self.tell()
        self.seen.append((part.start, part.end))

    def refuse(self, mapping: Mapping, start: int, end: int) -> None:
        name, unreadable = label(mapping), self.report.unreadable
        if unreadable and unreadable[-1].end == start and unreadable[-1].mapping == name:
            start = unreadable.pop().start
        unreadable.append(Unreadable(start, end, name, _REFUSED))

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total)

    def note(self, found: Found) -> None:
        # The first bytes may belong to the mapping before this one. There are few mappings and many
        # hits.
        order = np.searchsorted(self.starts, found.addresses, side="right") - 1
        for index in np.unique(order):
            chosen, mapping = order == index, self.mappings[int(index)]
            place = Place(mapping.start, mapping.end, label(mapping), self.in_file[mapping.start])
            self.tally.note(place, Found(found.addresses[chosen], found.samples[chosen]))


def label(mapping: Mapping) -> str:
    """Returns a name for any mapping, also for one without a name."""
    return mapping.name or "[anonymous]"
