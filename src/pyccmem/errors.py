# SPDX-License-Identifier: Apache-2.0
"""Every exception and warning that pyccmem raises on purpose.

Each exception also derives from the builtin that the same mistake raises elsewhere in Python, and
its text is a sentence that says what was wrong and what to do::

    PyccmemError
    ├── ArgumentError (ValueError)            a value outside what is documented
    │   ├── InvalidKeyError                   length or contents of a key, a salt, a passphrase
    │   │   └── ContextError (IntegrityError)     a key that was wrapped for something else
    │   ├── PageSizeError                     not a power of two from 4096 to 65536
    │   ├── RangeError (IndexError)           offset or length outside the buffer
    │   ├── IndexingError (IndexError)        an index that a tensor's shape does not allow
    │   ├── NoAddressError (NotImplementedError)  the address of an encrypted tensor's plain data
    │   ├── FileRequestError (SafetensorError)    a tensor or device that a file lacks
    │   │   └── FileIndexError (IndexingError)    an index outside a tensor of a file
    │   ├── StateDictError (RuntimeError)     tensors that share memory, or do not fit a model
    │   ├── ConfigError                       an environment variable's value
    │   └── TierError                         unknown tier, or one this processor cannot run
    ├── ArgumentTypeError (TypeError)         an argument of the wrong type
    │   ├── BufferTypeError                   not a buffer of plain bytes
    │   │   ├── ReadOnlyOutputError           an output that cannot be written to
    │   │   └── NonContiguousError (BufferError)  bytes that do not lie in one piece
    │   ├── NotPicklableError                 pickling or copying what must stay in one process
    │   └── TensorTypeError (ValueError)      something that is not a dense tensor, to be saved
    ├── ClosedError (ValueError)              used after close()
    │   └── ClosedFileError (SafetensorError) a safetensors file used after close()
    ├── ForkError (RuntimeError)              used in a process forked from its owner
    ├── FileReadError (OSError)               a file that cannot be opened or read
    │   ├── MissingFileError (FileNotFoundError)  a file that is not there
    │   └── KeyFileError                      a key file that cannot be opened or read
    │       └── MissingKeyFileError (MissingFileError)  a key file that is not there
    ├── FileWriteError (OSError)              a file that cannot be written
    ├── SafetensorError                       what safetensors raises its error of this name for
    │   └── FileFormatError (ValueError)      a file whose contents are not what they must be
    ├── ProcessAccessError (OSError)          a process whose memory cannot be read
    │   ├── NoProcessError (ProcessLookupError)   no such process, or it has ended
    │   └── NoPermissionError (PermissionError)   this user may not read its memory
    ├── MissingPackageError (ImportError)     an optional package that is not installed
    ├── DemoError (RuntimeError)              the demo could not run to its end
    ├── OutOfMemoryError (MemoryError)        the system refused memory
    │   └── LockedMemoryError                 RLIMIT_MEMLOCK leaves no room for another locked page
    ├── PlaintextBudgetError (MemoryError)    the plaintext budget or a window leaves no room
    ├── FaultMechanismError (RuntimeError)    the system offers no way to fill memory on a touch
    ├── RekeyingError (RuntimeError)          another thread moves the pages to another key
    ├── MappingConflictError (RuntimeError)   bytes of another mapping, one of the two writable
    ├── GuardError (RuntimeError)             a part of guard() that was required and does not hold
    ├── PostureError (RuntimeError)           a process that is not protected as required
    ├── KeyServiceError (RuntimeError)        a key service that cannot be used
    │   ├── KeyUnavailableError               not reached until the deadline, or for too long
    │   └── KeyAccessError                    reached, and it refused
    ├── SecretMemoryError (RuntimeError)      the required secret-memory level is not available
    ├── EntropyError (RuntimeError)           the system's random generator failed
    ├── VersionExhaustedError (RuntimeError)  a page has no unused version left under its key
    ├── ReadOnlyError (ValueError)            a write to pages of a sealed file
    │   └── FrozenError                       a write to a frozen buffer or tensor
    ├── IntegrityError (ValueError)           a page or a message that does not match its tag
    ├── NotAuthenticatedError (RuntimeError)  a check of tags where the cipher has none
    └── SelfTestError (RuntimeError)          a known-answer test failed

    PyccmemWarning (UserWarning)
    ├── PortableTierWarning                   no accelerated tier: correct, but slow
    ├── ForkWarning                           a fork while stores are open that a child cannot use
    ├── UnsharedFileWarning                   a sealed file that processes cannot share in memory
    ├── PlainTensorsWarning                   tensors of a model that stay plain
    ├── FormatWarning                         weights that got another block format than asked for
    ├── KeyUsageWarning                       a key that has sealed half of what it should
    ├── OpenedCacheWarning                    an encrypted cache that has to be opened
    └── InsecureKeyFileWarning                other users of the system can read the key file
"""

