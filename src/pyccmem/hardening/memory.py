# SPDX-License-Identifier: Apache-2.0
"""Looks whether freed memory is overwritten: fills a block with a mark, frees it, and reads what
lies there then."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from . import allocator, libc
from .part import Part

__all__ = ["freed_memory", "numpy_memory", "python_objects", "small_blocks", "torch_memory"]

#: Blocks that glibc keeps in no cache of a thread (more than 1,032 bytes), up to what comes from
#: the heap and not from a mapping of its own.
_LARGE = (1_104, 4_096, 20_000, 100_000)

#: Blocks of a thread's cache in glibc.
_SMALL = (24, 40, 120, 500, 1_000)

#: Bytes of Python's own allocator, which serves up to 512.
_OBJECTS = (100, 200, 400)

#: NumPy keeps blocks below 1,024 bytes for itself.
_ARRAYS = (96, 1_000, 5_000, 100_000)

_GLIBC = "leave malloc() to the C library: take the allocator out of LD_PRELOAD"
_RUN = "start the program by `pyccmem run -- COMMAND`"
_MARK = 8  # bytes that are compared at a time


#: As many small blocks are looked at together: a cache of a thread that is full takes no more, and
#: what it does not take is freed in another way. glibc keeps 7 of a size, from 2.42 on 16.
_TOGETHER = 24

#: Where a block lies, and what gives it back.
_Block = tuple[int, Callable[[], object]]


class _Look:
    """Reads freed blocks into memory that was taken before: whatever is taken after a block was
    freed may be that block, and overwrite it."""

    def __init__(self, nbytes: int) -> None:
        self.mark = os.urandom(_MARK)
        self.filled = self.mark * (nbytes // _MARK)
        self.into = ctypes.create_string_buffer(len(self.filled))

    def left(self, blocks: list[_Block]) -> int:
        """Gives blocks back. Returns how many bytes of one of them are still those of `filled`, at
        the most."""
        for _, give_back in blocks:
            give_back()
        most = 0
        for address, _ in blocks:
            libc.peek(address, self.into)
            most = max(most, self.into.raw.count(self.mark) * _MARK)
        return most


def _kept(sizes: tuple[int, ...], take: Callable[[bytes], _Block]) -> list[int]:
    """Returns those sizes of which a freed block kept more than the 8 bytes that glibc leaves.
    `take` makes a block that holds the bytes that it is given."""
    kept = []
    for size in sizes:
        look = _Look(size)
        count = _TOGETHER if size <= _SMALL[-1] else 1
        if look.left([take(look.filled) for _ in range(count)]) > _MARK:
            kept.append(size)
    return kept


def _block(filled: bytes) -> _Block:
    address = libc.allocate(len(filled))
    if address is None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    ctypes.memmove(address, filled, len(filled))
    return address, functools.partial(libc.release, address)


def _deleted(sizes: tuple[int, ...]) -> list[int]:
    """Returns those sizes of which a block that C++ deletes kept something. An allocator may have
    operators of its own, which do not go by free()."""
    try:
        operators = libc.Operators()
    except AttributeError:
        return []  # none for all to call; those of libstdc++ call malloc() and free()

    def made(filled: bytes) -> _Block:
        address = operators.new(len(filled))
        ctypes.memmove(address, filled, len(filled))
        return address, functools.partial(operators.delete, address, len(filled))

    return _kept(sizes, made)


def _object(filled: bytes) -> _Block:
    owner = [bytes(bytearray(filled))]
    return id(owner[0]) + sys.getsizeof(b"") - 1, owner.clear


def _part(name: str) -> Callable[[Callable[[], Part]], Callable[[], Part]]:
    """Makes a part of a look that could not be had: what cannot be seen does not hold."""

    def around(look: Callable[[], Part]) -> Callable[[], Part]:
        @functools.wraps(look)
        def looked() -> Part:
            try:
                return look()
            except OSError as error:
                detail = f"freed memory cannot be looked at: {error.strerror}"
                return Part(name, False, detail, "have a filter allow process_vm_readv(2)")

        return looked

    return around


def _sizes(sizes: list[int]) -> str:
    return ", ".join(f"{size:,}" for size in sizes)


def _operators(owner: allocator.Owner, deleted: list[int]) -> str:
    return (
        f"{owner} has an operator delete of its own, after which blocks of {_sizes(deleted)} bytes "
        f"of C++ keep what lay in them; what comes by free() is overwritten"
    )


@_part("freed-memory")
def freed_memory() -> Part:
    """Looks at blocks of malloc() that no thread keeps for itself."""
    owner = allocator.owner()
    kept = _kept(_LARGE, _block)
    deleted = [] if kept else _deleted(_LARGE)
    if deleted:
        return Part("freed-memory", False, _operators(owner, deleted), _GLIBC)
    if not kept:
        how = allocator.wiper() or f"{owner} overwrites it"
        return Part("freed-memory", True, f"freed blocks are overwritten ({how})", "")
    remedy = _RUN if not owner.perturbs else f"call pyccmem.guard(), or {_RUN}"
    detail = f"{owner}: freed blocks of {_sizes(kept)} bytes keep what lay in them"
    return Part("freed-memory", False, detail, remedy)


@_part("small-blocks")
def small_blocks() -> Part:
    """Looks at blocks that glibc keeps in a thread's cache."""
    kept = _kept(_SMALL, _block)
    deleted = [] if kept else _deleted(_SMALL)
    if deleted:
        detail = _operators(allocator.owner(), deleted)
        return Part("small-blocks", False, detail, _GLIBC)
    if not kept:
        return Part("small-blocks", True, "small freed blocks are overwritten too", "")
    return Part(
        "small-blocks",
        False,
        f"freed blocks of {_sizes(kept)} bytes keep what lay in them, as long as a thread keeps "
        f"them for its next use",
        _RUN,
    )


