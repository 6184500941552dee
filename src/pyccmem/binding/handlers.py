# SPDX-License-Identifier: Apache-2.0
"""Keeps the native handlers of SIGSEGV and SIGBUS in front of those that Python code sets later.

A handler that signal.signal() sets is, for the system, a function of the interpreter that makes a
note and returns; the access that raised the signal is then repeated, for ever. faulthandler's takes
every signal for the end of the program. So where a mapping or a sealed file depends on our
handlers, these functions put them in front again before they return: what was set gets every signal
that is not ours.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import faulthandler
import functools
import os
from collections.abc import Callable
from typing import Any

from .. import errors
from .native import ffi, lib

__all__ = ["stay_in_front"]

#: signal.signal() looks up this one at each call, so that whoever has imported it is served too.
_SETTERS = ((_signal, "signal"), (faulthandler, "enable"), (faulthandler, "disable"))

_done = False


def _leading(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        finally:
            if not lib.ccmem_signals_lead():
                reason = os.strerror(ffi.errno)
                raise errors.FaultMechanismError(
                    f"The handler is set, but the ones that answer touches of open mappings and "
                    f"lost pages of sealed files cannot be put in front of it ({reason}); close "
                    f"the mappings before they are touched, or map with PYCCMEM_FAULT=uffd, which "
                    f"needs no signals."
                )

    return call


def stay_in_front() -> None:
    """From now on, for good: nothing happens in a process that needs no handlers of ours."""
    global _done
    if not _done:
        for module, name in _SETTERS:
            setattr(module, name, _leading(getattr(module, name)))
        _done = True
