# SPDX-License-Identifier: Apache-2.0
"""Gives all sealed files of a directory another key, as a whole.

    .MODEL.pyccmem-rotation/        beside MODEL, while it lasts
        journal.json                what is done, and for what
        new/                        becomes MODEL
        old/                        what MODEL was; only without RENAME_EXCHANGE

Every file of the new directory is written, or linked if it is not sealed, and synced; then the two
directories change places in one step (renameat2 with RENAME_EXCHANGE). Who opened the old files
keeps them; who opens files by their names finds all old ones before that step, and all new ones
after it. The next rotation goes on with one that was killed: what the journal notes as done, and is
so, is kept. docs/design/rekeying.md says why.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors
from ..binding import lib
from ..binding.owned import Descriptor
from ..files.atomic import TEMPORARY_PREFIX, AtomicFile, set_mode, sync_directory
from ..safetensors import inspect_file, is_sealed, reencrypt_file, rewrap_file
from .pins import directory_pin
from .publish import copy, write_error
from .scan import GGUF_SUFFIX, SEALED_GGUF_SUFFIX, SUFFIX, read_error, source_of

__all__ = ["Rotated", "rotate_directory"]

Key = Any  # what pyccmem.safetensors takes
Progress = Callable[[str, int, int], object]

_FORMAT = 1
_JOURNAL = "journal.json"
_SEALED = (SUFFIX, GGUF_SUFFIX, SEALED_GGUF_SUFFIX)

#: Errors by which a system or a file system says that it cannot exchange two names.
_NO_EXCHANGE = frozenset((errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM))

#: Errors by which a file system says that it has no hard links, or none of this file.
_NO_LINK = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES))


@dataclass(frozen=True)
class Rotated:
    """What rotate_directory() did."""

    #: The pins of the sealed files by their paths within the directory, for `expect`.
    pins: dict[str, str]
    #: The pin of the directory as a whole.
    pin: str
    #: False when all files opened with the new key already, so that nothing was done.
    changed: bool
    #: True when what a rotation before had begun was gone on with.
    resumed: bool


class _Journal:
    """What is done, on the disk after each step."""

    def __init__(self, work: Path, mode: str) -> None:
        self.path, self.mode = work / _JOURNAL, mode
        self.ready = False
        self.place: list[int] = []  # device and inode of the new directory
        self.files: dict[str, dict[str, str]] = {}
        self.found = self._read()

    def _read(self) -> bool:
        """Returns True if a journal of such a rotation was there."""
        try:
            kept = json.loads(self.path.read_bytes())
            if kept["format"] != _FORMAT or kept["mode"] != self.mode:
                return False
            self.ready, self.place = bool(kept["ready"]), [int(n) for n in kept["place"]]
            self.files = {
                str(name): {"from": str(pins["from"]), "to": str(pins["to"])}
                for name, pins in kept["files"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.ready, self.place, self.files = False, [], {}
            return False
        return True

    def write(self) -> None:
        text = {
            "format": _FORMAT,
            "mode": self.mode,
            "ready": self.ready,
            "place": self.place,
            "files": self.files,
        }
        with AtomicFile(self.path, mode=0o600) as file:
            file.write_at(json.dumps(text).encode(), 0)
            file.commit()


def rotate_directory(
    directory: str | os.PathLike[str],
    old: Key,
    new: Key,
    *,
    re_encrypt: bool = False,
    context: Any = None,
    new_context: Any = None,
    progress: Progress | None = None,
) -> Rotated:
    """Makes all sealed files of `directory` open with `new` instead of `old`: all of them at once,
    or, whatever happens, none.

    By default the files' data keys are wrapped anew, and nothing is decrypted (see
    pyccmem.safetensors.rewrap_file()): who has kept an old file, and `old`, can read it still.
    With `re_encrypt` each file gets a new data key and file id, and its pages are sealed once more,
    1 MiB of plaintext at a time, in memory that is wiped (see reencrypt_file()). `old` and `new`
    may then be the same key. `context` and `new_context` are as for rewrap_file(). `progress` is
    called with a file's path, its number, and how many there are.

    Everything else in the directory is linked into the new one, or copied where there are no hard
    links: hidden files and links, too. The new directory needs room for the sealed files beside the
    old ones. Processes that have files of the old directory open, or mapped, keep them until they
    close them; their working directory, if it is this one, is the old directory. `directory` may be
    a link to one, which then stays.

    A call that is killed, or fails, leaves the directory as it was, and beside it a hidden one,
    ".NAME.pyccmem-rotation", from which the next call goes on; if the directories had changed
    places already, it only removes the old one. If all files open with `new`, and not with `old`,
    there is nothing to do.

    The step is one system call (Linux 3.15; ext4, XFS, btrfs, tmpfs, overlayfs and others have it).
    Where the file system has it not, the old directory is renamed, and then the new one: for a
    moment there is no directory, and a call that is killed in that moment leaves none, until the
    next call ends it.

    Raises ArgumentError for an unusable directory, or one that another call rotates now;
    FileFormatError for weights in it that are not sealed, FileReadError, FileWriteError, also when
    something was put into the directory meanwhile, and what rewrap_file() or reencrypt_file()
    raises."""
    target = _target(directory)
    work = target.with_name(f".{target.name}.pyccmem-rotation")
    mode = "re-encrypt" if re_encrypt else "rewrap"
    try:
        with _alone(work):
            journal = _Journal(work, mode)
            _recover(target, work, journal)
            if not target.is_dir():
                source_of(directory)  # raises
            sealed = _sealed_files(target)
            resumed = journal.found
            if _moved(target, journal):
                _remove(work)
                return _outcome(target, new, sealed, True, resumed)
            if _is_done(target, sealed, old, new):
                _remove(work)
                return _outcome(target, new, sealed, False, resumed)
            made = work / "new"
            if not journal.found:
                _clear(made)
            copied = _build(target, made, journal)
            make = reencrypt_file if re_encrypt else _rewrapped
            for number, path in enumerate(sealed):
                if progress is not None:
                    progress(path, number, len(sealed))
                _seal(
                    target / path,
                    made / path,
                    path,
                    journal,
                    old,
                    new,
                    lambda source, goal: make(
                        source, old, new, dst=goal, context=context, new_context=new_context
                    ),
                    context,
                )
            if progress is not None:
                progress("", len(sealed), len(sealed))
            _finish(target, made, journal)
            _check_unchanged(target, made, sealed, journal, copied)
            pins = {path: journal.files[path]["to"] for path in sealed}
            _put(target, work, made)
            _remove(work)
    except OSError as error:
        if isinstance(error, errors.PyccmemError):
            raise
        raise write_error(target, error) from None
    return Rotated(pins, directory_pin(pins), True, resumed)


def _rewrapped(source: Path, old: Key, new: Key, **options: Any) -> str:
    return rewrap_file(source, old, new, **options)


def _target(directory: str | os.PathLike[str]) -> Path:
    """Returns where the directory lies. It may be missing, if a rotation was killed. Raises
    ArgumentError."""
    try:
        usable = isinstance(directory, (str, os.PathLike)) and bool(os.fspath(directory))
        target = Path(os.path.realpath(directory)) if usable else source_of(directory)
    except ValueError:  # a null character
        target = source_of(directory)
    work = target.with_name(f".{target.name}.pyccmem-rotation") if target.name else target
    if not (target.is_dir() or work.is_dir()):
        source_of(directory)
    if os.path.ismount(target):
        raise errors.ArgumentError(
            f"{str(target)!r} is where a file system is mounted, so that no other directory can "
            f"take its place; name a directory within it, or rewrap the files one by one with "
            f"`pyccmem rewrap`."
        )
    return target


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Makes the directory for the work, and locks it; in the end removes it, if it is empty. Raises
    ArgumentError, FileWriteError."""
    while True:
        work.mkdir(mode=0o700, exist_ok=True)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with Descriptor.open(work, flags) as descriptor:
            _lock(work, descriptor)
            if not _is_at(work, descriptor):
                continue  # who had the lock before has removed it
            _check_owner(work, descriptor)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    work.rmdir()
            return