@_part("python-objects")
def python_objects() -> Part:
    """Looks at bytes objects."""
    kept = _kept(_OBJECTS, _object)
    if not kept:
        return Part("python-objects", True, "dropped str and bytes are overwritten", "")
    remedy = _RUN
    # By the flag in its name: sysconfig would read files, which a user without rights may not.
    if "t" in sys.abiflags:
        remedy = "use an interpreter with a GIL: a free-threaded one has an allocator of its own"
    return Part(
        "python-objects", False, f"dropped bytes of {_sizes(kept)} keep what lay in them", remedy
    )


@_part("numpy-memory")
def numpy_memory() -> Part:
    """Looks at arrays."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        return Part("numpy-memory", False, "numpy is not imported", "look again when it is")

    def array(filled: bytes) -> _Block:
        owner = [numpy.frombuffer(filled, numpy.uint8).copy()]
        return owner[0].__array_interface__["data"][0], owner.clear

    kept = _kept(_ARRAYS, array)
    if not kept:
        return Part("numpy-memory", True, "the memory of dropped arrays is overwritten", "")
    detail = f"dropped arrays of {_sizes(kept)} bytes keep what lay in them"
    return Part("numpy-memory", False, detail, f"call pyccmem.guard(), or {_RUN}")


@_part("torch-memory")
def torch_memory() -> Part:
    """Looks at tensors on the processor."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "empty"):
        return Part("torch-memory", False, "torch is not imported", "look again when it is")

    def tensor(filled: bytes) -> _Block:
        # Not by an operation of torch, which may take threads: in a forked child there are none.
        owner = [torch.empty(len(filled), dtype=torch.uint8)]
        address = owner[0].data_ptr()
        ctypes.memmove(address, filled, len(filled))
        return address, owner.clear

    kept = _kept(_ARRAYS, tensor)
    if not kept:
        return Part("torch-memory", True, "the memory of dropped tensors is overwritten", "")
    detail = f"dropped tensors of {_sizes(kept)} bytes keep what lay in them"
    return Part("torch-memory", False, detail, _RUN)