from __future__ import annotations

import errno
from typing import Any, TypeVar

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "BufferTypeError",
    "ClosedError",
    "ClosedFileError",
    "ConfigError",
    "ContextError",
    "DemoError",
    "EntropyError",
    "FaultMechanismError",
    "FileFormatError",
    "FileIndexError",
    "FileReadError",
    "FileRequestError",
    "FileWriteError",
    "ForkError",
    "ForkWarning",
    "FormatWarning",
    "FrozenError",
    "GuardError",
    "IndexingError",
    "InsecureKeyFileWarning",
    "IntegrityError",
    "InvalidKeyError",
    "KeyAccessError",
    "KeyFileError",
    "KeyServiceError",
    "KeyUnavailableError",
    "KeyUsageWarning",
    "LockedMemoryError",
    "MappingConflictError",
    "MissingFileError",
    "MissingKeyFileError",
    "MissingPackageError",
    "NoAddressError",
    "NoPermissionError",
    "NoProcessError",
    "NonContiguousError",
    "NotAuthenticatedError",
    "NotPicklableError",
    "OpenedCacheWarning",
    "OutOfMemoryError",
    "PageSizeError",
    "PlainTensorsWarning",
    "PlaintextBudgetError",
    "PortableTierWarning",
    "PostureError",
    "ProcessAccessError",
    "PyccmemError",
    "PyccmemWarning",
    "RangeError",
    "ReadOnlyError",
    "ReadOnlyOutputError",
    "RekeyingError",
    "SafetensorError",
    "SecretMemoryError",
    "SelfTestError",
    "StateDictError",
    "TensorTypeError",
    "TierError",
    "UnsharedFileWarning",
    "VersionExhaustedError",
]


class PyccmemError(Exception):
    """Base of every exception that pyccmem raises on purpose."""


class ArgumentError(PyccmemError, ValueError):
    """An argument of the right type whose value is outside what is documented."""


class SafetensorError(PyccmemError):
    """Base of the exceptions for what safetensors raises its own SafetensorError for: a file that
    is not as the format demands, a tensor that a file does not have, a file used after its
    close()."""


class InvalidKeyError(ArgumentError):
    """A key, salt or passphrase of the wrong length or contents, or an XTS key with K1 == K2."""


class PageSizeError(ArgumentError):
    """A page size that is not a power of two from 4096 to 65536 bytes."""


class RangeError(ArgumentError, IndexError):
    """An offset or a length that reaches outside the buffer. Nothing was read or written."""


class IndexingError(ArgumentError, IndexError):
    """An index that the tensor's shape does not allow, or that is no index. Nothing was read or
    written."""


class ConfigError(ArgumentError):
    """An environment variable of pyccmem with an invalid value."""


class TierError(ArgumentError):
    """An unknown tier name, or a tier that this processor cannot run."""


class FileRequestError(ArgumentError, SafetensorError):
    """A tensor, framework, device, backend or dtype that a safetensors file, or pyccmem, does not
    have."""


class FileIndexError(FileRequestError, IndexingError):
    """An index outside a tensor of a safetensors file, or of a kind that its slices do not take."""


class StateDictError(ArgumentError, RuntimeError):
    """Tensors of a model that share data where they may not, have none, or do not fit the model."""


class ArgumentTypeError(PyccmemError, TypeError):
    """An argument of the wrong type."""


class TensorTypeError(ArgumentTypeError, ValueError):
    """Something that is not a dense tensor with data, where one is to be saved. safetensors raises
    a ValueError for it."""


class NoAddressError(ArgumentError, NotImplementedError):
    """The address of an encrypted tensor's plain data, which has none. As a NotImplementedError it
    tells libraries that compare addresses that there is nothing to compare."""


class BufferTypeError(ArgumentTypeError):
    """Data or an output that is not a buffer of plain bytes."""


