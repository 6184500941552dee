# SPDX-License-Identifier: Apache-2.0
"""Swap: a swap file is made for the process, the process is paged out to it, and the file is
read."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ... import audit, errors
from ..scratch import wipe
from ..wanted import MARKER
from .way import Denied, Subject, Untried, Way

__all__ = ["Swap", "header"]

_PAGE = os.sysconf("SC_PAGE_SIZE")

# sys/swap.h, linux/mman.h; the numbers of process_madvise(2) are the same on all architectures.
_SWAP_FLAG_PREFER, _HIGHEST = 0x8000, 0x7FFF
_MADV_PAGEOUT = 21
_SYS_PROCESS_MADVISE = 440

_ROOM = 64 << 20  # bytes of the file beyond what the process has
_MOST = 4 << 30  # no larger file is made
_SETTLE = 0.3  # seconds for the kernel to write
_ROUNDS = 6


def header(pages: int) -> bytes:
    """The first page of a swap file, as mkswap(8) writes it (union swap_header, linux/swap.h)."""
    page = bytearray(_PAGE)
    struct.pack_into("<III", page, 1024, 1, pages - 1, 0)
    page[-10:] = b"SWAPSPACE2"
    return bytes(page)


class _Vector(ctypes.Structure):
    """struct iovec of uio(3)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Swap(Way):
    """Pages go through the kernel's own way to a disk."""

    name, title = "swap", "swap"
    costly = True

    def reports(self, subject: Subject) -> list[audit.Report]:
        if os.geteuid() != 0:
            raise Untried("only root may add a swap file")
        for other in _first():
            raise Untried(
                f"{other} takes a part of what is paged out; if an attack that was killed has left "
                f"it, call swapoff on it"
            )
        path = subject.directory / "swap"
        size = min(_swappable(subject.pid) * 5 // 4 + _ROOM, _MOST) // _PAGE * _PAGE
        if shutil.disk_usage(subject.directory).free < 2 * size:
            raise Untried(f"there is no room for a swap file of {size >> 20} MiB")
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            _make(path, size)
            with _active(libc, path):
                return [_settled(libc, path, subject)]
        finally:
            wipe(path)


def _first(swaps: Path = Path("/proc/swaps")) -> list[str]:
    """Returns the swap areas of the highest priority: pages go to those and ours in turn."""
    lines = swaps.read_text("utf-8", "replace").splitlines()[1:] if swaps.exists() else []
    return [line.split()[0] for line in lines if line.split()[-1] == str(_HIGHEST)]


def _swappable(pid: int) -> int:
    """Bytes of the process that no file has."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        raise errors.NoProcessError(f"Process {pid} has ended.") from None
    kept = [line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:"))]
    return sum(int(words[1]) for words in kept) * 1024


def _make(path: Path, size: int) -> None:
    """Makes the file without holes, which swapon(2) wants."""
    try:
        with open(path, "xb", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(header(size // _PAGE))
            piece = bytes(1 << 20)
            left = size - _PAGE
            while left > 0:
                left -= file.write(piece[:left])
            os.fsync(file.fileno())
    except OSError as error:
        raise Untried(f"the swap file cannot be made: {error.strerror}") from None


@contextlib.contextmanager
def _active(libc: ctypes.CDLL, path: Path) -> Iterator[None]:
    """Lets the kernel swap to the file, before all others, for the length of a `with` block."""
    name = os.fsencode(path)
    try:
        if libc.swapon(name, _SWAP_FLAG_PREFER | _HIGHEST):
            number = ctypes.get_errno()
            if number in (errno.EPERM, errno.EINVAL, errno.ENOSYS):
                raise Untried(f"swapon is refused: {os.strerror(number)}")
            raise Untried(f"swapon failed: {os.strerror(number)}")
        yield
    finally:
        # Also when an interrupt came before the call had returned; EINVAL: it was not in use.
        for _ in range(3):
            if libc.swapoff(name) == 0 or ctypes.get_errno() != errno.EINTR:
                break


def _page_out(libc: ctypes.CDLL, pid: int) -> int:
    """Asks for all private memory of the process to be paged out. Returns the bytes for which the
    kernel took that."""
    try:
        descriptor = os.pidfd_open(pid)
    except (OSError, AttributeError) as error:
        raise Untried(f"pidfd_open is refused: {error}") from None
    advised = 0
    last = 0
    try:
        for start, end in _private(pid):
            vector = _Vector(start, end - start)
            done = libc.syscall(
                ctypes.c_long(_SYS_PROCESS_MADVISE),
                ctypes.c_int(descriptor),
                ctypes.byref(vector),
                ctypes.c_ulong(1),
                ctypes.c_int(_MADV_PAGEOUT),
                ctypes.c_uint(0),
            )
            if done > 0:
                advised += int(done)
            else:
                last = ctypes.get_errno()  # EINVAL: locked
    finally:
        os.close(descriptor)
    if not advised and last in (errno.EPERM, errno.ENOSYS):
        raise Untried(f"process_madvise is refused: {os.strerror(last)}")
    return advised


def _private(pid: int) -> Iterator[tuple[int, int]]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines()
    except PermissionError:
        raise Denied("its mappings cannot be read") from None
    for line in lines:
        place, permissions, *_ = line.split()
        if permissions.startswith("rw") and permissions.endswith("p"):
            start, end = (int(part, 16) for part in place.split("-"))
            yield start, end


def _settled(libc: ctypes.CDLL, path: Path, subject: Subject) -> audit.Report:
    """Pages out and searches the file until it shows no more than the time before: pages that were
    just touched stay the first time, and the kernel writes when it likes."""
    before = -1
    for _ in range(_ROUNDS):
        if not _page_out(libc, subject.pid):
            raise Denied("the system pages out nothing of the process")
        time.sleep(_SETTLE)
        with open(path, "rb") as file:
            # The kernel writes to the disk past the cache of the file.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        report = audit.scan_file(path, subject.wanted.native, max_hits=0, wide=True)
        found = subject.wanted.found(report)
        if MARKER in found and sum(found.values()) == before:
            break
        before = sum(found.values())
    return report
