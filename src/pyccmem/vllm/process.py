# SPDX-License-Identifier: Apache-2.0
"""What each of vLLM's processes does for its prompts and answers: guard(), the posture that an
environment variable requires, and no prompts in logs."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any

from .. import errors
from ..assessment import posture
from ..hardening import guard
from ..hardening.settings import Settings

__all__ = ["GUARD", "LOG", "REQUIRE", "hide_prompts", "protect_process", "require_posture"]

#: Options of guard(), as in swap=check,debuggable, or "off".
GUARD = "PYCCMEM_VLLM_GUARD"
#: Levels and lines of the posture, as in no-dumps,freed-memory.
REQUIRE = "PYCCMEM_VLLM_REQUIRE"
#: "prompts" lets vLLM log what --enable-log-requests asks for.
LOG = "PYCCMEM_VLLM_LOG"

_done: int | None = None


def protect_process() -> None:
    """Calls guard() once in a process, and require_posture(). Raises ConfigError, GuardError,
    PostureError."""
    global _done
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


def require_posture() -> str:
    """Returns the level that this process reaches. Raises PostureError unless it has what
    PYCCMEM_VLLM_REQUIRE asks for, ArgumentError for a name that does not exist."""
    wanted = [word.strip() for word in os.environ.get(REQUIRE, "").split(",")]
    return str(posture(require=[word for word in wanted if word]).level)


def hide_prompts() -> None:
    """Has vLLM log requests without prompts, their ids and answers. May be repeated."""
    from vllm.entrypoints.serve.utils.request_logger import RequestLogger

    if os.environ.get(LOG) == "prompts" or hasattr(RequestLogger.log_inputs, "pyccmem"):
        return
    inputs = RequestLogger.log_inputs

    names = inspect.signature(inputs)

    @functools.wraps(inputs)
    def log_inputs(*args: Any, **kwargs: Any) -> None:
        given = names.bind(*args, **kwargs).arguments
        inputs(**{**given, "prompt": None, "prompt_token_ids": None, "prompt_embeds": None})

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        """Logs nothing: all of it would be of the request's text."""

    log_inputs.pyccmem = True  # type: ignore[attr-defined]
    RequestLogger.log_inputs = log_inputs
    RequestLogger.log_request_body = nothing
    RequestLogger.log_outputs = nothing
