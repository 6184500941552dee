# SPDX-License-Identifier: Apache-2.0
"""What cannot be opened while a worker is in a step fails the requests that need it, and no other.

An exception that leaves vLLM's model ends its engine, and with tensor parallel it would leave the
other workers waiting for this one. So a layer that finds a changed page notes the failure here and
answers with zeros. Nothing is computed from the page, and what is computed from the zeros is
dropped: sample_tokens() names the requests that have failed to the engine, which ends them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from vllm.logger import init_logger

from .. import errors

__all__ = ["FAILURES", "Step", "begin_step", "current_step", "end_step", "mark"]

#: What fails a request and leaves the server as it is.
FAILURES = (errors.IntegrityError, errors.OutOfMemoryError)

_logger = init_logger(f"vllm.{__name__}")  # below the one that vLLM shows

_current: Step | None = None


class Step:
    """One step of a worker. `everything`: all requests of the batch have failed."""

    __slots__ = ("_reference", "everything", "failed", "together")

    def __init__(self, runner: Any) -> None:
        self._reference = weakref.ref(runner)
        self.everything = False
        self.failed: set[str] = set()
        #: What attentions keep for the next layer of the step.
        self.together: dict[int, Any] = {}

    @property
    def _runner(self) -> Any:
        return self._reference()

    def rows(self) -> list[tuple[str, int, int]]:
        """Returns the requests of the batch, and which of its rows are theirs: [first, last)."""
        runner = self._runner
        names = runner.input_batch.req_ids
        places = runner.query_start_loc.np[: len(names) + 1].tolist()
        return list(zip(names, places, places[1:], strict=False))

    def fail(self, request_id: str, what: str, error: Exception) -> None:
        """Notes that one request has failed. The error is logged, and not kept."""
        self._note([request_id])
        _logger.error("pyccmem: request %s has failed at %s: %s", request_id, what, error)

    def fail_rows(self, rows: Iterable[int], what: str, error: Exception) -> None:
        """Notes that the requests with any of these rows of the batch have failed."""
        wanted = set(rows)
        for name, first, last in self.rows():
            if not wanted.isdisjoint(range(first, last)):
                self.fail(name, what, error)

    def fail_all(self, what: str, error: Exception) -> None:
        """Notes that all requests of the batch have failed."""
        names = list(self._runner.input_batch.req_ids)
        self.everything = True
        self._note(names)
        _logger.error("pyccmem: requests %s have failed at %s: %s", ", ".join(names), what, error)

    def agree(self, group: Any) -> None:
        """Has all workers of a group know what failed in one of them."""
        names = self._runner.input_batch.req_ids
        flags = torch.tensor([name in self.failed for name in names], dtype=torch.int32)
        torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX, group=group)
        self._note(name for name, flag in zip(names, flags.tolist(), strict=True) if flag)

    def _note(self, names: Iterable[str]) -> None:
        ledger = getattr(self._runner, "pyccmem_ledger", None)
        for name in names:
            self.failed.add(name)
            if ledger is not None:
                ledger[name].failed = True


def begin_step(runner: Any) -> None:
    """A worker begins to compute."""
    global _current
    _current = Step(runner)


def end_step() -> Step | None:
    """Returns the step that is over; None if there is none."""
    global _current
    step, _current = _current, None
    return step


def current_step() -> Step | None:
    """Returns the step that this process is in. None outside of one, as when a model warms up:
    there an error is an error."""
    return _current


def mark(made: Any, failed: set[str]) -> Any:
    """Takes out of what a worker answers with, a ModelRunnerOutput, what belongs to requests that
    have failed, and names them there. Returns it."""
    for name in failed:
        at = made.req_id_to_index.get(name)
        if at is not None and made.sampled_token_ids:
            made.sampled_token_ids[at] = []
        made.prompt_logprobs_dict.pop(name, None)
        made.prompt_token_id_logprobs_dict.pop(name, None)
    if failed:
        made.pyccmem_failed = frozenset(failed)
    return made
