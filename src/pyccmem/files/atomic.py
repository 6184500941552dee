# SPDX-License-Identifier: Apache-2.0
"""Writes a file that appears under its name whole or not at all, even if its writer is killed.

The contents go into a temporary file of the same directory, which is synced to the disk and renamed
over the target; then the directory is synced. A writer that is killed leaves the target as it was,
and a temporary file whose name begins with ".pyccmem-": the next writer of the same target removes
it. A living writer holds a lock (flock) on its temporary file, so that no other writer removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from typing import Any

from .. import errors
from ..binding.closing import Closing
from ..binding.owned import Descriptor

__all__ = [
    "TEMPORARY_PREFIX",
    "AtomicFile",
    "refused",
    "set_mode",
    "sync_directory",
    "synchronize",
]

#: Names of temporary files begin with this.
TEMPORARY_PREFIX = ".pyccmem-"


def refused(path: str, error: Exception) -> errors.FileWriteError:
    """Returns the exception for a system call that failed while a file was written."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    answer = errors.FileWriteError(
        f"The file {path!r} cannot be written: {why}; name a place this user may write to, with "
        f"room for the file. What was there before is unchanged."
    )
    return answer.of_system(error.errno, path) if isinstance(error, OSError) else answer


def _there_already(path: str) -> errors.FileWriteError:
    return errors.FileWriteError(
        f"{path!r} is there already; name another file, or replace it with overwrite=True."
    ).of_system(errno.EEXIST, path)


#: The errors by which a file system refuses an operation that it does not know, or never allows.
_UNSUPPORTED = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES))


def set_mode(file: int | str | os.PathLike[str], mode: int, *, private: bool = False) -> None:
    """Sets the mode of an open file or a path (chmod(2)). CIFS, exFAT and the like refuse this,
    because all their files have one mode. The refusal is an error only with `private`, if others
    can read or write more than `mode` allows. Raises OSError."""
    try:
        if isinstance(file, int):
            os.fchmod(file, mode)
        else:
            os.chmod(file, mode)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        there = stat.S_IMODE(os.stat(file).st_mode)
        if private and there & 0o066 & ~mode:
            raise OSError(
                error.errno,
                f"its file system gives all files mode {there:04o}, under which others can read it",
            ) from None


def synchronize(descriptor: int) -> None:
    """Calls fsync(2), and accepts a file system that has nothing to sync. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def sync_directory(path: str) -> None:
    """Syncs the directory of a new file, so that its name is on the disk. Raises FileWriteError."""
    try:
        with Descriptor.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY) as opened:
            synchronize(opened)
    except OSError as error:
        # Some file systems cannot open a directory, or have no fsync() for it, and a user may be
        # allowed to write to a directory but not to read it. Nothing more can be done for the name
        # then.
        if error.errno in _UNSUPPORTED or error.errno == errno.EBADF:
            return
        raise errors.FileWriteError(
            f"The file {path!r} was written, but its directory could not be synced "
            f"({error.strerror}), so that it may be gone after a loss of power; check the disk."
        ).of_system(error.errno, path) from None


class AtomicFile(Closing):
    """Writes the new contents of `path`, in a `with` block that ends with commit().

    Without commit() nothing is left behind. The file gets `mode`, by default the mode of the file
    it replaces, or else `new_mode`. `private`: fails if others could read the file because the file
    system refuses that mode. Follows a symbolic link. Raises FileWriteError; without `overwrite`
    also for a file that exists: at once, or in commit() if it has appeared meanwhile.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: int | None = None,
        *,
        new_mode: int = 0o600,
        private: bool = False,
        overwrite: bool = True,
    ) -> None:
        self._overwrite, self._private = overwrite, private
        try:
            name = os.fsdecode(path)
        except TypeError:
            raise errors.ArgumentTypeError(
                f"A path must be a file's name, not {type(path).__name__}."
            ) from None
        try:
            self.path = os.path.realpath(name)
            found = os.stat(self.path)
        except FileNotFoundError:
            self._mode = new_mode
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            raise refused(name, error) from None
        else:
            if not stat.S_ISREG(found.st_mode):
                raise errors.FileWriteError(
                    f"{name!r} is there and is not a regular file; name another place for the file."
                )
            if not overwrite:
                raise _there_already(name)
            self._mode = stat.S_IMODE(found.st_mode) & 0o777
        if mode is not None:
            self._mode = mode
        self._directory, base = os.path.split(self.path)
        digest = hashlib.sha256(os.fsencode(base)).hexdigest()[:16]
        self._prefix = f"{TEMPORARY_PREFIX}{digest}-"
        self._temporary = ""
        self._opened: Descriptor | None = None

    def __enter__(self) -> AtomicFile:
        self._remove_left_behind()
        try:
            while not self._create():
                pass
        except OSError as error:
            raise refused(self.path, error) from None
        except BaseException:
            self.close()
            raise
        return self

    def _create(self) -> bool:
        """Makes the temporary file and locks it. Returns False if another writer removed it between
        the two steps, taking it for one that was left behind."""
        name = f"{self._prefix}{secrets.token_hex(8)}.tmp"
        self._temporary = os.path.join(self._directory, name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._opened = Descriptor.open(self._temporary, flags, 0o600)
        # A file system may have no locks; then no writer removes what others left behind, either.
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(self.descriptor).st_nlink:
            return True
        self._opened.close()
        return False

    def _remove_left_behind(self) -> None:
        """Removes temporary files of this target whose writers are gone."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as found:
            names = [entry.path for entry in found if entry.name.startswith(self._prefix)]
            for name in names:
                with (
                    contextlib.suppress(OSError),
                    Descriptor.open(name, os.O_RDWR | os.O_NOFOLLOW) as descriptor,
                ):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name)

    @property
    def descriptor(self) -> int:
        """The open temporary file."""
        return self._opened.number if self._opened is not None else -1

    def write_at(self, data: Any, offset: int) -> None:
        """Writes all of `data`, a contiguous buffer of bytes, to `offset`."""
        with memoryview(data) as view, view.cast("B") as flat:
            at = 0
            try:
                while at < len(flat):
                    with flat[at:] as rest:
                        at += os.pwrite(self.descriptor, rest, offset + at)
            except OSError as error:
                raise refused(self.path, error) from None

    def commit(self) -> None:
        """Puts the contents into the place of the file, on the disk."""
        try:
            set_mode(self.descriptor, self._mode, private=self._private)
            synchronize(self.descriptor)
            if self._overwrite or not self._linked():
                os.rename(self._temporary, self.path)
                self._temporary = ""
        except FileExistsError:
            raise _there_already(self.path) from None
        except OSError as error:
            raise refused(self.path, error) from None
        sync_directory(self.path)

    def _linked(self) -> bool:
        """Links the target's name to the temporary file, because a rename would replace a file that
        appeared since __init__(). Returns False on a file system without hard links, where a rename
        has to do. Raises FileExistsError."""
        try:
            os.link(self._temporary, self.path)
        except FileExistsError:
            raise
        except OSError:
            if os.path.lexists(self.path):
                raise FileExistsError from None
            return False
        return True

    def close(self) -> None:
        """Removes the temporary file if it was not committed. May be repeated."""
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
        if self._opened is not None:
            self._opened.close()