def _lock(work: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.ArgumentError(
            f"Another process rotates the keys of this directory now; {str(work)!r} is "
            f"locked. Wait until it has finished."
        ) from None
    except OSError:  # a file system without locks
        pass


def _is_at(path: Path, descriptor: int) -> bool:
    """Returns True if the open directory is still the one of this name."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _check_owner(work: Path, descriptor: int) -> None:
    """Raises ArgumentError for a directory that somebody else made, who could change what is built
    in it: where many may make directories, as in /tmp."""
    if os.fstat(descriptor).st_uid not in (os.geteuid(), work.parent.stat().st_uid):
        raise errors.ArgumentError(
            f"{str(work)!r} belongs to another user, who could change what is made there; remove "
            f"it, or have that user end the rotation that it is of."
        )


def _sealed_files(target: Path) -> list[str]:
    """Returns the paths of all weights within the directory. Raises FileFormatError for one that is
    not sealed, FileReadError, ArgumentError for a directory without any."""
    found: list[str] = []
    for folder, names, files in os.walk(target, onerror=_unreadable):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(folder, name)
            if name.startswith(".") or not name.endswith(_SEALED):
                continue
            if not is_sealed(path):
                raise errors.FileFormatError(
                    f"{path!r} is not sealed, and would stay in the clear; seal it, or move it out "
                    f"of the directory, first."
                )
            found.append(os.path.relpath(path, target))
    if not found:
        raise errors.ArgumentError(
            f"{str(target)!r} has no sealed file; name a directory that `pyccmem encrypt` made."
        )
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise read_error(error) from None


# ---- steps ---------------------------------------------------------------------------------------


def _build(target: Path, made: Path, journal: _Journal) -> set[str]:
    """Makes the new directory, with everything but the sealed files. What is there of a rotation
    before is made anew, but for the sealed files. Returns the paths of what could not be linked,
    and was copied."""
    copied = set[str]()
    made.mkdir(mode=0o700, exist_ok=True)
    place = made.stat()
    if journal.place != [place.st_dev, place.st_ino]:
        journal.place, journal.files = [place.st_dev, place.st_ino], {}
    journal.ready = False
    journal.write()
    wanted = set()
    for folder, names, files in os.walk(target, onerror=_unreadable):
        here = Path(folder).relative_to(target)
        for name in list(names):
            wanted.add(here / name)
            if (target / here / name).is_symlink():
                names.remove(name)
                _link(target / here / name, made / here / name)
            else:
                (made / here / name).mkdir(mode=0o700, exist_ok=True)
        hidden = any(part.startswith(".") for part in here.parts)
        for name in files:
            if name.startswith(TEMPORARY_PREFIX):
                continue
            wanted.add(here / name)
            if (hidden or name.startswith(".") or not name.endswith(_SEALED)) and not _link(
                target / here / name, made / here / name
            ):
                copied.add(os.fspath(here / name))
    for folder, names, files in os.walk(made, topdown=False):
        here = Path(folder).relative_to(made)
        for name in files:
            if here / name not in wanted:
                os.unlink(made / here / name)
        for name in names:
            if here / name not in wanted:
                _clear(made / here / name)
    return copied


def _link(source: Path, goal: Path) -> bool:
    """Puts the same file, or a copy of it, at another place, where there may be one. Returns True
    for the same file."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(goal)
    if source.is_symlink():
        os.symlink(os.readlink(source), goal)
        return False
    try:
        os.link(source, goal)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        copy(source, goal)
        return False
    return True


def _seal(
    source: Path,
    goal: Path,
    path: str,
    journal: _Journal,
    old: Key,
    new: Key,
    make: Callable[[Path, Path], str],
    context: Any,
) -> None:
    """Makes one file of the new directory, unless it is there, made of this very file."""
    begun = inspect_file(source).pin
    done = journal.files.get(path)
    if done is not None and done["from"] == begun and _opens(goal, new, done["to"]):
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(goal)
    pin = make(source, goal)
    there = os.stat(source)
    with contextlib.suppress(OSError):  # only root may give files away
        os.chown(goal, there.st_uid, there.st_gid)
    journal.files[path] = {"from": begun, "to": pin}
    journal.write()


def _opens(path: Path, key: Key, pin: str) -> bool:
    """Returns True for a file that the key opens, and that is the one of this pin."""
    try:
        return inspect_file(path, key, expect=pin).pin == pin
    except errors.PyccmemError:
        return False


def _finish(target: Path, made: Path, journal: _Journal) -> None:
    """Gives the new directories the modes, owners and times of the old ones, and has all of it on
    the disk."""
    for folder, _, _ in os.walk(made, topdown=False):
        here = os.path.relpath(folder, made)
        there = os.stat(target / here)
        set_mode(folder, stat.S_IMODE(there.st_mode))
        with contextlib.suppress(OSError):  # only root may give files away
            os.chown(folder, there.st_uid, there.st_gid)
        sync_directory(os.path.join(folder, ""))
    journal.ready = True
    journal.write()


def _check_unchanged(
    target: Path, made: Path, sealed: list[str], journal: _Journal, copied: set[str]
) -> None:
    """Raises FileWriteError if the directory is not what the new one was made of: what somebody has
    put there meanwhile would be lost."""
    found, built = (dict(_paths(folder)) for folder in (target, made))
    changed = sorted(found.keys() ^ built.keys())
    for path in found.keys() & built.keys():
        if path in sealed:
            if inspect_file(target / path).pin != journal.files[path]["from"]:
                changed.append(path)
        elif stat.S_ISLNK(built[path].st_mode):
            if found[path].st_size != built[path].st_size:
                changed.append(path)
        elif path not in copied and found[path].st_ino != built[path].st_ino:
            changed.append(path)
    if changed:
        raise errors.FileWriteError(
            f"{changed[0]!r} in {str(target)!r} was added, removed or replaced while the key was "
            f"rotated, and would be lost; nothing has changed. Rotate again, when nobody writes "
            f"there."
        )


def _paths(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the path within `folder`, and the state, of all that is no directory."""
    for here, names, files in os.walk(folder, onerror=_unreadable):
        links = [name for name in names if os.path.islink(os.path.join(here, name))]
        for name in (*files, *links):
            path = os.path.join(here, name)
            if not name.startswith(TEMPORARY_PREFIX):
                yield os.path.relpath(path, folder), os.lstat(path)


def _put(target: Path, work: Path, made: Path) -> None:
    """Puts the new directory in the place of the old one."""
    number = lib.ccmem_exchange(os.fsencode(made), os.fsencode(target))
    if number in _NO_EXCHANGE:
        os.rename(target, work / "old")
        os.rename(made, target)
    elif number:
        raise OSError(number, os.strerror(number), str(target))
    sync_directory(str(target))
    sync_directory(str(made))


def _recover(target: Path, work: Path, journal: _Journal) -> None:
    """Ends a rotation that was killed between the two renames."""
    if journal.ready and not os.path.lexists(target):
        os.rename(work / "new", target)
        sync_directory(str(target))


def _moved(target: Path, journal: _Journal) -> bool:
    """Returns True if the directory is the one that the journal's rotation made."""
    there = target.stat()
    return journal.ready and journal.place == [there.st_dev, there.st_ino]


def _is_done(target: Path, sealed: list[str], old: Key, new: Key) -> bool:
    """Returns True if all files open with the new key, and the first of them not with the old
    one."""
    try:
        inspect_file(target / sealed[0], old)
    except errors.InvalidKeyError:
        pass
    else:
        return False
    for path in sealed:
        try:
            inspect_file(target / path, new)
        except errors.InvalidKeyError:
            return False
    return True


def _outcome(target: Path, new: Key, sealed: list[str], changed: bool, resumed: bool) -> Rotated:
    pins = {path: inspect_file(target / path, new).pin for path in sealed}
    return Rotated(pins, directory_pin(pins), changed, resumed)


def _clear(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return
    shutil.rmtree(path)


def _remove(work: Path) -> None:
    """Removes what is left. The journal goes last: it tells that the work is done."""
    for name in ("new", "old"):
        _clear(work / name)
    for path in sorted(work.iterdir(), key=lambda path: path.name == _JOURNAL):
        _clear(path)
