# SPDX-License-Identifier: Apache-2.0
"""In vLLM's workers: a ledger of requests, brought up to date at the beginning of each step, what
fails in a step, and no plain key-value cache."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger
from vllm.v1.outputs import ModelRunnerOutput

from .. import errors
from .failures import begin_step, current_step, end_step, mark
from .process import require_posture
from .proof import check_cache
from .requests import Ledger
from .settings import CACHE, encrypts_cache, is_encrypted, keeps_ended

__all__ = ["current_runner", "forget_ended", "patch_runner"]

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
        if encrypts_cache(runner.vllm_config):
            return _without_memory(runner, config, made)
        if is_encrypted(runner.vllm_config):
            _logger.warning("pyccmem: keys and values lie in the clear, as %s says.", CACHE)
        return made

    update_states.pyccmem = True  # type: ignore[attr-defined]
    GPUModelRunner._update_states = update_states
    GPUModelRunner.initialize_kv_cache_tensors = initialize_kv_cache_tensors
    GPUModelRunner.execute_model = _guarded(GPUModelRunner.execute_model)
    GPUModelRunner.sample_tokens = _named(GPUModelRunner.sample_tokens)


def _guarded(execute: Any) -> Any:
    """The first half of a step: the model."""

    @functools.wraps(execute)
    def execute_model(runner: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
        # What a pooling model answers with is not named by request when it fails: there a changed
        # page ends the engine.
        if not is_encrypted(runner.vllm_config) or runner.is_pooling_model:
            return execute(runner, output, *args, **kwargs)
        begin_step(runner)
        try:
            made = execute(runner, output, *args, **kwargs)
        except BaseException as error:
            step = end_step()
            ranks = get_tp_group()
            if ranks.world_size > 1 and ranks.rank_in_group:
                # The first rank would wait for this one, and nobody would hear of the error. vLLM
                # ends its engine when a worker is gone.
                _logger.critical("pyccmem: this worker ends: %s", error)
                raise SystemExit(1) from None
            if step is None or ranks.world_size > 1 or not isinstance(error, errors.IntegrityError):
                raise
            step.fail_all("a vector of the model", error)
            return _nothing(runner, step.failed)
        if made is not None:  # a step without tokens
            end_step()
        return made

    return execute_model


def _named(sample: Any) -> Any:
    """The second half of a step: the choice of tokens."""

    @functools.wraps(sample)
    def sample_tokens(runner: Any, *args: Any, **kwargs: Any) -> Any:
        step = current_step()
        if step is None:
            return sample(runner, *args, **kwargs)
        try:
            made = sample(runner, *args, **kwargs)  # opens the head for scores of prompts
            ranks = get_tp_group()
            if ranks.world_size > 1:
                step.agree(ranks.cpu_group)
        finally:
            end_step()
        return mark(made, step.failed)

    return sample_tokens


def _nothing(runner: Any, failed: set[str]) -> Any:
    """Returns what a worker answers with when all requests of a batch have failed."""
    names = list(runner.input_batch.req_ids)
    made = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: at for at, name in enumerate(names)},
        sampled_token_ids=[[] for _ in names],
    )
    return mark(made, failed)


def forget_ended(worker: Any) -> None:
    """Destroys the keys of all requests of a worker that have ended: for collective_rpc()."""
    ledger = getattr(worker.model_runner, "pyccmem_ledger", None)
    if ledger is not None:
        ledger.forget()


def _without_memory(runner: Any, config: Any, made: dict[str, Any]) -> dict[str, Any]:
    """Puts tensors on "meta" in the place of the caches that vLLM has made, which nothing was
    written to yet: what would write keys and values there writes nothing."""
    for layer in runner.compilation_config.static_forward_context.values():
        if isinstance(getattr(layer, "kv_cache", None), torch.Tensor):
            layer.kv_cache = torch.empty_like(layer.kv_cache, device="meta")
    runner.kv_caches[:] = [torch.empty_like(one, device="meta") for one in runner.kv_caches]
    runner.pyccmem_ledger = Ledger(
        [group.kv_cache_spec.block_size for group in config.kv_cache_groups],
        keeps=keeps_ended(runner.vllm_config),
    )
    check_cache()
    _logger.info("pyccmem: the posture of this worker is %r.", require_posture())
    return {name: torch.empty_like(one, device="meta") for name, one in made.items()}
