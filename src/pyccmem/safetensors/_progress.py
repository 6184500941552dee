# SPDX-License-Identifier: Apache-2.0
"""How far a long operation has come: a bar on standard error, or the caller's function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .. import errors
from ..console.terminal import bar_console

__all__ = ["Progress", "check_progress", "reporting"]

#: Called with the bytes done so far and the bytes there are.
Progress = Callable[[int, int], object]

#: Files from this size on are worth a progress bar.
_LARGE = 256 << 20


def check_progress(progress: bool | Progress | None) -> None:
    """Raises ArgumentTypeError for anything but None, True, False or a function."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise errors.ArgumentTypeError(
            f"progress must be None, True, False or a function, not {type(progress).__name__}."
        )


@contextmanager
def reporting(
    progress: bool | Progress | None, path: str | os.PathLike[str], total: int
) -> Iterator[Progress]:
    """The function to call after each step, for as long as the work on `path` lasts."""
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
