# SPDX-License-Identifier: Apache-2.0
"""FilePages: what the buffers over one sealed file share, so that each buffer takes little.

A file has one native object for all of its buffers, with the data key and the mapping of the pages.
A buffer's native store lies in the memory of a Python object, together with the state of its pages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .. import errors
from ..binding import CIPHERS, LEVELS, OK, Call, check, ffi, lib
from ..binding.handlers import stay_in_front
from ..binding.owned import FILE
from ..binding.status import FilePagesCall
from ..buffer import LARGEST, EncryptedBuffer, over_store, refuse_versions
from ..core.forks import Origin
from ..core.store import SharedPages
from ..key_services.leases import Lease
from ..keys import Key, native_key

__all__ = ["LENT_ALIGN", "FilePages"]

#: Pages in memory of others begin at a multiple of this: vectors are loaded from there.
LENT_ALIGN = 64

_add = lib.ccmem_file_add
_add_lent = lib.ccmem_file_add_lent

_STORE_BYTES = int(lib.CCMEM_FILE_STORE_SIZE)
_RECORD_BYTES = int(lib.CCMEM_FILE_RECORD_SIZE)

#: A buffer of more pages has a mapping of its own for their state.
_MOST_RECORDS = int(lib.CCMEM_FILE_RECORDS_MAX)


class _Store(bytes):
    """The memory of a native store, and its owner, as _Store in arena.py."""

    __slots__ = ()

    __del__ = property(lib.ccmem_file_remove)


class _LentStore(_Store):
    """The same for pages in memory of others, which it keeps there."""

    #: An array over the memory, for views of the ciphertext, which outlive the store. The garbage
    #: collector does not see through arrays. It would clear a memoryview in a cycle before what
    #: uses it, and CPython 3.11 then ends with a segmentation fault.
    lent: npt.NDArray[np.uint8]


class FilePages(SharedPages):
    """The pages of one sealed file, which lie from byte `begin` to byte `end`. Nothing is mapped or
    read before the first buffer."""

    __slots__ = (
        "__weakref__",
        "_anonymous",
        "_cipher",
        "_file",
        "_lease",
        "_level",
        "_page_size",
    )

    _lease: Lease | None

    def __init__(
        self, key: Key, cipher: str, page_size: int, begin: int, end: int, anonymous: bool
    ) -> None:
        """Prepares buffers; with `anonymous` their pages are read into memory. Raises ClosedError
        or ForkError for the key, OutOfMemoryError, LockedMemoryError."""
        self._cipher, self._page_size, self._anonymous = cipher, page_size, anonymous
        self._lease = None
        native, out = native_key(key), FILE.cell()
        status = lib.ccmem_file_new(
            native, CIPHERS[cipher], page_size, begin, end, bool(anonymous), out
        )
        check(status, Call("the subkeys of a sealed file", "key"))
        self._file = FILE.own(out)
        self._level = LEVELS[lib.ccmem_file_level(self._file)]

    def lease(self, lease: Lease) -> None:
        """Uses the key only while `lease` lets it. Keeps it as long as this is."""
        self._lease = lease
        lease.add(self)

    def withhold(self) -> None:
        """Wipes the key. Reads raise KeyUnavailableError from now on. Raises ForkError."""
        check(lib.ccmem_file_withhold(self._file), Call("a file", "file"))

    def restore(self, key: Key) -> None:
        """Goes on with the same key. Raises ClosedError, ForkError."""
        check(lib.ccmem_file_restore(self._file, native_key(key)), Call("a file", "file"))

    def buffer(
        self,
        fd: int,
        offset: int,
        nbytes: int,
        *,
        store_id: bytes,
        records: bytes,
        name: str,
        origin: Origin | None,
        path: str,
    ) -> EncryptedBuffer:
        """Returns a read-only buffer over the pages of `nbytes` bytes from `offset` on in the file
        that is open as `fd`; see EncryptedBuffer._mapped(). `records` are the versions of its
        pages, then their tags, which the caller has verified in memory of its own. Errors call the
        file `path`."""
        page_size = self._page_size
        count = -(-nbytes // page_size)
        action = f"a mapping of {nbytes} bytes"
        if nbytes > LARGEST:
            check(lib.CCMEM_ERR_NOMEM, Call(action))
        if len(records) != count * _RECORD_BYTES:
            raise errors.ArgumentError(
                f"records has {len(records)} bytes; {count} pages have {count * _RECORD_BYTES}."
            )
        inside = count * _RECORD_BYTES if count <= _MOST_RECORDS else 0
        store = _Store(_STORE_BYTES + inside)
        status = _add(self._file, fd, offset, nbytes, store_id, records, store)
        if status != OK:
            number = ffi.errno
            if status == lib.CCMEM_ERR_ARGUMENT:
                refuse_versions(name, records[: 8 * count])
            length = count * page_size
            check(status, FilePagesCall(action, name, path, offset, length, number))
        made = over_store(store, self, nbytes, self._cipher, page_size, self._level, name, origin)
        if not self._anonymous:
            stay_in_front()
        return made

    def buffer_in(
        self,
        memory: memoryview,
        nbytes: int,
        *,
        store_id: bytes,
        records: bytes,
        name: str,
    ) -> EncryptedBuffer:
        """Returns the same over pages in memory, which begins with them, at a multiple of
        LENT_ALIGN bytes. They are not copied, and the memory is kept as long as the buffer and
        views of its ciphertext."""
        count = -(-nbytes // self._page_size)
        inside = count * _RECORD_BYTES if count <= _MOST_RECORDS else 0
        if len(records) != count * _RECORD_BYTES or len(memory) < count * self._page_size:
            raise errors.ArgumentError(
                f"records has {len(records)} bytes, and the memory {len(memory)}; {count} pages of "
                f"{self._page_size} bytes have more or fewer."
            )
        store = _LentStore(_STORE_BYTES + inside)
        store.lent = np.frombuffer(memory, np.uint8)
        status = _add_lent(
            self._file, ffi.from_buffer(store.lent), nbytes, store_id, records, store
        )
        if status == lib.CCMEM_ERR_ARGUMENT:
            refuse_versions(name, records[: 8 * count])
        check(status, Call(f"a view of {nbytes} bytes", "key"))
        size, level = self._page_size, self._level
        return over_store(store, self, nbytes, self._cipher, size, level, name, None)

    def overhead(self) -> int:
        return int(lib.ccmem_file_overhead(self._file))
