# SPDX-License-Identifier: Apache-2.0
"""Publishes a directory that appears under its name whole or not at all, and copies files into
it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .. import errors
from ..binding.owned import Descriptor
from ..files.atomic import set_mode, sync_directory, synchronize
from .scan import read_error

__all__ = ["copy", "make_folders", "published", "write_error", "write_json"]

#: Bytes of a file that are copied at a time.
_PIECE = 1 << 20


@contextmanager
def published(dst: str | os.PathLike[str], source: Path) -> Iterator[Path]:
    """Makes a temporary directory that becomes `dst` at the end of the block, or is removed if the
    block fails."""
    target = Path(dst)
    if os.path.lexists(target):
        raise errors.ArgumentError(f"{str(target)!r} exists already; name a new directory.")
    parent = target.resolve().parent
    if not parent.is_dir():
        raise errors.ArgumentError(f"{str(parent)!r} is not a directory; make it first.")
    if parent == source.resolve() or source.resolve() in parent.parents:
        raise errors.ArgumentError(
            f"{str(target)!r} lies within {str(source)!r}; name a directory outside of it."
        )
    new = None
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=parent))
        yield new
        _copy_mode(source, new)
        for folder, _, _ in os.walk(new):
            _synchronize(Path(folder))
        # Fails if a directory that is not empty has appeared meanwhile.
        os.rename(new, parent / target.name)
        _synchronize(parent)
    except BaseException as error:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, errors.PyccmemError):
            raise write_error(target, error) from None
        raise


def write_error(path: Path, error: OSError) -> errors.FileWriteError:
    """Returns the exception for a system call that failed while a file or directory was written."""
    return errors.FileWriteError(
        f"{str(path)!r} cannot be written: {error.strerror or error}; check the disk and its "
        f"permissions."
    ).of_system(error.errno, error.filename)


def make_folders(source: Path, new: Path, folders: Sequence[Path]) -> None:
    """Makes the folders of `source` in `new`. Raises OSError."""
    for folder in folders:
        (new / folder).mkdir()
        _copy_mode(source / folder, new / folder, stat.S_IRWXU)


def _pieces(path: Path) -> Generator[bytes]:
    """Yields the contents of a file in pieces. Raises FileReadError, so that a failed copy names
    the right file."""
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
    except OSError as error:
        raise read_error(error, path) from None


def copy(path: Path, target: Path) -> None:
    """Copies a file and its mode. Raises OSError, FileReadError."""
    with target.open("wb") as file, closing(_pieces(path)) as pieces:
        for piece in pieces:
            file.write(piece)
    _copy_mode(path, target)
    _synchronize(target)


def write_json(target: Path, contents: Any, original: Path) -> None:
    """Writes a file with the mode of `original`, whose place it takes."""
    target.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    _copy_mode(original, target)
    _synchronize(target)


def _copy_mode(source: Path, target: Path, more: int = 0) -> None:
    """Gives `target` the mode of `source` with the bits of `more`, if its file system has modes.
    Raises OSError."""
    set_mode(target, stat.S_IMODE(source.stat().st_mode) | more)


def _synchronize(path: Path) -> None:
    """Syncs the file or directory to the disk. Raises OSError, FileWriteError."""
    if path.is_dir():
        sync_directory(os.path.join(path, ""))
        return
    with Descriptor.open(path, os.O_RDONLY) as descriptor:
        synchronize(descriptor)
