# SPDX-License-Identifier: Apache-2.0
"""What each of vLLM's processes does for its prompts and answers: guard(), and the posture that an
environment variable requires."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

from .. import errors
from ..assessment import posture
from ..hardening import guard
from ..hardening.settings import Settings
from ..process import set_num_threads

__all__ = [
    "GUARD",
    "REQUIRE",
    "protect_process",
    "require_posture",
    "use_vllm_threads",
]

#: Options of guard(), as in swap=check,debuggable, or "off".
GUARD = "PYCCMEM_VLLM_GUARD"
#: Levels and lines of the posture, as in no-dumps,freed-memory.
REQUIRE = "PYCCMEM_VLLM_REQUIRE"

#: Seconds between looks whether the process that started this one is there, and seconds that this
#: one has to end when it is not.
_LOOK, _LEAVE = 1, 10

_done: int | None = None
_watched: int | None = None


def protect_process() -> None:
    """Calls guard() once in a process, and require_posture(), and has the process end with the one
    that started it. Raises ConfigError, GuardError, PostureError."""
    global _done
    _end_with_parent()
    if _done == os.getpid():
        return
    text = os.environ.get(GUARD, "")
    if text != "off":
        try:
            options = Settings.of_text(text)
        except errors.ConfigError:
            raise errors.ConfigError(
                f"{GUARD} is {text!r}; it must be options of guard() as in swap=check,debuggable, "
                f"or off."
            ) from None
        guard(
            debuggable=options.debuggable,
            swap=options.swap,
            fork=options.fork,
            strict=options.strict,
        )
    require_posture()
    _done = os.getpid()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone. vLLM's engine, with the key and the
    weights, would stay for good when its server is killed."""
    global _watched
    parent = multiprocessing.parent_process()  # None while a new process still gets its arguments
    if parent is None or _watched == os.getpid():
        return
    _watched = os.getpid()

    def watch() -> None:
        # Not parent.sentinel: a forked process holds its other end itself (CPython 3.11).
        while os.getppid() == parent.pid:
            time.sleep(_LOOK)
        os.kill(os.getpid(), signal.SIGTERM)  # vLLM takes its leave
        time.sleep(_LEAVE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="pyccmem: end with parent", daemon=True).start()


def require_posture() -> str:
    """Returns the level that this process reaches. Raises PostureError unless it has what
    PYCCMEM_VLLM_REQUIRE asks for, ArgumentError for a name that does not exist."""
    wanted = [word.strip() for word in os.environ.get(REQUIRE, "").split(",")]
    return str(posture(require=[word for word in wanted if word]).level)


def use_vllm_threads() -> None:
    """Has this worker's products use as many threads as vLLM's own would, which it tells OpenMP,
    unless PYCCMEM_NUM_THREADS says how many. The worker's affinity may be one processor when vLLM
    binds each thread to its own."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) and not os.environ.get("PYCCMEM_NUM_THREADS"):
        set_num_threads(int(told))
