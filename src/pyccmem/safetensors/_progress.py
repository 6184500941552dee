# SPDX-License-Identifier: Apache-2.0
"""Reports the progress of a long operation: by a bar on standard error, or the caller's
function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import errors
from ..console.terminal import bar_console

__all__ = ["Progress", "check_progress", "reporting"]

#: A function that is called with the bytes done so far and the total.
Progress = Callable[[int, int], object]

#: The least size in bytes of a file that gets a bar by default.
_LARGE = 256 << 20


def check_progress(progress: bool | Progress | None) -> None:
    """Raises ArgumentTypeError unless `progress` is None, True, False or a function."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise errors.ArgumentTypeError(
            f"progress must be None, True, False or a function, not {type(progress).__name__}."
        )


@contextmanager
def reporting(
    progress: bool | Progress | None, path: str | os.PathLike[str], total: int
) -> Iterator[Progress]:
    """Gives the function to call after each step of the work on `path`, which is the block."""
    if callable(progress):
        yield progress
        return
    bar = None
    if progress or (progress is None and total >= _LARGE):
        try:
            console = bar_console(wanted=bool(progress))
            bar = None if console is None else _bar(console)
        except ImportError:
            if progress:
                raise errors.MissingPackageError(
                    "The progress bar needs the package rich, which is not installed; "
                    "pip install 'pyccmem[cli]', or pass progress=False."
                ) from None
    if bar is None:
        yield lambda done, total: None
        return
    with bar:
        task = bar.add_task(os.path.basename(os.fspath(path)), total=total)
        yield lambda done, total: bar.update(task, completed=done)


def _bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
