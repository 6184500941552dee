# SPDX-License-Identifier: Apache-2.0
"""Warns if a sealed file's pages are not shared, because its file system cannot do that."""

from __future__ import annotations

import warnings

from .. import errors
from ..binding import lib

__all__ = ["warn_if_unshared"]

_WHAT = {
    lib.CCMEM_FILE_PRIVATE: (
        "are mapped privately; processes that load it may not share them in the page cache"
    ),
    lib.CCMEM_FILE_READ: (
        "are read into memory; each process that loads it takes that memory and that time"
    ),
}

_warned = False


def warn_if_unshared(path: str) -> None:
    """Warns, once in a process, when the pages that this thread has just mapped are not shared."""
    global _warned
    what = _WHAT.get(lib.ccmem_store_map_way())
    if what is None or _warned:
        return
    _warned = True
    warnings.warn(
        f"The file system of {path!a} has no shared mappings, so the pages of the file {what}. "
        f"Copy it to a local disk to share them, or load it with mmap=False, which reads it "
        f"without this warning.",
        errors.UnsharedFileWarning,
        stacklevel=2,
    )
