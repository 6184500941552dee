# SPDX-License-Identifier: Apache-2.0
"""Keeps the native handlers of SIGSEGV and SIGBUS in front of those that Python code sets later.

When signal.signal() sets a handler, the system calls a function of the interpreter that makes a
note and returns; the processor then repeats the access that raised the signal, for ever. The
handler of faulthandler takes every signal for the end of the program. A mapping or a sealed file
depends on our handlers, so these functions put ours in front again before they return. The handler
that was set still gets every signal that is not ours.
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

#: signal.signal() looks up _signal.signal at each call, so code that imported it earlier is
#: covered.
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
    """Keeps our handlers in front from now on, for good. A process that never calls this is left
    alone."""
    global _done
    if not _done:
        for module, name in _SETTERS:
            setattr(module, name, _leading(getattr(module, name)))
        _done = True
