# SPDX-License-Identifier: Apache-2.0
"""How the command `pyccmem` starts and ends: also when it is interrupted, or the package itself
cannot start."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable

__all__ = [
    "EXIT_ERROR",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "carry_out",
    "complain",
    "end_with",
    "start_quietly",
]

#: Exit status for wrong usage and for every exception of pyccmem.errors but SelfTestError.
EXIT_ERROR = 2

#: ... and for that: a self-test failed.
EXIT_FAILED = 1

EXIT_INTERRUPTED = 130


def _is_the_command() -> bool:
    """Returns True in `pyccmem ...`, `python -m pyccmem ...` and the like, which the demos'
    processes are (`python -m pyccmem.demo.child`), also before the command's code runs."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == "pyccmem":
        return True
    # While runpy imports the package of `-m pyccmem`, argv[0] is still "-m".
    options = sys.orig_argv[1 : -len(sys.argv) + 1 or None]
    if sys.argv[:1] != ["-m"] or not options:
        return False
    module = options[-1].removeprefix("-m")
    return module == "pyccmem" or module.startswith("pyccmem.")


#: Whether interrupts are the system's to answer while nothing is carried out.
_quiet = False


def start_quietly() -> None:
    """While the package is imported an interrupt ends the command without a traceback: as the
    system does it, since nothing has been begun. carry_out() has Python answer it again."""
    global _quiet
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _quiet = True  # argv is another one later, when runpy has found the module
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def carry_out(work: Callable[[], int]) -> int:
    """Does the work of a command; its exit status. An interrupt is EXIT_INTERRUPTED, and a standard
    output that takes no more an error in one line; but a reader of a pipe that has gone has
    enough."""
    _open_streams()
    try:
        if _quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return work()
        finally:
            # What argparse prints before it exits, too.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        what = "The output" if error.filename is None else repr(os.fsdecode(error.filename))
        complain(f"{what} cannot be written: {error.strerror or error}.")
        return EXIT_ERROR
    finally:
        if _quiet:  # the interpreter's own end is nothing to interrupt either
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def complain(text: str) -> None:
    """Says something on standard error, where that is possible."""
    with contextlib.suppress(OSError):
        print(f"pyccmem: {text}", file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Has something to print to where the shell has closed a stream, and no character that a stream
    cannot encode end the command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Has the interpreter's last flush of standard output succeed."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_with(error: Exception) -> None:
    """Ends the process with one line on standard error if it is the command `pyccmem`.

    Its code lies in the package, so a wrong PYCCMEM_TIER fails before any of it can catch that.
    """
    if _is_the_command():
        complain(str(error))
        raise SystemExit(EXIT_ERROR) from None
