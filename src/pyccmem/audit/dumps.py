# SPDX-License-Identifier: Apache-2.0
"""Looks for samples in files that memory was written to: core dumps, swap files."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .. import errors
from ..binding.owned import Descriptor
from .report import Place, Report
from .samples import Samples
from .scanner import Progress
from .search import Search
from .tally import Tally, check_samples

__all__ = ["scan_file"]

_PT_LOAD = 1


@dataclass(frozen=True)
class _Segment:
    """A part of the file, and the address that its first byte had."""

    offset: int
    nbytes: int
    address: int
    name: str


def scan_file(
    path: str | os.PathLike[str],
    samples: Samples,
    progress: Progress | None = None,
    *,
    max_hits: int = 1000,
    wide: bool = False,
) -> Report:
    """Looks for the samples in all of a file, at every offset. Of a core dump (ELF, 64 bits) hits
    have the addresses that they had in the process; of another file, their offsets. Report.pid is
    0, Report.command the path. `progress`, `max_hits`, `wide` are as in scan().

    Raises FileReadError, OutOfMemoryError, ArgumentTypeError.
    """
    check_samples(samples)
    name = os.fsdecode(path)
    report = Report(
        pid=0,
        command=name,
        weights=samples.path,
        samples=len(samples),
        without_samples=samples.without_samples(),
    )
    began = time.perf_counter()
    tally = Tally(report, samples, max_hits)
    try:
        with (
            Descriptor.open(name, os.O_RDONLY) as descriptor,
            Search(samples, wide=wide) as search,
        ):
            size = os.fstat(descriptor).st_size
            segments = list(_segments(descriptor, size)) or [_Segment(0, size, 0, name)]
            total = sum(segment.nbytes for segment in segments)
            for segment in segments:
                _search(descriptor, segment, search, tally, report)
                if progress is not None:
                    progress(report.bytes_scanned, total)
    except OSError as error:
        raise errors.FileReadError(
            f"The file {name!r} cannot be read: {error.strerror}."
        ).of_system(error.errno, name) from None
    tally.conclude()
    report.seconds = time.perf_counter() - began
    return report


def _search(
    descriptor: int, segment: _Segment, search: Search, tally: Tally, report: Report
) -> None:
    done = 0
    while done < segment.nbytes:
        wanted = min(search.room, segment.nbytes - done)
        got = search.scratch.read(descriptor, segment.offset + done, search.at, wanted)
        if got == 0:  # a dump that was cut off
            return
        for found in search(segment.address + done, got):
            end = segment.address + segment.nbytes
            tally.note(Place(segment.address, end, segment.name, in_file=False), found)
        done += got
        report.bytes_scanned += got


def _segments(descriptor: int, size: int) -> Iterator[_Segment]:
    """The memory in a core dump; nothing for another file. elf(5)."""
    head = os.pread(descriptor, 64, 0)
    if (
        len(head) < 64
        or head[:6] != b"\x7fELF\x02\x01"
        or struct.unpack_from("<H", head, 16) != (4,)
    ):
        return
    (start,) = struct.unpack_from("<Q", head, 32)
    width, count = struct.unpack_from("<HH", head, 54)
    if count == 0xFFFF:  # too many for the field: the first section header has the number
        (sections,) = struct.unpack_from("<Q", head, 40)
        (count,) = struct.unpack("<I", os.pread(descriptor, 4, sections + 44))
    table = os.pread(descriptor, width * count, start)
    for at in range(0, len(table) - 55, width):
        kind, _, offset, address, _, nbytes, _, _ = struct.unpack_from("<IIQQQQQQ", table, at)
        if kind == _PT_LOAD and offset < size and nbytes:
            yield _Segment(offset, min(nbytes, size - offset), address, f"segment {address:#x}")
