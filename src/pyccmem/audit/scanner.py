# SPDX-License-Identifier: Apache-2.0
"""Looks for samples in all the memory of a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import errors
from ..binding import Call, check, ffi, lib
from ..binding.arguments import integer
from .processes import PAGE, Mapping, ProcessMemory, Range, subtract
from .report import Hit, Place, Report, Unreadable
from .samples import SAMPLE_BYTES, Samples
from .scratch import Scratch

__all__ = ["Progress", "scan"]

#: A function that is called now and then with the bytes read so far and the total.
Progress = Callable[[int, int], None]

_CHUNK = 4 << 20  # bytes read at once
_MARGIN = 64  # bytes before a chunk, for the end of the chunk before it
_CARRY = SAMPLE_BYTES - 1
_SCAN = Call("the scan")

_HITS = 1 << 12  # hits taken from the native scan at once

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

_HIT_TYPE = np.dtype([("offset", np.uint64), ("sample", np.uint32), ("", np.uint32)])
assert _HIT_TYPE.itemsize == ffi.sizeof("ccmem_scan_hit")


@dataclass(frozen=True)
class _Part:
    """A piece of one mapping that is to be read."""

    start: int
    end: int
    mapping: Mapping


def scan(
    pid: int, samples: Samples, progress: Progress | None = None, *, max_hits: int = 1000
) -> Report:
    """Looks for the samples in all memory of process `pid`, at every offset.

    The process goes on running: data that it moves during the scan may be seen twice or not at all
    (stop it with SIGSTOP for an exact result). A second pass reads memory that came into use during
    the scan. Private and shared memory that was never used is not read, because that would make the
    kernel allocate it; mapped files are read in full.

    `progress(done, total)` is called with bytes; both may grow. At most `max_hits` places are
    described in Report.hits; all are counted.

    Raises NoProcessError (also when the process ends meanwhile), NoPermissionError,
    ProcessAccessError, OutOfMemoryError, ArgumentError, ArgumentTypeError.
    """
    pid, max_hits = integer("pid", pid), integer("max_hits", max_hits)
    if not 0 < pid < 2**31:
        raise errors.ArgumentError(f"pid is {pid}; the number of a process is from 1 to 2^31 - 1.")
    if not isinstance(samples, Samples):
        raise errors.ArgumentTypeError(
            f"samples must come from samples_from_safetensors(), not be {type(samples).__name__}."
        )
    if max_hits < 0:
        raise errors.ArgumentError(f"max_hits is {max_hits}; it must be at least 0.")
    with ProcessMemory(pid) as memory, Scratch(_MARGIN + _CHUNK) as scratch:
        return _Scan(memory, scratch, samples, progress, max_hits).run()


class _Scan:
    def __init__(
        self,
        memory: ProcessMemory,
        scratch: Scratch,
        samples: Samples,
        progress: Progress | None,
        max_hits: int,
    ) -> None:
        self.memory, self.scratch, self.samples = memory, scratch, samples
        self.progress, self.max_hits = progress, max_hits
        usable = samples.usable()
        self.found = np.zeros(len(usable), dtype=np.bool_)
        self.found_in_file = self.found.copy()
        self.report = Report(
            pid=memory.pid,
            command=memory.command(),
            weights=samples.path,
            samples=int(np.count_nonzero(usable)),
            without_samples=samples.without_samples(),
        )
        self.seen: list[Range] = []  # ranges that were read, or found to be unreadable
        self.unseen: dict[Range, Unreadable] = {}
        self.places: dict[tuple[int, str], Place] = {}
        self.carried = 0  # bytes of the scratch memory before _MARGIN that precede self.address
        self.address = 0
        self.done = self.total = 0
        self.hits = ffi.new("ccmem_scan_hit[]", _HITS)
        self.count = ffi.new("uint32_t *")
        self.next = ffi.new("uint64_t *")

    def run(self) -> Report:
        began = time.perf_counter()
        report = self.report
        own: list[Range] = []
        if self.memory.is_this_process():
            # The scratch memory has what was read last, so each hit would be found in it once more.
            begin = self.scratch.address // PAGE * PAGE
            until = -(-(self.scratch.address + self.scratch.nbytes) // PAGE) * PAGE
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
        report.found = int(np.count_nonzero(self.found))
        report.found_in_file = int(np.count_nonzero(self.found_in_file))
        report.tensors = self.samples.per_tensor(self.found)
        report.places = [self.places[at] for at in sorted(self.places)]
        report.unreadable += sorted(self.unseen.values(), key=lambda part: part.start)
        report.unreadable.sort(key=lambda part: part.start)
        report.seconds = time.perf_counter() - began
        return report

    # ---- which addresses to read

    def plan(self, mappings: list[Mapping]) -> list[_Part]:
        """Returns what must still be read."""
        in_memory = self.memory.memory_devices(mappings)
        self.report.bytes_untouched = 0
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
            if mapping.anonymous or mapping.device in in_memory:
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
            if at != self.address:
                self.carried = 0
            wanted = min(_CHUNK, part.end - at)
            got = self.memory.read(self.scratch, _MARGIN, at, wanted)
            if got:
                self.search(part.mapping, at, got)
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

    def search(self, mapping: Mapping, address: int, got: int) -> None:
        """Searches the bytes at _MARGIN, and the last bytes of the memory right before them."""
        begin, length = _MARGIN - self.carried, self.carried + got
        base = address - self.carried
        at = 0
        while at < length:
            status = lib.ccmem_scan(
                self.samples.native,
                self.scratch.native + begin,
                length,
                at,
                self.hits,
                _HITS,
                self.count,
                self.next,
            )
            check(status, _SCAN)
            if self.count[0]:
                self.note(base, int(self.count[0]))
            at = int(self.next[0])
        self.report.bytes_scanned += got
        self.address = address + got
        self.carried = min(_CARRY, length)
        self.scratch.move(_MARGIN - self.carried, begin + length - self.carried, self.carried)

    def note(self, base: int, count: int) -> None:
        raw = np.frombuffer(ffi.buffer(self.hits), dtype=_HIT_TYPE, count=count)
        addresses = raw["offset"].astype(np.int64) + base
        # The first bytes may belong to the mapping before this one. There are few mappings and many
        # hits.
        order = np.searchsorted(self.starts, addresses, side="right") - 1
        for index in np.unique(order):
            chosen = order == index
            self.note_in(self.mappings[int(index)], addresses[chosen], raw["sample"][chosen])

    def note_in(
        self,
        mapping: Mapping,
        addresses: np.ndarray[tuple[int], np.dtype[np.int64]],
        numbers: np.ndarray[tuple[int], np.dtype[np.uint32]],
    ) -> None:
        report, in_file = self.report, self.in_file[mapping.start]
        (self.found_in_file if in_file else self.found)[numbers] = True
        if in_file:
            report.occurrences_in_file += len(numbers)
        else:
            report.occurrences += len(numbers)
        place = self.places.setdefault(
            (mapping.start, label(mapping)),
            Place(mapping.start, mapping.end, label(mapping), in_file, 0, int(addresses.min())),
        )
        place.end = mapping.end
        place.occurrences += len(numbers)
        place.first = min(place.first, int(addresses.min()))
        room = self.max_hits - len(report.hits)
        for address, number in zip(addresses[:room], numbers[:room], strict=True):
            tensor, offset = self.samples.origin(int(number))
            report.hits.append(Hit(int(address), place.mapping, tensor, offset, in_file))


def label(mapping: Mapping) -> str:
    """Returns a name for any mapping, also for one without a name."""
    return mapping.name or "[anonymous]"
