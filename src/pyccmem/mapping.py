# SPDX-License-Identifier: Apache-2.0
"""Mapping: an ordinary array over an encrypted tensor, whose blocks are filled when they are
touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from . import errors
from .binding import FAULTS, OK, anchor, check, ffi, lib
from .binding.arguments import byte_count
from .binding.handlers import stay_in_front
from .binding.owned import keeping, pin, region
from .binding.status import MappingCall, StartMappingCall
from .core.resource import Resource
from .core.store import Store, check_open, check_writable, handle
from .counters import MappingStats

__all__ = ["Mapping"]

Array = npt.NDArray[Any]

#: The most bytes of a name that a message of the native core shows.
_NAME_BYTES = 200


def _wanted_mechanism() -> str:
    """Returns the mechanism that PYCCMEM_FAULT names. Raises ConfigError."""
    name = os.environ.get("PYCCMEM_FAULT") or "auto"
    if name not in FAULTS:
        raise errors.ConfigError(
            f"PYCCMEM_FAULT={name!r} is not a fault mechanism; use one of {', '.join(FAULTS)}, or "
            f"leave it unset for the best that the system has."
        )
    return name


class Mapping(Resource):
    """The array that `with tensor.map() as array:` gives: a real ndarray at a fixed address, which
    is empty until it is touched. A touch decrypts a block into a frame. At most `window` bytes lie
    in the clear at a time; when the window is full, each new block wipes another.

    With mode "r" the array is read-only. With "r+" a block that was written is encrypted again,
    under new versions, when it leaves the window and when the `with` block ends, however it ends. A
    mapping shows a block as the tensor was when the block was filled. What others write to the
    tensor while it is mapped with "r+" may be lost.

    After the `with` block, do not use the array, views of it or tensors made from it: the address
    range stays reserved as long as they exist, and a touch ends the process by SIGSEGV.

    A touch has no caller in which to raise IntegrityError or FileReadError. If the touched page was
    changed, or cannot be read from its file any more, all windows are wiped and the process ends
    (SIGABRT) with a message. prefault() and pin() raise these errors. `kernel_access` tells whether
    system calls can use parts of the array that are not resident, as in `write(fd, array)`. If not,
    they fail with EFAULT, and pin() makes them work. It takes userfaultfd(2) in full
    (CAP_SYS_PTRACE, or /dev/userfaultfd). `system_calls=False` goes without it, for speed: touches
    are then answered in the thread that touched.
    """

    __slots__ = (
        "_anchor",
        "_array",
        "_data",
        "_dtype",
        "_entered",
        "_mode",
        "_native",
        "_nbytes",
        "_region",
        "_shape",
        "_store",
    )

    _instead_of_a_copy = "map the tensor again"

    _region: Any
    _anchor: Any
    _array: Array | None

    def __init__(
        self,
        store: Store,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        window: int | str = "64MiB",
        mode: str = "r",
        system_calls: bool = True,
        *,
        _block: int = 0,
        _read_ahead: bool = True,
        _fault: int | None = None,
    ) -> None:
        """Called by EncryptedTensor.map() and EncryptedBuffer.map(), which describe the
        arguments."""
        self._region = self._anchor = self._array = self._data = None
        self._entered = False
        if not isinstance(mode, str) or mode not in ("r", "r+"):
            raise errors.ArgumentError(f"mode is {mode!r}; it must be 'r' or 'r+'.")
        size = byte_count("window", window)
        name = _wanted_mechanism()
        native = handle(store)
        check_open(store)
        if mode == "r+":
            check_writable(store)
        self._store, self._shape, self._dtype, self._mode = store, shape, dtype, mode
        self._native = native
        self._nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if not self._nbytes:
            self._array = np.zeros(shape, dtype)
            return
        title = ffi.new("char[]", ascii(store.name)[1:-1].encode()[:_NAME_BYTES])
        options = ffi.new(
            "ccmem_region_options *",
            {
                "window": size,
                "block": _block,
                "writable": mode == "r+",
                "read_ahead": _read_ahead,
                "system_calls": bool(system_calls),
                "fault": FAULTS[name] if _fault is None else _fault,
                "name": title,
            },
        )
        # A region uses the native store until the region is freed, even if the buffer is closed.
        kind = region(native)
        out = kind.cell()
        status = lib.ccmem_region_new(native, offset, self._nbytes, options, out)
        number = ffi.errno
        if status == lib.CCMEM_ERR_ARGUMENT:
            block = max(store.page_size, os.sysconf("SC_PAGESIZE"), _block)
            least = lib.CCMEM_WINDOW_BLOCKS * block
            raise errors.ArgumentError(
                f"window is {size} bytes, too small for a mapping of {self._nbytes}: one "
                f"instruction may touch {lib.CCMEM_WINDOW_BLOCKS} blocks at once, so it must be "
                f"at least {least} bytes, {lib.CCMEM_WINDOW_BLOCKS} of {block}."
            )
        action = f"a mapping with a window of {size} bytes"
        check(status, StartMappingCall(action, store.name, name, number))
        self._region = kind.own(out)
        stay_in_front()
        self._anchor = anchor(self._region)
        self._array = self._new_array()

    def _new_array(self) -> Array:
        """Returns the array. It keeps the region alive, and so the range of addresses."""
        data = lib.ccmem_region_data(self._region)
        memory: Any = ffi.buffer(keeping(data, self._region), self._nbytes)
        if self._mode == "r":
            memory = memoryview(memory).toreadonly()
        array: Array = np.ndarray(self._shape, self._dtype, memory)
        return array

    # ---- the with block ----

    def __enter__(self) -> Array:  # type: ignore[override]
        array = self._opened()
        if self._entered:
            raise errors.ClosedError("This mapping is in use by another with block; map again.")
        self._check_process()
        self._entered = True
        result: Array = array
        return result

    def close(self) -> None:
        """Writes back, wipes, and makes the addresses inaccessible, as the end of the `with` block
        does. May be repeated. Raises VersionExhaustedError or IntegrityError if a block cannot be
        written back (what was written to it is lost), ForkError."""
        self._array = None
        region = self._region
        if region is not None:
            self._check(lib.ccmem_region_close(region), "the write-back")

    def flush(self) -> None:
        """Encrypts what has been written so far. Raises as close() does; blocks that could not be
        encrypted stay, so that a later call can try again."""
        self._opened()
        if self._region is not None:
            self._check(lib.ccmem_region_flush(self._region), "the write-back")

    # ---- parts ----

    def prefault(self, index: Any = ...) -> None:
        """Decrypts what `index` names (slices and integers, as in `array[index]`), as much of it as
        the window holds, so that the next touch costs nothing. It can be evicted again.

        Raises IntegrityError for a page that was changed, VersionExhaustedError when another block
        cannot be written back, IndexingError, ClosedError, ForkError.
        """
        start, nbytes = self._extent(index)
        if nbytes:
            self._check(lib.ccmem_region_prefault(self._region, start, nbytes), "the window")

    def pin(self, index: Any = ...) -> AbstractContextManager[Array]:
        """Returns a context manager that gives `array[index]`, for slices and integers, and keeps
        it in the clear until it ends, so that system calls can use it with any mechanism. With mode
        "r+" it counts as written.

        Raises PlaintextBudgetError when the window would not keep four blocks for the rest of the
        array; what prefault() raises.
        """
        return self._pinned(index)

    @contextmanager
    def _pinned(self, index: Any) -> Iterator[Array]:
        start, nbytes = self._extent(index)
        array = self._opened()
        if not nbytes:
            yield array[index]
            return
        held = pin(self._region)
        status = lib.ccmem_pin_take(self._region, start, nbytes, held)
        self._check(status, "the window", pinned=nbytes)
        try:
            yield array[index]
        finally:
            status = lib.ccmem_pin_release(held)
            if self._array is not None:
                self._check(status, "the window")

    def _extent(self, index: Any) -> tuple[int, int]:
        """Returns the offset of the first byte and the length of the memory that holds
        `array[index]`."""
        array = self._opened()
        items = index if isinstance(index, tuple) else (index,)
        for item in items:
            if not isinstance(item, (int, np.integer, slice, type(...))) or isinstance(item, bool):
                raise errors.IndexingError(
                    f"prefault() and pin() take integers, slices and '...', not "
                    f"{type(item).__name__}."
                )
        # An integer for every axis would read the element.
        held = tuple(
            slice(item, item + 1 or None) if isinstance(item, (int, np.integer)) else item
            for item in items
        )
        try:
            for axis, item in enumerate(items):
                if isinstance(item, (int, np.integer)):
                    axis = axis - len(items) if ... in items[:axis] else axis
                    if not -array.shape[axis] <= item < array.shape[axis]:
                        raise IndexError(f"index {item} is out of range")
            piece = array[held]
        except (IndexError, TypeError, ValueError) as error:
            raise errors.IndexingError(f"The index does not fit the array: {error}.") from None
        if not piece.size:
            return 0, 0
        base = array.__array_interface__["data"][0]
        steps = [(n - 1) * step for n, step in zip(piece.shape, piece.strides, strict=True)]
        start = piece.__array_interface__["data"][0] - base + sum(s for s in steps if s < 0)
        return start, sum(abs(s) for s in steps) + piece.itemsize

    # ---- what it is ----

    def stats(self) -> MappingStats:
        """Returns, for this mapping: `window` and `block` (bytes), `resident` (bytes in the clear
        now), `peak` (the most), `faults`, `fills`, `read_ahead`, `evictions`, `write_backs`,
        `kernel_access`, `mechanism`. Raises ForkError."""
        found = ffi.new("ccmem_region_stats *")
        if self._region is not None:
            self._check(lib.ccmem_region_get_stats(self._region, found), "the counters")
        names = {number: name for name, number in FAULTS.items()}
        return MappingStats(
            window=int(found.window),
            block=int(found.block),
            resident=int(found.resident),
            peak=int(found.peak),
            faults=int(found.faults),
            fills=int(found.fills),
            read_ahead=int(found.read_ahead),
            evictions=int(found.evictions),
            write_backs=int(found.write_backs),
            kernel_access=bool(found.kernel_faults),
            mechanism=names[int(found.fault)],
        )

    @property
    def kernel_access(self) -> bool:
        """True when system calls can use parts that are not resident. When False, such calls fail
        with EFAULT, except for parts that are pinned."""
        return self._region is None or bool(self.stats()["kernel_access"])

    @property
    def mode(self) -> str:
        """ "r" or "r+"."""
        return self._mode

    @property
    def closed(self) -> bool:
        """True after the `with` block."""
        return self._array is None

    def _opened(self) -> Any:
        if self._array is None:
            raise errors.ClosedError("This mapping is closed; map the tensor again.")
        return self._array

    def _check_process(self) -> None:
        if self._region is not None:
            self._check(
                lib.ccmem_region_get_stats(self._region, ffi.new("ccmem_region_stats *")),
                "the mapping",
            )

    def _check(self, status: int, action: str, pinned: int = 0) -> None:
        if status == OK:
            return
        number = ffi.errno
        if status == lib.CCMEM_ERR_ARGUMENT:
            raise errors.ClosedError("This mapping is closed; map the tensor again.")
        store = self._store
        check(
            status,
            MappingCall(
                action,
                store.name,
                nbytes=store.nbytes,
                page_size=store.page_size,
                store=self._native,
                errno=number,
                window=self.stats()["window"] if status == lib.CCMEM_ERR_PINNED else 0,
                pinned=pinned,
            ),
        )

    def _description(self) -> str:
        return f"of {self._store.name!a}, shape {self._shape}, {self._dtype}, mode {self._mode!r}"
