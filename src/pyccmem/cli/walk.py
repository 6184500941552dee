# SPDX-License-Identifier: Apache-2.0
"""Finds the files for a command: those named, and those in the directories named."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .. import errors
from .directory import directory_function

__all__ = ["Found"]

#: GGUF files are found plain, too, so that a command can say that they are not sealed.
_SUFFIXES = (".safetensors", ".gguf", ".gguf.sealed")


class Found:
    """The files, and whether a directory was named. If so, errors of single files become lines of a
    table, and the command goes on with the other files."""

    def __init__(self, names: Sequence[str]) -> None:
        """Finds the files. Raises ArgumentError for a directory without such files or with
        links to other directories, FileReadError for one that cannot be read."""
        self.paths: list[str] = []
        self._names = list(names)
        for name in names:
            self.paths += _safetensors(name) if os.path.isdir(name) else [name]
        self.several = len(self.paths) > 1 or any(map(os.path.isdir, names))

    def expected(self, expect: str | None, key: Any, context: Any) -> dict[str, str | None]:
        """Returns what `expect` of --expect says of each file, by its path: the pin of one file, or
        of the one directory that was named. Raises IntegrityError for a directory in another state,
        ArgumentError for a pin that is not of what was named."""
        if expect is None or not self.several:
            return dict.fromkeys(self.paths, expect)
        if len(self._names) > 1 or not directory_function("is_directory_pin")(expect):
            self.refuse("--expect FILE_ID:GENERATION")
        directory = self._names[0]
        pins = directory_function("expected_pins")(directory, key, expect, context=context)
        return {path: pins[_within(path, directory)] for path in self.paths}

    def refuse(self, option: str) -> None:
        """Raises ArgumentError if a directory was named, for an option that is about one file."""
        if self.several:
            raise errors.ArgumentError(f"{option} is for one file; name it, not its directory.")


def _within(path: str, directory: str) -> str:
    return os.path.relpath(path, directory).replace(os.sep, "/")


def _safetensors(directory: str) -> list[str]:
    """Returns all safetensors and GGUF files below a directory, as encrypt_directory() would
    find them, in order."""
    found: list[str] = []
    for folder, names, files in os.walk(directory, onerror=_unreadable):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in names:
            if os.path.islink(os.path.join(folder, name)):
                raise errors.ArgumentError(
                    f"{os.path.join(folder, name)!r} is a link to a directory, which may lead "
                    f"anywhere; name the directory itself, beside or in place of {directory!r}."
                )
        for name in sorted(files):
            if name.endswith(_SUFFIXES) and not name.startswith("."):
                found.append(os.path.join(folder, name))
    if not found:
        raise errors.ArgumentError(
            f"{directory!r} has no *.safetensors and no *.gguf.sealed file; name a sealed file, or "
            f"a directory that `pyccmem encrypt` made."
        )
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise errors.FileReadError(
        f"{str(error.filename)!r} cannot be read: {error.strerror}; check its permissions."
    ).of_system(error.errno, error.filename) from None