class ReadOnlyOutputError(BufferTypeError):
    """An output buffer that cannot be written to."""


class NonContiguousError(BufferTypeError, BufferError):
    """A buffer whose bytes do not lie in one piece in C order."""


class NotPicklableError(ArgumentTypeError):
    """Pickling or copying an object whose secrets must not leave it."""


class ClosedError(PyccmemError, ValueError):
    """A key or buffer used after its close()."""


class ClosedFileError(ClosedError, SafetensorError):
    """A safetensors file used after its close()."""


class ForkError(PyccmemError, RuntimeError):
    """A key or buffer used in a process forked from the one that made it."""


class _SystemError(PyccmemError, OSError):
    """Base of the exceptions for a failed system call."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns what pickle writes. OSError's own leaves out what of_system() sets."""
        set_later = {"errno": self.errno, "filename": self.filename}
        known = {name: value for name, value in set_later.items() if value is not None}
        return type(self), self.args, {**self.__dict__, **known}

    def of_system(self: _Failure, number: int | None, filename: Any = None) -> _Failure:
        """Returns the exception itself, with the system's number for the failure and the file's
        name. If the number says that the file is not there, the exception becomes one that
        FileNotFoundError catches, where its class has such a class. For the line that raises it: an
        exception held by a variable of its own traceback is a cycle."""
        self.errno = number
        missing = _MISSING.get(type(self))
        if missing is not None and number == errno.ENOENT:
            self.__class__ = missing
        if filename is not None:
            self.filename = filename
        return self


_Failure = TypeVar("_Failure", bound=_SystemError)


class FileReadError(_SystemError):
    """A file that cannot be opened or read, or a page of a sealed file that was there when the file
    was loaded and is not any more. `errno` and `filename` are set where known."""

    def __str__(self) -> str:
        # OSError's own text leaves out the sentence once `filename` is set.
        return str(self.args[0]) if self.args else ""


class KeyFileError(FileReadError):
    """A key file that cannot be opened or read; `errno` and `filename` are set where known."""


class MissingFileError(FileReadError, FileNotFoundError):
    """A file that is not there."""


class MissingKeyFileError(KeyFileError, MissingFileError):
    """A key file that is not there."""


#: The classes for files that are not there, by those for files that cannot be read.
_MISSING: dict[type, type] = {FileReadError: MissingFileError, KeyFileError: MissingKeyFileError}


class FileWriteError(_SystemError):
    """A file that cannot be written; `errno` and `filename` are set where known. What was there
    before is unchanged."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FileFormatError(SafetensorError, ValueError):
    """A file whose contents are not what its format demands. Nothing was taken from it."""


class ProcessAccessError(_SystemError):
    """A process whose memory cannot be read; `errno` is set where known."""


class NoProcessError(ProcessAccessError, ProcessLookupError):
    """There is no such process, or it ended while its memory was read."""


class NoPermissionError(ProcessAccessError, PermissionError):
    """This user may not read the memory of that process."""


class MissingPackageError(PyccmemError, ImportError):
    """A package that only this operation needs is not installed."""


class DemoError(PyccmemError, RuntimeError):
    """The demo could not run to its end; the sentence says why."""


class OutOfMemoryError(PyccmemError, MemoryError):
    """The system refused memory."""


class LockedMemoryError(OutOfMemoryError):
    """RLIMIT_MEMLOCK leaves no room for another page of locked memory."""


class PlaintextBudgetError(PyccmemError, MemoryError):
    """The budget of set_plaintext_budget(), or the window of a mapping, leaves no room."""


class FaultMechanismError(PyccmemError, RuntimeError):
    """The system has no mechanism to fill memory when it is touched, or not the one asked for, or
    refuses the thread or the signals that it needs."""


class RekeyingError(PyccmemError, RuntimeError):
    """A rekey() while another thread moves the same pages to another key."""


class MappingConflictError(PyccmemError, RuntimeError):
    """A mapping of bytes that another mapping covers, one of the two being writable."""


class GuardError(PyccmemError, RuntimeError):
    """Raised by guard(strict=True) when a part that was asked for does not hold."""


class PostureError(PyccmemError, RuntimeError):
    """A process that is not protected as posture(require=...) asks. The sentence names each line
    that is not, with what to do."""

    #: These lines, and the Posture that has them all; empty and None in a copy made by its text.
    lines: tuple[Any, ...]
    posture: Any

    def __init__(self, message: str, lines: tuple[Any, ...] = (), posture: Any = None) -> None:
        super().__init__(message)
        self.lines, self.posture = lines, posture


class KeyServiceError(PyccmemError, RuntimeError):
    """A key service that cannot be used, or an answer of it that makes no sense."""


class KeyUnavailableError(KeyServiceError):
    """A key service that was not reached until its deadline; or a key that was held for as long as
    its max_age allows, and could not be fetched again."""


class KeyAccessError(KeyServiceError):
    """A key service that was reached and refused: no permission, a key that was revoked or deleted,
    a wrong PIN, a machine that is not in the state a key is bound to."""


class SecretMemoryError(PyccmemError, RuntimeError):
    """The required level of secret memory is not available on this system."""


class EntropyError(PyccmemError, RuntimeError):
    """The system's random generator failed."""


