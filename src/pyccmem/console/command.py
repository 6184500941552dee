# SPDX-License-Identifier: Apache-2.0
"""Starts and ends the command `pyccmem`, also when it is interrupted or the package cannot
start."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

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

#: Exit status for SelfTestError.
EXIT_FAILED = 1

EXIT_INTERRUPTED = 130


def _is_the_command() -> bool:
    """Returns True in `pyccmem ...`, `python -m pyccmem ...` and the like, also in the demos'
    processes (`python -m pyccmem.demo.child`), and already before the command's code runs."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == "pyccmem":
        return True
    # While runpy imports the package of `-m pyccmem`, argv[0] is still "-m".
    options = sys.orig_argv[1 : -len(sys.argv) + 1 or None]
    if sys.argv[:1] != ["-m"] or not options:
        return False
    module = options[-1].removeprefix("-m")
    return module == "pyccmem" or module.startswith("pyccmem.")


#: True while the system answers interrupts, as long as no command is carried out.
_quiet = False


def start_quietly() -> None:
    """Lets the system end the command without a traceback if an interrupt comes while the package
    is imported, when no work has begun. carry_out() lets Python answer interrupts again."""
    global _quiet
    if _is_the_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _quiet = True  # noted now, because runpy changes argv once it has found the module
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Ended(KeyboardInterrupt):
    """A signal that asks the command to end, so that it undoes what it has begun, as at an
    interrupt."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


#: What a service manager, kill(1) and a terminal that closes send.
_ENDINGS = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)


@contextlib.contextmanager
def _ends_in_order() -> Iterator[None]:
    """Lets signals that would end the process at once raise Ended in a `with` block; only the
    first, as often two come together. One that is ignored, as under nohup(1), stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where no signal may be handled
        return
    handled = [number for number in _ENDINGS if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _frame: object) -> None:
        for other in handled:
            signal.signal(other, signal.SIG_IGN)
        raise Ended(number)

    try:
        for number in handled:
            signal.signal(number, end)
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def carry_out(work: Callable[[], int]) -> int:
    """Does the work of a command and returns its exit status. An interrupt gives EXIT_INTERRUPTED,
    SIGTERM and SIGHUP 128 and their number, all three once the work has undone what it has begun.
    A standard output that cannot be written is an error in one line, but not a pipe whose reader
    has gone."""
    _open_streams()
    try:
        if _quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with _ends_in_order():
            try:
                return work()
            finally:
                # Covers what argparse prints before it exits, too.
                sys.stdout.flush()
    except Ended as ended:
        return 128 + ended.number
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
        if _quiet:  # an interrupt during the interpreter's end is not reported either
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def complain(text: str) -> None:
    """Prints a line on standard error, if that is possible."""
    with contextlib.suppress(OSError):
        print(f"pyccmem: {text}", file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Opens streams that the shell has closed, and makes characters that a stream cannot encode
    harmless."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Makes the interpreter's last flush of standard output succeed."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_with(error: Exception) -> None:
    """Ends the process with one line on standard error if it is the command `pyccmem`.

    The command's code lies in the package, so a wrong PYCCMEM_TIER fails before the command can
    catch that.
    """
    if _is_the_command():
        complain(str(error))
        raise SystemExit(EXIT_ERROR) from None
