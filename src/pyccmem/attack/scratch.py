# SPDX-License-Identifier: Apache-2.0
"""A private directory for dumps, of which nothing is left."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["private_directory", "wipe"]

_PIECE = 1 << 20


@contextmanager
def private_directory(parent: str | None) -> Iterator[Path]:
    """Makes a directory of this user alone (0700), whose files are wiped at the end."""
    with tempfile.TemporaryDirectory(prefix="pyccmem-attack-", dir=parent) as name:
        path = Path(name)
        try:
            yield path
        finally:
            for folder, _, files in os.walk(path):
                for file in files:
                    wipe(Path(folder, file))


def wipe(path: Path) -> None:
    """Overwrites a file with zeros and removes it. What a file system has kept elsewhere (a
    journal, a snapshot, another block of a flash disk) is not reached."""
    with contextlib.suppress(FileNotFoundError):
        try:
            with open(path, "r+b", buffering=0) as file:
                left = os.fstat(file.fileno()).st_size
                while left > 0:
                    left -= file.write(bytes(min(_PIECE, left)))
        finally:
            path.unlink()
