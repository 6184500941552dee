# SPDX-License-Identifier: Apache-2.0
"""A file that appears under its name whole or not at all, whatever becomes of its writer.

The contents go into a temporary file of the same directory, which is synced to the disk and renamed
over the target; then the directory is synced. A writer that is killed leaves the target as it was,
and a temporary file whose name begins with ".pyccmem-": the next writer of the same target removes
it. A temporary file is locked (flock) by its living writer, so that none removes another's.
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

#: How the names of temporary files begin.
TEMPORARY_PREFIX = ".pyccmem-"


def refused(path: str, error: Exception) -> errors.FileWriteError:
    """Returns what a failed system call on the way to a written file means."""
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


#: How a file system says that it does not know an operation, or lets nobody do it.
_UNSUPPORTED = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES))


def set_mode(file: int | str | os.PathLike[str], mode: int, *, private: bool = False) -> None:
    """chmod(2) of an open file or a path, which CIFS, exFAT and the like refuse, since all their
    files have one mode. With `private` that is a failure if others can then read or write more than
    `mode` lets them; without it never. Raises OSError."""
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
    """fsync(2), but for a file system that has nothing to sync. Raises OSError."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def sync_directory(path: str) -> None:
    """Has the name of a new file on the disk. Raises FileWriteError."""
    try:
        with Descriptor.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY) as opened:
            synchronize(opened)
    except OSError as error:
        # Some file systems open no directory, or know no fsync() of it. Nor can a directory be
        # opened that this user may write to and not read. Nobody can do more for the name then.
        if error.errno in _UNSUPPORTED or error.errno == errno.EBADF:
            return
        raise errors.FileWriteError(
            f"The file {path!r} was written, but its directory could not be synced "
            f"({error.strerror}), so that it may be gone after a loss of power; check the disk."
        ).of_system(error.errno, path) from None


class AtomicFile(Closing):
    """The new contents of `path`, written in a `with` block that ends with commit().

    Without commit() nothing is left behind. The file gets `mode`; by default that of the file it
    replaces, or `new_mode`. `private`: nobody else may be able to read it, even where the file
    system refuses that mode. A symbolic link is followed. Raises FileWriteError: without
    `overwrite` also for a file that is there, at once or, when it appeared meanwhile, by commit().
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
        """Makes the temporary file and locks it. False when another writer took it for one that
        was left behind, between the two steps."""
        name = f"{self._prefix}{secrets.token_hex(8)}.tmp"
        self._temporary = os.path.join(self._directory, name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._opened = Descriptor.open(self._temporary, flags, 0o600)
        # A filesystem may have no locks; then nobody can remove what is left behind, either.
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
        """Makes the contents the file's, on the disk."""
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
        """Gives the temporary file the target's name as well: a rename would replace what appeared
        since __init__(). False on a filesystem without hard links, where it has to do. Raises
        FileExistsError."""
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
        """Gives up what was not committed. May be repeated."""
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
        if self._opened is not None:
            self._opened.close()
