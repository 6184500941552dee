# SPDX-License-Identifier: Apache-2.0
"""In vLLM's workers: a ledger of requests, brought up to date at the beginning of each step, and no
plain key-value cache."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from vllm.logger import init_logger

from .. import errors
from .process import require_posture
from .proof import check_cache
from .requests import Ledger
from .tenants import is_encrypted

__all__ = ["current_runner", "patch_runner"]

_logger = init_logger(f"vllm.{__name__}")  # below the one that vLLM shows

_current: weakref.ref[Any] | None = None


def current_runner() -> Any:
    """Returns vLLM's runner that is in a step. Raises ClosedError."""
    runner = None if _current is None else _current()
    if runner is None or getattr(runner, "pyccmem_ledger", None) is None:
        raise errors.ClosedError(
            "vLLM computes an attention outside of a step that pyccmem was told of."
        )
    return runner


def patch_runner() -> None:
    """Has vLLM's runners keep a ledger. May be repeated."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if hasattr(GPUModelRunner._update_states, "pyccmem"):
        return
    update, allocate = GPUModelRunner._update_states, GPUModelRunner.initialize_kv_cache_tensors

    @functools.wraps(update)
    def update_states(runner: Any, output: Any) -> Any:
        global _current
        ledger = getattr(runner, "pyccmem_ledger", None)
        _current = None
        if ledger is None:
            return update(runner, output)
        ledger.step(output)
        _current = weakref.ref(runner)
        before = runner.input_batch.num_reqs
        made = update(runner, output)
        # Rows of token ids that nobody has any more; vLLM moves others into their place.
        runner.input_batch.token_ids_cpu[runner.input_batch.num_reqs : before] = 0
        return made

    @functools.wraps(allocate)
    def initialize_kv_cache_tensors(runner: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
        made = allocate(runner, config, *args, **kwargs)
        if not is_encrypted(runner.vllm_config):
            return made
        return _without_memory(runner, config, made)

    update_states.pyccmem = True  # type: ignore[attr-defined]
    GPUModelRunner._update_states = update_states
    GPUModelRunner.initialize_kv_cache_tensors = initialize_kv_cache_tensors


def _without_memory(runner: Any, config: Any, made: dict[str, Any]) -> dict[str, Any]:
    """Puts tensors on "meta" in the place of the caches that vLLM has made, which nothing was
    written to yet: what would write keys and values there writes nothing."""
    for layer in runner.compilation_config.static_forward_context.values():
        if isinstance(getattr(layer, "kv_cache", None), torch.Tensor):
            layer.kv_cache = torch.empty_like(layer.kv_cache, device="meta")
    runner.kv_caches[:] = [torch.empty_like(one, device="meta") for one in runner.kv_caches]
    runner.pyccmem_ledger = Ledger(
        [group.kv_cache_spec.block_size for group in config.kv_cache_groups]
    )
    check_cache()
    _logger.info("pyccmem: the posture of this worker is %r.", require_posture())
    return {name: torch.empty_like(one, device="meta") for name, one in made.items()}
