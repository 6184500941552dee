# SPDX-License-Identifier: Apache-2.0
"""In vLLM's scheduler: only blocks that were computed are known as beginnings of prompts, and
requests that a worker names as failed end with an error."""

from __future__ import annotations

import functools
from typing import Any

from .process import protect_process
from .settings import is_encrypted, keeps_ended

__all__ = ["patch_scheduler"]


def patch_scheduler() -> None:
    """Replaces functions of it. May be repeated."""
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler

    if hasattr(Scheduler.update_from_output, "pyccmem"):
        return
    begin, allocate = Scheduler.__init__, KVCacheManager.allocate_slots
    update, free = Scheduler.update_from_output, KVCacheManager.free

    @functools.wraps(begin)
    def init(scheduler: Any, *args: Any, **kwargs: Any) -> None:
        begin(scheduler, *args, **kwargs)
        if is_encrypted(scheduler.vllm_config):
            scheduler.kv_cache_manager.pyccmem_keeps = keeps_ended(scheduler.vllm_config)
            protect_process()  # a forked process has not got the configuration anew

    @functools.wraps(allocate)
    def allocate_slots(manager: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if hasattr(request, "pyccmem_tenant"):
            # vLLM knows blocks as soon as they are planned, and gives them to other requests of the
            # same step; a worker's encrypted cache has them when that step is over.
            kwargs["delay_cache_blocks"] = True
        return allocate(manager, request, *args, **kwargs)

    @functools.wraps(update)
    def update_from_output(scheduler: Any, planned: Any, made: Any) -> Any:
        if is_encrypted(scheduler.vllm_config):
            failed: frozenset[str] = getattr(made, "pyccmem_failed", frozenset())
            _take_over(scheduler, planned.num_scheduled_tokens, failed)
        return update(scheduler, planned, made)

    @functools.wraps(free)
    def free_blocks(manager: Any, request: Any) -> None:
        if not getattr(manager, "pyccmem_keeps", True):
            _forget(manager, request.request_id)
        free(manager, request)

    update_from_output.pyccmem = True  # type: ignore[attr-defined]
    Scheduler.__init__ = init
    KVCacheManager.allocate_slots = allocate_slots
    Scheduler.update_from_output = update_from_output
    KVCacheManager.free = free_blocks


def _take_over(scheduler: Any, computed: Any, failed: frozenset[str]) -> None:
    manager = scheduler.kv_cache_manager
    for request_id in computed:
        request = scheduler.requests.get(request_id)
        if request is None or request.is_finished():
            continue
        if request_id in failed:
            _forget(manager, request_id)
        else:
            manager.cache_blocks(request, request.num_computed_tokens)
    # vLLM's own list of requests to end with an error, in the same step.
    scheduler.grammar_compile_error_reqs.update(failed)


def _forget(manager: Any, request_id: str) -> None:
    """Lets no other request begin with blocks of this one."""
    blocks = {one for group in manager.get_block_ids(request_id) for one in group}
    manager.evict_blocks(blocks)
