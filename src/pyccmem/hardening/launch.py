# SPDX-License-Identifier: Apache-2.0
"""Starts a command with all that must be set before a program begins, and begins in it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import errors
from ..console.command import complain
from . import library
from .guarding import guard
from .settings import VARIABLE, Settings

__all__ = ["begin", "environment", "execute"]

#: As env(1) and shells have it.
EXIT_CANNOT_RUN, EXIT_NOT_FOUND = 126, 127

_STARTUP = str(Path(__file__).with_name("startup"))

#: Without the library: glibc overwrites freed blocks, and threads keep none.
_TUNABLES = {"glibc.malloc.perturb": "255", "glibc.malloc.tcache_count": "0"}


def _before(first: str, rest: str | None) -> str:
    """Returns a path list that begins with `first`, once."""
    words = [word for word in (rest or "").split(os.pathsep) if word and word != first]
    return os.pathsep.join([first, *words])


def environment(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment `given`, changed so that what is started with it is guarded, and what
    that starts. Set twice, it stays as it is."""
    made = dict(given)
    made[VARIABLE] = settings.text()
    wiper = library.path()
    if wiper is not None:
        # The loader takes spaces and colons in it for ends of names.
        made["LD_PRELOAD"] = _before(str(wiper), given.get("LD_PRELOAD", "").replace(" ", ":"))
    else:
        tunables = dict(
            word.partition("=")[::2]
            for word in given.get("GLIBC_TUNABLES", "").split(":")
            if "=" in word
        )
        tunables.update(_TUNABLES)
        made["GLIBC_TUNABLES"] = ":".join(f"{name}={value}" for name, value in tunables.items())
    # malloc_debug, which finds faults, overwrites what is freed too.
    if given.get("PYTHONMALLOC") not in ("malloc", "malloc_debug"):
        made["PYTHONMALLOC"] = "malloc"
    made["PYTHONPATH"] = _before(_STARTUP, given.get("PYTHONPATH"))
    return made


def execute(settings: Settings, words: Sequence[str]) -> int:
    """Replaces this process by a command. Returns an exit status only if that failed."""
    wiper = library.path()
    if wiper is not None and any(character in str(wiper) for character in " :"):
        raise errors.ConfigError(
            f"{str(wiper)!r} has a space or a colon, which LD_PRELOAD cannot name; install pyccmem "
            f"in another folder."
        )
    made = environment(settings, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these signals, and a program that it becomes would go on ignoring them.
    for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(words[0], list(words), made)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        complain(f"{words[0]!r} cannot be run: {reason}.")
        return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_CANNOT_RUN


def begin() -> None:
    """Calls guard() as PYCCMEM_GUARD says. Ends the process if it asks for what cannot be had."""
    try:
        settings = Settings.of_text(os.environ.get(VARIABLE, ""))
        guard(
            debuggable=settings.debuggable,
            swap=settings.swap,
            fork=settings.fork,
            strict=settings.strict,
        )
    except errors.PyccmemError as error:
        complain(str(error))
        sys.stderr.flush()
        os._exit(2)  # SystemExit would be reported as a failure of the interpreter's start
