# SPDX-License-Identifier: Apache-2.0
"""The memory of a process as Linux shows it under /proc: its mappings, which pages exist, reading
them.

proc_pid_maps(5), proc_pid_mem(5), proc_pid_pagemap(5), proc_pid_map_files(5).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import errors
from ..binding.closing import Closing
from ..binding.owned import Descriptor
from .scratch import Scratch

__all__ = ["WAYS", "Mapping", "ProcessMemory", "Range", "subtract"]

#: How memory is read: through /proc/PID/mem, or by process_vm_readv(2).
WAYS = ("mem", "readv")

#: Addresses from the first to the second; the second is excluded.
Range = tuple[int, int]

PAGE = os.sysconf("SC_PAGE_SIZE")

#: Bits of an entry of pagemap: 63 present, 62 swapped. Both are 0 for a page that does not exist.
_THERE = np.uint64(3 << 62)
#: Bit 61: the page is one of a file, or of shared memory.
_OF_FILE = np.uint64(1 << 61)
_PAGEMAP_PAGES = 1 << 16  # entries read at once

#: The kernel's names for memory that has a file of its own without a file system.
_MEMORY_NAMES = ("/dev/zero (deleted)", "/memfd:", "/SYSV", "/anon_hugepage")
_MEMORY_FILE_SYSTEMS = ("tmpfs", "hugetlbfs", "ramfs")


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    name: str  #: a path, "[heap]", "[stack]", ...; "" for anonymous memory
    device: int
    inode: int
    offset: int  #: of the mapping's first byte in the file, in bytes

    @property
    def anonymous(self) -> bool:
        """True for private memory without a file, whose untouched pages hold zeros."""
        return (
            self.inode == 0
            and self.permissions.endswith("p")
            and (self.name in ("", "[heap]") or self.name.startswith(("[anon", "[stack")))
        )


def subtract(ranges: list[Range], taken: list[Range]) -> list[Range]:
    """Returns the parts of the sorted `ranges` that are not in `taken`, which need not be
    sorted."""
    taken = sorted(taken)
    left: list[Range] = []
    first = 0
    for start, end in ranges:
        while first < len(taken) and taken[first][1] <= start:
            first += 1
        for begin, until in taken[first:]:
            if begin >= end:
                break
            if begin > start:
                left.append((start, begin))
            start = max(start, until)
        if start < end:
            left.append((start, end))
    return left


class ProcessMemory(Closing):
    """Reads the memory of process `pid` without stopping it.

    Opens all files through one descriptor of /proc/PID, so that another process that gets the same
    number later is never taken for this one.
    """

    def __init__(self, pid: int, way: str = "mem") -> None:
        self.pid = pid
        self._open: list[Descriptor] = []
        try:
            self._directory = self._descriptor(f"/proc/{pid}", os.O_DIRECTORY)
            self._memory = self._descriptor("mem") if way == "mem" else None
            self._pagemap = self._optional("pagemap")
            self.mappings()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the descriptors."""
        while self._open:
            self._open.pop().close()

    # ---- opening, and its errors

    def _descriptor(self, path: str, flags: int = 0) -> int:
        directory = None if path.startswith("/") else self._directory
        try:
            descriptor = Descriptor.open(path, os.O_RDONLY | flags, dir_fd=directory)
        except OSError as error:
            raise self._refused(error) from None
        self._open.append(descriptor)
        return descriptor.number

    def _optional(self, path: str) -> int | None:
        try:
            return self._descriptor(path)
        except errors.NoPermissionError:
            return None

    def _refused(self, error: OSError) -> errors.ProcessAccessError:
        answer: errors.ProcessAccessError
        if error.errno in (errno.EACCES, errno.EPERM) or self._hidden(error):
            answer = errors.NoPermissionError(
                f"The memory of process {self.pid} may not be read by this user. It takes the same "
                f"user as the process, which must not have forbidden it (PR_SET_DUMPABLE), and "
                f"kernel.yama.ptrace_scope 0 ({_ptrace_scope()}) or a process that this one has "
                f"started; or CAP_SYS_PTRACE, which root has."
            )
        elif not os.path.isdir("/proc/self"):
            answer = errors.ProcessAccessError(
                "There is no /proc here, through which the memory of processes is read; audit "
                "needs Linux."
            )
        elif error.errno in (errno.ENOENT, errno.ESRCH):
            answer = errors.NoProcessError(
                f"There is no process {self.pid}; give the number of a running process."
            )
        else:
            answer = errors.ProcessAccessError(
                f"The memory of process {self.pid} cannot be read: {error.strerror}."
            )
        return answer.of_system(error.errno)

    def _hidden(self, error: OSError) -> bool:
        """Returns True when the process exists but /proc hides it (mount option hidepid)."""
        try:
            if error.errno == errno.ENOENT:
                os.kill(self.pid, 0)
        except PermissionError:
            return True
        except OSError:
            return False
        return False

    def _ended(self) -> errors.NoProcessError:
        return errors.NoProcessError(
            f"Process {self.pid} ended, or became another program, while its memory was read, so "
            f"the scan has no result; scan a process that goes on running."
        ).of_system(errno.ESRCH)

    def _text(self, path: str) -> str:
        try:
            with (
                Descriptor.open(path, os.O_RDONLY, dir_fd=self._directory) as descriptor,
                open(
                    descriptor,
                    encoding="utf-8",
                    errors="backslashreplace",
                    newline="\n",
                    closefd=False,
                ) as file,
            ):
                return file.read()
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise self._ended() from None
            raise self._refused(error) from None

    def _lines(self, path: str) -> list[str]:
        # Not splitlines(), whose other ends of lines may be in a file's name; "\n" is escaped here.
        return [line for line in self._text(path).split("\n") if line]

    # ---- its mappings and pages

    def command(self) -> str:
        """Returns the short name of the process's program."""
        return self._text("comm").rstrip("\n")

    def is_this_process(self) -> bool:
        """Returns True for the process that asks, also if `pid` is one of its threads."""
        for line in self._lines("status"):
            if line.startswith("Tgid:"):
                return int(line.split()[1]) == os.getpid()
        return False

    def mappings(self) -> list[Mapping]:
        """Returns all mappings of the process by address. Raises NoProcessError if it has ended."""
        found = []
        for line in self._lines("maps"):
            place, permissions, offset, device, inode, *name = line.split(None, 5)
            start, _, end = place.partition("-")
            major, _, minor = device.partition(":")
            found.append(
                Mapping(
                    int(start, 16),
                    int(end, 16),
                    permissions,
                    name[0] if name else "",
                    os.makedev(int(major, 16), int(minor, 16)),
                    int(inode),
                    int(offset, 16),
                )
            )
        if not found:
            state = self._text("stat").rpartition(")")[2].split()[0]
            if state in "ZXx":
                raise self._ended()
            raise errors.ProcessAccessError(
                f"Process {self.pid} has no memory of its own: it is a thread of the kernel."
            )
        return found

    def memory_devices(self, mappings: list[Mapping]) -> set[int]:
        """Returns the devices of files that lie only in memory. Their unused pages must not be
        touched, because reading one through a mapping makes the kernel allocate it."""
        devices = {m.device for m in mappings if m.inode and m.name.startswith(_MEMORY_NAMES)}
        with contextlib.suppress(errors.ProcessAccessError):
            for line in self._lines("mountinfo"):
                words = line.split()
                if words[words.index("-") + 1] in _MEMORY_FILE_SYSTEMS:
                    major, _, minor = words[2].partition(":")
                    devices.add(os.makedev(int(major), int(minor)))
        return devices

    def maps_file(self, mapping: Mapping, file_id: tuple[int, int]) -> bool:
        """Returns True when the mapping shows the file with these st_dev and st_ino."""
        if mapping.inode == 0:
            return False
        if (mapping.device, mapping.inode) == file_id:
            return True
        # On some file systems (overlayfs, btrfs) maps and stat name different devices.
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(f"root{mapping.name}", dir_fd=self._directory)
            return (status.st_dev, status.st_ino) == file_id
        return False

    def resident(self, mapping: Mapping, *, written: bool = False) -> list[Range] | None:
        """Returns the ranges in which the mapping has pages of its own, in memory or swapped out;
        None if that is not known. `written`: without those that a file has as well."""
        if self._pagemap is None:
            return None
        runs: list[Range] = []
        first, last = mapping.start // PAGE, mapping.end // PAGE
        while first < last:
            wanted = min(last - first, _PAGEMAP_PAGES)
            try:
                raw = os.pread(self._pagemap, wanted * 8, first * 8)
            except OSError:
                return None
            entries = np.frombuffer(raw[: len(raw) // 8 * 8], dtype=np.uint64)
            if not len(entries):
                raise self._ended()
            exist = (entries & _THERE) != 0
            if written:
                exist &= (entries & _OF_FILE) == 0
            there = np.concatenate(([False], exist, [False]))
            edges = first + np.flatnonzero(there[1:] != there[:-1])
            for begin, end in edges.reshape(-1, 2).tolist():
                if runs and runs[-1][1] == begin * PAGE:
                    runs[-1] = (runs[-1][0], end * PAGE)
                else:
                    runs.append((begin * PAGE, end * PAGE))
            first += len(entries)
        return runs

    def file_data(self, mapping: Mapping) -> list[Range] | None:
        """Returns the ranges in which the file in memory behind a mapping has data; None if this
        user may not see that."""
        path = f"map_files/{mapping.start:x}-{mapping.end:x}"
        try:
            with Descriptor.open(path, os.O_RDONLY, dir_fd=self._directory) as descriptor:
                return list(_data(descriptor, mapping))
        except OSError:
            return None

    # ---- reading

    def read(self, scratch: Scratch, at: int, address: int, count: int) -> int:
        """Reads up to `count` bytes to offset `at` of the scratch memory. Returns how many there
        were before the first page that cannot be read."""
        try:
            if self._memory is None:
                got = _read_by_call(self.pid, scratch.address + at, address, count)
            else:
                got = scratch.read(self._memory, address, at, count)
        except OverflowError:  # [vsyscall] lies beyond the largest file offset
            return 0
        except OSError as error:
            if error.errno in (errno.EIO, errno.EFAULT, errno.EINVAL):
                return 0
            if error.errno == errno.ESRCH:
                raise self._ended() from None
            raise self._refused(error) from None
        if got == 0:
            raise self._ended()
        return got


class _Vector(ctypes.Structure):
    """struct iovec of uio(3)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _read_by_call(pid: int, to: int, address: int, count: int) -> int:
    """Reads by process_vm_readv(2) as many of `count` bytes as there are before a page that cannot
    be read. Raises OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.restype = ctypes.c_ssize_t
    here, there = _Vector(to, count), _Vector(address, count)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    got = call(ctypes.c_int(pid), ctypes.byref(here), one, ctypes.byref(there), one, none)
    if got < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(got)


def _data(descriptor: int, mapping: Mapping) -> Iterator[Range]:
    at = offset = mapping.offset
    end = offset + mapping.end - mapping.start
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if at >= end:
            return
        hole = min(os.lseek(descriptor, at, os.SEEK_HOLE), end)
        yield (
            mapping.start + (at - offset) // PAGE * PAGE,
            mapping.start + -(-(hole - offset) // PAGE) * PAGE,
        )
        at = hole


def _ptrace_scope() -> str:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            return f"here {file.read().strip()}"
    except OSError:
        return "not used here"
