# SPDX-License-Identifier: Apache-2.0
"""EncryptedBuffer: bytes that lie in memory as ciphertext, and are read and written in the
clear."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from . import errors
from .binding import (
    AUTHENTICATED,
    BUFFER_PAGE_SIZE,
    CIPHERS,
    DEFAULT_CIPHER,
    LEVELS,
    OK,
    Call,
    anchor,
    check,
    ffi,
    lib,
)
from .binding.arguments import (
    BYTES,
    checked_page_size,
    exact_bytes,
    holds_objects,
    input_buffer,
    integer,
    output_buffer,
)
from .binding.handlers import stay_in_front
from .binding.owned import STORE, keeping, made
from .binding.status import FilePagesCall, lost_page
from .core.forks import Lock, Origin
from .core.rekey import KeyUse, Native, Steps, checked_rate, run
from .core.replaced import like_store, put_of, replace_store, transfer_steps
from .core.store import (
    BUFFER,
    Store,
    check_open,
    exchange,
    forget,
    is_usable,
    register,
    registered,
)
from .counters import BufferStats
from .keys import Key, native_key
from .mapping import Mapping

__all__ = [
    "LARGEST",
    "EncryptedBuffer",
    "check_options",
    "check_tweak_cache",
    "freshness",
    "native_key",
    "open_buffers",
    "over_file",
    "over_store",
    "refuse_versions",
    "rekey_steps",
    "verify",
]

# Looked up once, because these lookups are most of what one small read costs in Python.
_from_buffer = ffi.from_buffer
_store_read = lib.ccmem_store_read
_store_write = lib.ccmem_store_write

#: Numbers for buffers without a name.
_numbers = itertools.count(1)

#: Held while a store is put in the place of another.
_changing = Lock()

#: Set in a page's word while the page is written, so versions are smaller than this.
_WRITING = 1 << 63


def open_buffers() -> list[EncryptedBuffer]:
    """Returns the buffers that this process has made and that are neither closed nor gone."""
    return [buffer for buffer in registered() if is_usable(buffer)]


#: Larger sizes, rounded up to whole pages, do not fit an index.
LARGEST = sys.maxsize - int(lib.CCMEM_PAGE_SIZE_MAX)


def check_options(cipher: Any, page_size: Any, name: Any) -> int:
    """Returns the page size as an int. Raises ArgumentError, ArgumentTypeError, PageSizeError."""
    size = checked_page_size(page_size)
    if not isinstance(cipher, str):
        raise errors.ArgumentTypeError(
            f"cipher must be a cipher's name, not {type(cipher).__name__}."
        )
    if not (name is None or isinstance(name, str)):
        raise errors.ArgumentTypeError(f"name must be a str or None, not {type(name).__name__}.")
    if cipher not in CIPHERS:
        raise errors.ArgumentError(f"cipher is {cipher!r}; it must be one of {', '.join(CIPHERS)}.")
    return size


def check_tweak_cache(tweak_cache: Any) -> int:
    """Returns the number of entries as an int. Raises ArgumentError, ArgumentTypeError."""
    entries = integer("tweak_cache", tweak_cache)
    if not 0 <= entries < 2**31:
        raise errors.ArgumentError(
            f"tweak_cache is {entries}; it must be from 0 (off) to {2**31 - 1} entries."
        )
    return entries


def freshness(fresh: Any, cipher: str, frozen: Any = False) -> int:
    """Returns where a native store is to have its versions. Raises ArgumentTypeError, and
    ArgumentError for `fresh` with a cipher without tags."""
    for name, value in (("fresh", fresh), ("frozen", frozen)):
        if not isinstance(value, bool):
            raise errors.ArgumentTypeError(
                f"{name} must be True or False, not {type(value).__name__}."
            )
    if fresh and cipher not in AUTHENTICATED:
        raise errors.ArgumentError(
            f"fresh=True has no effect with {cipher}, whose pages have no tags: a page that is put "
            f"back would become garbage, and no error; use {' or '.join(sorted(AUTHENTICATED))}."
        )
    return int(
        lib.CCMEM_FRESH_ONCE if frozen else lib.CCMEM_FRESH_LOCKED if fresh else lib.CCMEM_FRESH_NOT
    )


def refuse_versions(name: str, words: bytes) -> None:
    """Raises FileFormatError for a version that a sealed page cannot have."""
    versions = np.frombuffer(words, dtype="<u8")
    bad = np.flatnonzero((versions == 0) | (versions >= _WRITING))
    if bad.size:
        raise errors.FileFormatError(
            f"Page {bad[0]} of {name!a} has version {versions[bad[0]]} in its file's table; a "
            f"sealed page has one from 1 to {_WRITING - 1}."
        )


class EncryptedBuffer(Store):
    """`nbytes` bytes held as ciphertext. They read as zeros until they are written.

    Each page of `page_size` bytes (a power of two from 4096 to 65536) is encrypted on its own, and
    every write moves the pages it touches to a new version, so equal contents never give equal
    ciphertext twice. With `cipher` "aegis-128x2" each page has a tag: reading a page that was
    changed, moved, or put back from an earlier time raises IntegrityError. "aes-128-xts" and
    "aes-256-xts" hide contents, but do not detect a change.

    The keys are derived from `key` (NIST SP 800-108) when the buffer is made; `key` may be closed
    afterwards. Errors and repr() call the buffer `name`, or a number if it has none. `tweak_cache`
    is the number of encrypted tweaks to remember (32 bytes each; 0: none). With an XTS cipher this
    makes small reads of recently touched pages faster; other ciphers do not use it.

    A page that is put back from an earlier time together with its tag and its version opens as it
    was then. With `fresh` the versions lie in locked memory, 8 bytes a page, which count against
    RLIMIT_MEMLOCK: they are never in swap, and at level "secretmem" out of reach of
    /proc/PID/mem, so that such a page raises IntegrityError. What is not written any more can be
    frozen instead, which needs no versions: see freeze().

    All methods may be called from several threads at once. Each page is read as one write left it;
    a read over several pages may see some before and some after a concurrent write.
    """

    __slots__ = ()

    _instead_of_a_copy = "read() it into a new buffer"

    def __init__(
        self,
        nbytes: int,
        *,
        key: Key,
        cipher: str = DEFAULT_CIPHER,
        page_size: int = BUFFER_PAGE_SIZE,
        tweak_cache: int = 4096,
        name: str | None = None,
        fresh: bool = False,
        _version_limit: int = 0,
    ) -> None:
        """Makes a buffer of zeros.

        Raises ArgumentError (PageSizeError for the page size), ArgumentTypeError, ClosedError or
        ForkError for the key, OutOfMemoryError, LockedMemoryError, EntropyError.
        """
        self._begin(nbytes, cipher, page_size, name)
        tweak_cache = check_tweak_cache(tweak_cache)
        place = freshness(fresh, cipher)
        self._fresh = fresh
        root = native_key(key)
        action = f"a buffer of {self._nbytes} bytes"
        if fresh:
            action += " with its versions in locked memory (fresh=True: 8 bytes a page)"
        if self._nbytes > LARGEST:
            check(lib.CCMEM_ERR_NOMEM, Call(action))
        out = STORE.cell()
        status = lib.ccmem_store_new(
            root,
            CIPHERS[cipher],
            self._nbytes,
            self._page_size,
            _version_limit,
            tweak_cache,
            place,
            out,
        )
        check(status, Call(action, "key"))
        self._finish(out, name)

    def _begin(self, nbytes: Any, cipher: Any, page_size: Any, name: Any) -> None:
        """Sets the fields that do not depend on the native store. Raises ArgumentError,
        ArgumentTypeError."""
        self._store = None
        self._anchor = None
        self._origin = None
        self._exposed = None
        self._writable = True
        self._frozen = self._fresh = False
        self._level = "none"
        self._nbytes = integer("nbytes", nbytes)
        if self._nbytes < 0:
            raise errors.ArgumentError(f"nbytes is {self._nbytes}; it must be at least 0.")
        self._page_size = check_options(cipher, page_size, name)
        self._cipher = cipher

    def _finish(self, out: Any, name: str | None) -> None:
        """Takes over the native store in a cell."""
        # Closing only drops this reference. A read in another thread holds its own, and the end of
        # the last reference wipes and frees the store.
        self._store = STORE.own(out)
        self._anchor = anchor(self._store)
        self._level = LEVELS[lib.ccmem_store_level(self._store)]
        self._name = f"buffer-{next(_numbers)}" if name is None else name
        register(self)

    @classmethod
    def from_data(
        cls,
        data: Any,
        *,
        key: Key,
        cipher: str = DEFAULT_CIPHER,
        page_size: int = BUFFER_PAGE_SIZE,
        tweak_cache: int = 4096,
        name: str | None = None,
        fresh: bool = False,
        _version_limit: int = 0,
    ) -> EncryptedBuffer:
        """Returns a buffer that holds the bytes of `data` (any C-contiguous buffer), encrypted
        without a copy in between. The caller's bytes stay unchanged.

        Raises what the constructor and write() raise.
        """
        with input_buffer("data", data) as source:
            self = cls(
                len(source),
                key=key,
                cipher=cipher,
                page_size=page_size,
                tweak_cache=tweak_cache,
                name=name,
                fresh=fresh,
                _version_limit=_version_limit,
            )
            try:
                self.write(data)
            except BaseException:
                self.close()
                raise
        return self

    @classmethod
    def _mapped(
        cls,
        fd: int,
        offset: int,
        nbytes: int,
        *,
        key: Key,
        cipher: str,
        store_id: Any,
        page_size: int,
        versions: Any,
        tags: Any,
        name: str,
        anonymous: bool = False,
        origin: Origin | None = None,
        path: str = "",
    ) -> EncryptedBuffer:
        """Returns a read-only buffer over the pages of `nbytes` bytes in the open file `fd`, from
        `offset` on, a multiple of 4096. Decrypts nothing and copies only the records: the pages are
        mapped, and all processes that map them share one copy in the page cache.

        The pages were sealed under `key` and the 16 bytes of `store_id`. `versions` has a
        little-endian uint64 for each page, `tags` 16 bytes for each page. The caller has verified
        both, in memory of its own. The file may be closed afterwards. Other programs may change it:
        reading a page that is not as it was sealed raises IntegrityError.

        Other programs may also cut the file short, and its file system may fail. Reading a page
        that is gone raises FileReadError, and so does every later read of it, even if the file is
        mended. With `anonymous` the pages are instead read into memory of this process: that takes
        memory and time, but then the file is no longer needed.

        `origin` opens the buffer anew in a forked child; without an origin its use there raises
        ForkError. Errors call the file `path`.

        Methods that write raise ReadOnlyError. This function raises FileFormatError if the file
        ends too early or a version cannot be a sealed page's, FileReadError if the file cannot be
        mapped or read, ArgumentError (among others for a cipher without tags, with which a page
        that was put back would go unnoticed), ArgumentTypeError, and what the constructor raises.
        """
        self = cls.__new__(cls)
        self._begin(nbytes, cipher, page_size, name)
        self._writable = False
        if cipher not in AUTHENTICATED:
            raise errors.ArgumentError(
                f"cipher is {cipher!r}, which has no tags to check a file's pages against; it must "
                f"be {' or '.join(sorted(AUTHENTICATED))}."
            )
        count = -(-self._nbytes // self._page_size)
        fd, offset = integer("fd", fd), integer("offset", offset)
        smallest = lib.CCMEM_PAGE_SIZE_MIN
        if not 0 <= fd < 2**31:
            raise errors.ArgumentError(f"fd is {fd}; it must be an open file's descriptor.")
        if not 0 <= offset < 2**63 or offset % smallest:
            raise errors.ArgumentError(
                f"offset is {offset}; it must be a multiple of {smallest} inside a file."
            )
        root = native_key(key)
        action = f"a mapping of {self._nbytes} bytes"
        if self._nbytes > LARGEST:
            check(lib.CCMEM_ERR_NOMEM, Call(action))
        out = STORE.cell()
        record = (lib.CCMEM_STORE_ID_SIZE,)
        with (
            exact_bytes("store_id", store_id, record, errors.ArgumentError) as identity,
            exact_bytes("versions", versions, (8 * count,), errors.ArgumentError) as word,
            exact_bytes("tags", tags, (16 * count,), errors.ArgumentError) as tag,
        ):
            status = lib.ccmem_store_map(
                root,
                CIPHERS[cipher],
                identity,
                self._nbytes,
                self._page_size,
                fd,
                offset,
                bool(anonymous),
                ffi.cast("uint64_t *", word),
                tag,
                out,
            )
            number = ffi.errno
            if status == lib.CCMEM_ERR_ARGUMENT:
                refuse_versions(name, ffi.buffer(word)[:])
        length = count * self._page_size
        check(status, FilePagesCall(action, name, path, offset, length, number))
        self._origin = origin
        self._finish(out, name)
        if not anonymous:
            stay_in_front()
        return self

    @classmethod
    def _over(
        cls,
        store: Any,
        anchor: Any,
        nbytes: int,
        cipher: str,
        page_size: int,
        level: str,
        name: str,
        origin: Origin | None,
    ) -> EncryptedBuffer:
        """Returns a read-only buffer over an existing native store. It keeps `anchor` until it is
        closed."""
        self = object.__new__(EncryptedBuffer)
        self._store, self._anchor, self._origin, self._exposed = store, anchor, origin, None
        self._writable, self._nbytes, self._page_size = False, nbytes, page_size
        self._cipher, self._level, self._name = cipher, level, name
        self._frozen = self._fresh = False
        register(self)
        return self

    # ---- reading and writing ----

    def read_into(self, out: Any, offset: int = 0) -> int:
        """Decrypts from `offset` on until `out`, any writable C-contiguous buffer, is full. Returns
        the size of `out` in bytes.

        The caller owns the plaintext in `out` and can overwrite it, so read secrets with this
        method and not with read().

        Raises RangeError, BufferTypeError (ReadOnlyOutputError, NonContiguousError),
        ArgumentTypeError, ClosedError, ForkError; `out` is unchanged then. Raises IntegrityError
        when a page was changed; all of `out` is zeros then.
        """
        # The fast way checks nothing first: a wrong argument makes one of these calls fail, and
        # only then is the cause looked for.
        try:
            if type(offset) is not int:
                offset = integer("offset", offset)
            target = _from_buffer(BYTES, out, True)
            try:
                if type(out) is not bytearray and holds_objects(out):
                    raise TypeError
                length = len(target)
                status = _store_read(self._store, offset, target, length)
            finally:
                del target  # see arguments
        except (TypeError, ValueError, BufferError, OverflowError):
            status = None
        if status == OK:
            return length
        if status is None:
            return self._read_with_care(out, offset)
        self._fail(status, offset, length)

    def read(self, offset: int = 0, nbytes: int | None = None) -> bytes:
        """Returns the plaintext of `nbytes` bytes from `offset` on, by default of all that follow.

        Python cannot overwrite bytes, so this plaintext stays in memory until its place is reused;
        for secrets use read_into() with a buffer that you wipe.

        Raises RangeError, ArgumentTypeError, ClosedError, ForkError, OutOfMemoryError,
        IntegrityError.
        """
        offset = integer("offset", offset)
        length = max(self._nbytes - offset, 0) if nbytes is None else integer("nbytes", nbytes)
        store = self._opened()
        if offset < 0 or length < 0 or offset + length > self._nbytes:
            self._fail(lib.CCMEM_ERR_RANGE, offset, length)
        try:
            # Nothing else refers to this new bytes object, so it may be filled in place, which
            # saves a copy. Objects of length 0 and 1 are shared by the interpreter and must not be.
            data: bytes | bytearray = bytes(length) if length > 1 else bytearray(length)
        except MemoryError:
            raise errors.OutOfMemoryError(
                f"No memory is left for {length} bytes of plaintext; read fewer bytes at a time, "
                f"or use read_into() with memory you have."
            ) from None
        status = _store_read(store, offset, _from_buffer(BYTES, data), length)
        if status != OK:
            self._fail(status, offset, length)
        return bytes(data)

    def write(self, data: Any, offset: int = 0) -> int:
        """Encrypts the bytes of `data`, any C-contiguous buffer, to `offset`. Returns how many.

        Each page that `data` touches moves to its next version; its other bytes stay the same.

        Raises RangeError, BufferTypeError (NonContiguousError), ArgumentTypeError, ClosedError,
        ForkError, VersionExhaustedError, ReadOnlyError (see `writable`), and IntegrityError for a
        changed page of which `data` covers a part. Nothing has changed then, except that some pages
        may have been written if other threads write the same pages meanwhile. A page that `data`
        covers as a whole is replaced, even if it was damaged.
        """
        offset = integer("offset", offset)
        source = input_buffer("data", data)
        try:
            length = len(source)
            store = self._opened()
            if offset < 0 or offset + length > self._nbytes:
                self._fail(lib.CCMEM_ERR_RANGE, offset, length)
            if self._exposed is not None:
                # `data` may be a view of this store's ciphertext, which must not be overwritten
                # while it is read.
                start = int(ffi.cast("uintptr_t", source))
                if start < self._exposed[1] and start + length > self._exposed[0]:
                    source = _from_buffer(BYTES, ffi.buffer(source)[:])
            status = _store_write(store, offset, source, length)
        finally:
            del source  # see arguments
        if status != OK:
            self._fail(status, offset, length)
        return length

    def _read_with_care(self, out: Any, offset: Any) -> int:
        """Does read_into() again, step by step, for a call that did not reach the store: says what
        is wrong."""
        offset = integer("offset", offset)
        store = self._opened()
        with output_buffer("out", out) as target:
            length = len(target)
            if not 0 <= offset < 2**64:
                self._fail(lib.CCMEM_ERR_RANGE, offset, length)
            status = _store_read(store, offset, target, length)
        if status != OK:
            self._fail(status, offset, length)
        return length

    # ---- checking ----

    def verify(self) -> list[int]:
        """Checks every page against its tag, and its version against the copy of it, in several
        threads. Returns the numbers of the pages that do not match, in ascending order; an empty
        list if all are as they were written. Raises NotAuthenticatedError for a cipher without
        tags, FileReadError if pages of a sealed file cannot be read from it, ClosedError,
        ForkError."""
        return self._verify(0, self._nbytes)

    def _verify(self, offset: int, nbytes: int) -> list[int]:
        """Does verify() for the pages that hold `nbytes` bytes, all inside, from `offset` on."""
        store = self._opened()
        check_open(self)
        if not self.authenticated:
            raise errors.NotAuthenticatedError(
                f"Buffer {self._name!a} is encrypted with {self._cipher}, which has no tags to "
                f"check its pages against; use {' or '.join(sorted(AUTHENTICATED))}, which has."
            )
        if not nbytes:
            return []
        first = offset // self._page_size
        count = (offset + nbytes - 1) // self._page_size - first + 1
        bad = np.zeros(count, dtype=np.uint8)
        status = lib.ccmem_store_verify(
            store, first, count, _from_buffer(BYTES, bad, True), ffi.new("uint64_t *")
        )
        if status != OK:
            self._fail(status, offset, nbytes)
        found = [first + int(at) for at in np.flatnonzero(bad)]
        for page in found:
            lost = lost_page(store, self._name, page)
            try:
                if lost is not None:
                    raise lost
            finally:
                del lost  # a variable that its own traceback has would be a cycle
        return found

    # ---- freshness ----

    @property
    def fresh(self) -> bool:
        """True when a page that is put back from an earlier time, with its tag and version, raises
        IntegrityError: of a frozen buffer, one made with `fresh=True`, and pages in a sealed
        file. Never with a cipher without tags. Raises ClosedError."""
        place = lib.ccmem_store_freshness(self._opened())
        return self.authenticated and place != lib.CCMEM_FRESH_NOT

    def freeze(self) -> None:
        """Seals each page once more, under a random key that seals nothing else, and has no
        versions from then on: nothing that was ever in memory can be put back. Writes raise
        FrozenError until thaw(). Does nothing for a buffer that is frozen already, or whose pages
        lie in a sealed file, which were sealed once as well.

        Opens 1 MiB of plaintext at a time, in memory that is wiped, and takes the ciphertext's
        memory twice meanwhile; pages that were never written take memory from then on. Other
        threads may read meanwhile, and what they write before it is either frozen or raises
        FrozenError.

        Raises IntegrityError for a changed page, MappingConflictError while a mapping of mode "r+"
        is open, OutOfMemoryError, LockedMemoryError, ClosedError, ForkError; nothing has changed
        then."""
        with _changing.here():
            store = self._opened()
            check_open(self)
            if not self._writable:
                return
            check(lib.ccmem_store_end_writes(store, 1), BUFFER)
            try:
                if lib.ccmem_store_mapped(store) == lib.CCMEM_MAPPED_WRITABLE:
                    raise self._mapped_meanwhile("freeze()")
                replace_store(self, store, lib.CCMEM_FRESH_ONCE)
                self._frozen, self._writable = True, False
            except BaseException:
                lib.ccmem_store_end_writes(store, 0)
                raise

    def thaw(self) -> None:
        """Makes a frozen buffer writable: seals its pages once more, under another random key, with
        versions where they were before it was frozen. Does nothing for a buffer that is writable.
        Memory and other threads as in freeze().

        Raises ReadOnlyError for pages in a sealed file (copy() a tensor instead), IntegrityError,
        MappingConflictError while any mapping is open, OutOfMemoryError, LockedMemoryError,
        ClosedError, ForkError; nothing has changed then."""
        with _changing.here():
            store = self._opened()
            check_open(self)
            if self._writable:
                return
            if not self._frozen:
                self._check_writable()
            if lib.ccmem_store_mapped(store) != lib.CCMEM_UNMAPPED:
                raise self._mapped_meanwhile("thaw()")
            locked = lib.CCMEM_FRESH_LOCKED if self._fresh else lib.CCMEM_FRESH_NOT
            replace_store(self, store, locked)
            self._writable, self._frozen = True, False

    # ---- another key ----

    def rekey(
        self,
        key: Key | None = None,
        *,
        bytes_per_second: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Seals every page under another key, and wipes the old one: subkeys of `key`, or of a
        random key that nothing else has. `key` may be closed afterwards.

        Other threads may read and write meanwhile, and see no difference. Each page is moved as a
        whole, with its version going on; 64 KiB of plaintext exist at a time, in memory that is
        wiped. A write moves the pages that it touches by itself. Pages that are read wait for at
        most 64 KiB to be moved. A frozen buffer stays frozen: its pages are sealed in other memory
        under the new key, 1 MiB of plaintext at a time, which takes its ciphertext twice meanwhile.

        `bytes_per_second` makes it slower, `progress` is called with the bytes done and the total.
        Rekeying does the same in a thread.

        When it stops half-way (a damaged page, an interrupt, an exception of `progress`), all pages
        stay as usable as before, some under the new key, and both keys are kept. The next rekey()
        finishes that first. Without `key` it does no more; with a key it then moves all pages to
        that one.

        Raises IntegrityError for a changed page (write it anew as a whole, then call again),
        ReadOnlyError for pages in a sealed file, RekeyingError while another thread does the same,
        MappingConflictError for a frozen buffer with an open mapping, OutOfMemoryError,
        PlaintextBudgetError, LockedMemoryError, ClosedError, ForkError, ArgumentError."""
        rate = checked_rate(bytes_per_second)
        run(
            rekey_steps(self, key),
            total=self._ciphertext_bytes(),
            bytes_per_second=rate,
            progress=progress,
        )

    def key_use(self) -> KeyUse:
        """Returns how much the buffer's key has sealed, how far that is from what one key should
        seal, and whether a rekey() is unfinished. Warns with KeyUsageWarning from half of a bound
        on. The key of pages in an arena is that of the whole arena. Raises ReadOnlyError for pages
        in a sealed file, which are sealed once; ClosedError, ForkError."""
        store = self._opened()
        check_open(self)
        if not self._writable and not self._frozen:
            self._refuse_file("key_use()")
        return self._native(store).use().warn(self._name)

    def _native(self, store: Any) -> Native:
        return Native(
            "store",
            store,
            name=self._name,
            cipher=self._cipher,
            page_size=self._page_size,
            store=store,
        )

    def _ciphertext_bytes(self) -> int:
        return -(-self._nbytes // self._page_size) * self._page_size

    def _refuse_file(self, what: str) -> NoReturn:
        raise errors.ReadOnlyError(
            f"The pages of {self._name!a} lie in a sealed file that other processes may have "
            f"loaded too, so that {what} cannot change their key; give the file another key "
            f"(`pyccmem rotate --re-encrypt`) and load it again, or rekey a copy(key=...)."
        )

    def _rekey_steps(self, key: Key | None) -> Steps:
        """Does rekey() step by step."""
        store = self._opened()
        check_open(self)
        root = None if key is None else native_key(key)
        if self._writable:
            return self._moving_steps(store, root)
        if not self._frozen:
            self._refuse_file("rekey()")
        return self._frozen_steps(store, root)

    def _moving_steps(self, store: Any, root: Any) -> Steps:
        for count in self._native(store).steps(root):
            yield count
            if self._store is not store:
                # Its keys are wiped once nothing has the store any more, this generator too.
                store = self._opened()  # raises if it was closed
                if root is not None:  # freeze() has taken a random key
                    yield from self._frozen_steps(store, root)
                return

    def _frozen_steps(self, store: Any, root: Any) -> Steps:
        once = lib.CCMEM_FRESH_ONCE
        new = like_store(store, root, once, self._nbytes)
        yield from transfer_steps(self, 0, self._nbytes, new, put_of(once), self)
        with _changing.here():
            if lib.ccmem_store_mapped(store) != lib.CCMEM_UNMAPPED:
                raise self._mapped_meanwhile("rekey()")
            exchange(self, store, new)

    def _mapped_meanwhile(self, what: str) -> errors.MappingConflictError:
        return errors.MappingConflictError(
            f"A mapping of {self._name!a} is open, and {what} puts other pages in the place of "
            f"those that it shows; leave the mapping first."
        )

    # ---- as memory ----

    def map(
        self, *, window: int | str = "64MiB", mode: str = "r", system_calls: bool = True
    ) -> Mapping:
        """Returns a Mapping: a context manager that gives an ordinary array of uint8 over the
        buffer. At most `window` bytes of it lie in the clear at a time.

        Raises what EncryptedTensor.map() raises.
        """
        return Mapping(self, 0, (self._nbytes,), np.dtype(np.uint8), window, mode, system_calls)

    # ---- what it is ----

    def __len__(self) -> int:
        return self._nbytes

    @property
    def cipher(self) -> str:
        """Name of the cipher suite."""
        return self._cipher

    @property
    def authenticated(self) -> bool:
        """True when each page has a tag, so that a change raises IntegrityError."""
        return self._cipher in AUTHENTICATED

    @property
    def level(self) -> str:
        """The secret-memory level of the buffer's keys: "secretmem" or "mlock"."""
        return self._level

    @property
    def ciphertext(self) -> memoryview:
        """A read-only view of the stored bytes, in whole pages. It shows later writes as they
        happen and stays valid after close(). Raises ClosedError, ForkError."""
        store = self._opened()
        check_open(self)
        mapping = made(lib.ccmem_store_mapping, store, lib.ccmem_mapping_release)
        if mapping == ffi.NULL:
            check(lib.CCMEM_ERR_NOMEM, Call("a view of the ciphertext"))
        size = lib.ccmem_mapping_size(mapping)
        if size == 0:
            return memoryview(b"")
        data = lib.ccmem_mapping_data(mapping)
        start = int(ffi.cast("uintptr_t", data))
        self._exposed = (start, start + size)
        # The view keeps the array alive, and the array keeps the mapping alive, as an anchor()
        # does. Memory that was lent is not the mapping's, and is kept beside it.
        lent = getattr(store, "lent", None)
        if lent is not None:
            data = keeping(data, ffi.from_buffer(lent))
        array: Any = np.frombuffer(ffi.buffer(keeping(data, mapping), size), dtype=np.uint8)
        return memoryview(array).toreadonly()

    @property
    def versions(self) -> npt.NDArray[np.uint64]:
        """The version of each page now, as a read-only array of uint64; 0: never written. Raises
        ClosedError, ForkError."""
        store = self._opened()
        count = -(-self._nbytes // self._page_size)
        versions = np.zeros(count, dtype=np.uint64)
        if count:
            with ffi.from_buffer("uint64_t[]", versions, True) as target:
                status = lib.ccmem_store_versions(store, 0, count, target)
            check(status, Call("the versions", "buffer"))
        versions.setflags(write=False)
        return versions

    def stats(self) -> BufferStats:
        """Returns counts since the buffer was made: `reads`, `writes` (calls), `bytes_read`,
        `bytes_written`, `pages_opened`, `pages_sealed`, `tweak_hits`, `tweak_misses`, `retries`
        (reads repeated because of a concurrent write), `integrity_failures` (times a page did not
        match its tag); and `overhead_bytes`, the memory besides the pages. The counts are exact
        while no other thread uses the buffer. Buffers of one sealed file are counted together.
        Raises ClosedError, ForkError."""
        store = self._opened()
        counters = ffi.new("ccmem_stats *")
        check(lib.ccmem_store_stats(store, counters), Call("the counters", "buffer"))
        return BufferStats(
            reads=int(counters.reads),
            writes=int(counters.writes),
            bytes_read=int(counters.bytes_read),
            bytes_written=int(counters.bytes_written),
            pages_opened=int(counters.pages_opened),
            pages_sealed=int(counters.pages_sealed),
            tweak_hits=int(counters.tweak_hits),
            tweak_misses=int(counters.tweak_misses),
            retries=int(counters.retries),
            integrity_failures=int(counters.integrity_failures),
            overhead_bytes=int(lib.ccmem_store_overhead(store)),
        )

    # ---- lifetime ----

    def close(self) -> None:
        """Wipes the keys and frees the ciphertext, at once or when the last call that uses them
        returns. A view of `ciphertext` keeps the ciphertext, but nothing can decrypt it. May be
        repeated."""
        self._store = None
        self._anchor = None
        self._origin = None
        forget(self)

    def _description(self) -> str:
        kind = "" if self._writable else ", frozen" if self._frozen else ", read-only"
        kind += ", fresh" if self._fresh and self._writable else ""
        return (
            f"{self._name!a} of {self._nbytes} bytes, {self._cipher}, pages of {self._page_size}"
            f"{kind}"
        )


#: For modules whose pages lie in a file; see EncryptedBuffer._mapped() and _over().
over_file = EncryptedBuffer._mapped
over_store = EncryptedBuffer._over


def rekey_steps(buffer: EncryptedBuffer, key: Key | None) -> Steps:
    """Does EncryptedBuffer.rekey() step by step, each of at most about 1 MiB. Checks the arguments
    at once."""
    return buffer._rekey_steps(key)


def verify(buffer: EncryptedBuffer, offset: int, nbytes: int) -> list[int]:
    """Does EncryptedBuffer.verify() for the pages that hold `nbytes` bytes from `offset` on, which
    lie inside."""
    return buffer._verify(offset, nbytes)