class VersionExhaustedError(PyccmemError, RuntimeError):
    """A page that cannot be written: it has no unused version left under its key, or its version
    and the copy of it are both damaged, so that nothing tells which versions are unused."""


class ReadOnlyError(PyccmemError, ValueError):
    """A write to a buffer or tensor over the pages of a sealed file. Other processes may have
    loaded the file too, and two that wrote the same page would use a nonce twice. Nothing has
    changed."""


class FrozenError(ReadOnlyError):
    """A write to a buffer or tensor that is frozen, or being frozen by another thread: each of its
    pages is sealed once. thaw() makes it writable. Nothing has changed, but for pages that a write
    of several had finished when another thread froze them."""


class IntegrityError(PyccmemError, ValueError):
    """A page, a message or a wrapped key that does not match its tag: it was changed. None of it
    was returned; other pages can still be read."""

    #: The buffer's name. This and the next three are None for a message or a wrapped key.
    name: str | None
    #: The page's number, the version under which it was opened, the offset of its first byte in the
    #: buffer.
    page: int | None
    version: int | None
    offset: int | None

    def __init__(
        self,
        message: str,
        *,
        name: str | None = None,
        page: int | None = None,
        version: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.name, self.page, self.version, self.offset = name, page, version, offset


class ContextError(InvalidKeyError, IntegrityError):
    """A wrapped key whose context is not the one it is used in: it was wrapped for another file or
    another purpose, or the context was changed. Nothing was opened."""

    #: The context that was asked for, and the one that was found; None where it is not known.
    wanted: dict[str, str] | None
    found: dict[str, str] | None

    def __init__(
        self,
        message: str,
        *,
        wanted: dict[str, str] | None = None,
        found: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.wanted, self.found = wanted, found


class NotAuthenticatedError(PyccmemError, RuntimeError):
    """A check of tags with a cipher that has none, so that a change cannot be noticed."""


class SelfTestError(PyccmemError, RuntimeError):
    """A known-answer test gave a wrong answer: nothing that this processor encrypts can be
    trusted."""

    #: What selftest() would have returned, with "failed" in it; empty when start-up failed.
    result: dict[str, Any]

    def __init__(self, message: str, result: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = {} if result is None else result


class PyccmemWarning(UserWarning):
    """Base of every warning that pyccmem issues."""


class PortableTierWarning(PyccmemWarning):
    """The portable constant-time code runs because there is no accelerated tier: correct, but
    slow."""


class ForkWarning(PyccmemWarning):
    """A process forks while buffers or tensors are open whose key the child cannot fetch again:
    using them in the child will raise ForkError."""


class UnsharedFileWarning(PyccmemWarning):
    """The file system of a sealed file has no shared mappings: processes that load the file may
    each have a copy of its pages in memory."""


class PlainTensorsWarning(PyccmemWarning):
    """Copies of weights that stay plain in a model whose parameters and buffers are encrypted."""


class FormatWarning(PyccmemWarning):
    """Weights that got another block format than was asked for, since their rows are no whole
    number of its blocks."""


class KeyUsageWarning(PyccmemWarning):
    """A key has sealed half of what one key should seal; rekey() gives the data another one."""


class OpenedCacheWarning(PyccmemWarning):
    """An encrypted key-value cache that is opened, since something else than pyccmem's attention
    reads it."""


class InsecureKeyFileWarning(PyccmemWarning):
    """Other users of the system can read the key file."""
