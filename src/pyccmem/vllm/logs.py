# SPDX-License-Identifier: Apache-2.0
"""No prompts and answers in logs.

vLLM's modules put them into messages of many kinds: of requests and answers where options ask for
it, and, without being asked, of what a parser does not understand or a template refuses. So each
record of a module that handles them loses its arguments when it is made, before any handler, filter
or formatter has it.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["LOG", "hide_prompts"]

#: "prompts" lets vLLM log what it is asked to.
LOG = "PYCCMEM_VLLM_LOG"

_ALL = 1 << 30

#: Loggers whose messages may have what users say and are told, with those below them, and how many
#: arguments of a message are kept: such as name a request. None: those below it have nothing.
_KEPT: Mapping[str, int | None] = {
    "uvicorn.error": _ALL,  # what an exception says is hidden
    "vllm.entrypoints": 0,
    "vllm.entrypoints.cli": None,
    "vllm.entrypoints.launchers": None,
    "vllm.entrypoints.openai.api_server": None,
    "vllm.entrypoints.openai.models": None,
    "vllm.entrypoints.serve.exception_handling.handlers": 1,
    "vllm.entrypoints.serve.utils": None,
    "vllm.entrypoints.serve.utils.request_logger": 1,
    "vllm.inputs": 0,
    "vllm.logging_utils.dump_input": 0,
    "vllm.multimodal": 0,
    "vllm.parser": 0,
    "vllm.reasoning": 0,
    "vllm.renderers": 0,
    "vllm.sampling_params": 0,
    "vllm.tokenizers": 0,
    "vllm.tool_parsers": 0,
    "vllm.v1.core.sched": 0,
    "vllm.v1.engine.async_llm": 1,
    "vllm.v1.engine.detokenizer": 0,
    "vllm.v1.engine.input_processor": 0,
    "vllm.v1.engine.output_processor": 0,
    "vllm.v1.sample": 0,
    "vllm.v1.structured_output": 0,
}

_HIDDEN = "[hidden]"

#: A place for an argument in a message.
_PLACE = re.compile(r"%(?:%|(?:\(\w+\))?[-#0 +]*\d*(?:\.\d+)?[diouxXeEfFgGcrsa])")


class Hidden(Exception):
    """Stands in a log for an exception, whose type it names."""


def hide_prompts() -> None:
    """Has vLLM log without prompts, their ids and answers, unless PYCCMEM_VLLM_LOG says otherwise.
    May be repeated."""
    make = logging.getLogRecordFactory()
    if hasattr(make, "pyccmem"):
        return

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        kept = _kept(record.name or "")
        if kept is not None and os.environ.get(LOG) != "prompts":
            _hide(record, kept)
        return record

    made.pyccmem = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(made)


@functools.cache
def _kept(name: str) -> int | None:
    """Returns how many arguments a logger's messages keep; None: they stay as they are."""
    while name and name not in _KEPT:
        name = name.rpartition(".")[0]
    return _KEPT.get(name)


def _hide(record: logging.LogRecord, kept: int) -> None:
    """Takes out of a record what may be of a user's."""
    if kept != _ALL:
        given = record.args if isinstance(record.args, tuple) else ()
        text = str(record.msg)
        if record.args:
            text = _told(text, given[:kept])
        elif record.exc_info and ":" in text:  # put together from it where it was logged
            text = f"{text.partition(':')[0]}: {_HIDDEN}"
        record.msg, record.args = text, ()
    if record.exc_info and record.exc_info[0] is not None:
        kind, _, trace = record.exc_info
        record.exc_info = Hidden, Hidden(kind.__name__), trace


def _told(text: str, kept: tuple[object, ...]) -> str:
    """Returns a message with the arguments that are kept."""
    left = iter(kept)

    def told(place: re.Match[str]) -> str:
        if place.group() == "%%":
            return "%"
        try:
            return place.group() % (next(left),)
        except (StopIteration, TypeError):
            return _HIDDEN

    return _PLACE.sub(told, text)
