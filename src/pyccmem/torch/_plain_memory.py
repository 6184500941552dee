# SPDX-License-Identifier: Apache-2.0
"""The memory of plain tensors that were encrypted: finds which of them overlap, overwrites them,
and gives the memory back to the system even if references to it remain."""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..binding import ffi, lib
from ..binding.owned import Descriptor

__all__ = ["Extent", "Mappings", "apart", "dense", "extent"]

_PAGE = mmap.PAGESIZE

#: Bytes that one system call overwrites, so few that an interrupt does not wait long.
_ZEROS_AT_ONCE = 1 << 28

#: Names of mapped files that no program opens by name to find data in them, such as shared memory
#: of torch and Python. Other files in /dev/shm may be a user's, copied there to load quickly.
_MEMORY_ONLY = (
    "/dev/shm/torch_",
    "/dev/shm/psm_",
    "/dev/zero",
    "/memfd:",
    "/SYSV",
    "/anon_hugepage",
)

#: Since Linux 5.14; Python's mmap module has no name for it.
_MADV_POPULATE_WRITE = 23

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Extent(NamedTuple):
    """From a tensor's first byte to the byte after its last, including gaps."""

    start: int
    stop: int


def extent(tensor: Tensor) -> Extent | None:
    """Returns where a plain tensor lies; None if it has no memory of this process."""
    try:
        if tensor.device.type != "cpu" or not tensor.numel():
            return None
        if tensor.layout is not torch.strided:
            return extent(tensor.values()) if not tensor.is_sparse else extent(tensor._values())
        reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        start = tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return None
    return Extent(start, start + (reach + 1) * tensor.itemsize) if start else None


def apart(extents: Iterable[Extent | None]) -> list[int]:
    """Returns a number for each extent, the same for extents that overlap, directly or through
    others."""
    found = list(extents)
    numbers = list(range(len(found)))
    order = sorted((e.start, e.stop, at) for at, e in enumerate(found) if e is not None)
    number = reach = -1
    for start, stop, at in order:
        if start >= reach:
            number = at
        numbers[at] = number
        reach = max(reach, stop)
    return numbers


class _Mapping(NamedTuple):
    stop: int
    writable: bool
    shared: bool
    name: str  # empty for anonymous memory


class Mappings:
    """The mappings of this process, as they were when this object was made."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._found: list[_Mapping] = []
        try:
            with open("/proc/self/maps", "rb") as lines:
                for line in lines:
                    fields = line.split(None, 5)
                    start, stop = (int(part, 16) for part in fields[0].split(b"-"))
                    named = len(fields) > 5 and not fields[5].startswith(b"[")
                    name = os.fsdecode(fields[5].rstrip(b"\n")) if named else ""
                    allowed = fields[1]
                    self._starts.append(start)
                    self._found.append(_Mapping(stop, b"w" in allowed, b"s" in allowed, name))
        except OSError:
            pass  # without /proc all memory counts as anonymous, and is not given back

    def overwrite(self, tensor: Tensor) -> None:
        """Overwrites a plain tensor's elements with zeros, and gives its whole pages back to the
        system if torch's own allocator made them. They then read as zeros, and take memory again
        only when they are written.

        Leaves memory that cannot be written as it is, and also the file behind a mapping: only what
        this process changed in its copy of the file is overwritten and given back.
        """
        place = extent(tensor)
        if place is None:
            return
        if not dense(tensor):
            if all(m.writable and not _is_file(m) for _, _, m in self._parts(place)):
                with torch.no_grad():
                    tensor.detach().zero_()
            return
        own = _is_torchs(tensor)
        for start, stop, kind in self._parts(place):
            if not kind.writable:
                continue
            if not _is_file(kind):
                if _zero(start, stop) and own and not kind.name and self._found:
                    _give_back(start, stop)
            elif not kind.shared:
                _forget_changes(start, stop)

    def _parts(self, place: Extent) -> Iterator[tuple[int, int, _Mapping]]:
        """Yields the pieces of a stretch of memory with the mapping in which each lies."""
        start = place.start
        for at in range(max(bisect_right(self._starts, start) - 1, 0), len(self._found)):
            found = self._found[at]
            if start >= place.stop or self._starts[at] > start:
                break
            if start < found.stop:
                stop = min(found.stop, place.stop)
                yield start, stop, found
                start = stop
        if start < place.stop:  # mapped after this object was made
            yield start, place.stop, _Mapping(place.stop, True, False, "")


def _is_file(kind: _Mapping) -> bool:
    name = kind.name
    if name.startswith("/dev/shm/") and name.endswith(" (deleted)"):
        return False
    return bool(name) and not name.startswith(_MEMORY_ONLY)


def _is_torchs(tensor: Tensor) -> bool:
    """Returns True for memory of torch's allocator that is not registered with a device: pages that
    a device has registered must not be replaced."""
    try:
        return tensor.untyped_storage().resizable() and not tensor.is_pinned()
    except RuntimeError:
        return False


def dense(tensor: Tensor) -> bool:
    """Returns True when the elements fill a run of memory without gaps, in any order."""
    expected = 1
    for stride, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n != 1:
            if stride != expected:
                return False
            expected *= n
    return True


def _zero(start: int, stop: int) -> bool:
    """Overwrites a stretch of memory with zeros. Lets the kernel write them: for read-only memory
    that fails, and this returns False, where a write by this process would end it."""
    try:
        source = Descriptor.open("/dev/zero", os.O_RDONLY)
    except OSError:  # a sandbox without this file, or no descriptor left
        return _zero_here(start, stop)
    try:
        with (
            memoryview(ffi.buffer(ffi.cast("uint8_t *", start), stop - start)) as memory,
            source as zero,
        ):
            at = 0
            while at < stop - start:
                with memory[at : at + _ZEROS_AT_ONCE] as part:
                    at += os.readv(zero, [part])
    except OSError:
        return False
    return True


def _zero_here(start: int, stop: int) -> bool:
    """Returns _zero()'s result without writes by the kernel, if the kernel says that the memory can
    be written; older kernels do not."""
    first, end = start // _PAGE * _PAGE, -(-stop // _PAGE) * _PAGE
    if _libc.madvise(first, end - first, _MADV_POPULATE_WRITE):
        return False
    lib.ccmem_wipe(ffi.cast("uint8_t *", start), stop - start)
    return True


def _give_back(start: int, stop: int) -> None:
    """Gives the whole pages inside a stretch of anonymous memory back to the system. A refusal
    (locked memory) only costs memory."""
    first, end = -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
    if first < end:
        _libc.madvise(first, end - first, mmap.MADV_DONTNEED)


def _forget_changes(start: int, stop: int) -> None:
    """Overwrites the pages of a file's private mapping that differ from the file, and drops all
    whole pages, which then show the file again. Zeros over every page would take memory for a copy
    of each."""
    first, end = start // _PAGE, -(-stop // _PAGE)
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            entries = np.frombuffer(os.pread(table.fileno(), 8 * (end - first), 8 * first), "<u8")
    except OSError:
        entries = np.empty(0, "<u8")
    if len(entries) < end - first:
        _zero(start, stop)
        return
    # Bit 63: in memory; 62: swapped out; 61: a page of the file or of shared memory.
    changed = (entries >> np.uint64(62) != 0) & (entries >> np.uint64(61) & np.uint64(1) == 0)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], changed, [False])).astype(np.int8)))
    for begin, after in edges.reshape(-1, 2).tolist():
        low, high = (first + begin) * _PAGE, (first + after) * _PAGE
        _zero(max(low, start), min(high, stop))
    _give_back(start, stop)
