# SPDX-License-Identifier: Apache-2.0
"""Continuous batching of a protected model: transformers' manager, scheduler and loop, with an
EncryptedPagedCache in the place of the cache that they would make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import continuous_api
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type

from .. import errors
from .batch_cache import EncryptedPagedCache
from .tables import Tables

__all__ = ["BatchingModel", "EncryptedBatching", "register"]

#: Where a model keeps a manager for its next generate_batch().
_KEPT = "_cached_continuous_batching_manager"

_PlainCache = continuous_api.PagedAttentionCache

#: What makes the cache while a manager of ours sets itself up in this thread.
_making: ContextVar[Callable[..., Any] | None] = ContextVar("pyccmem_paged_cache", default=None)

#: The managers of the generate_batch() that runs in this thread.
_of_call: ContextVar[list[Any] | None] = ContextVar("pyccmem_generate_batch", default=None)


def register() -> None:
    """Makes transformers ask here for the cache of a manager."""
    continuous_api.PagedAttentionCache = _new_cache


def _new_cache(*args: Any, **kwargs: Any) -> Any:
    """In the place of PagedAttentionCache()."""
    return (_making.get() or _PlainCache)(*args, **kwargs)


class EncryptedBatching(continuous_api.ContinuousBatchingManager):  # type: ignore[misc]
    """A manager that keeps requests encrypted. `attention` is the name of the one that the model
    has to use, `new_tables` makes the tables of a request.

    Requests share beginnings of prompts while `sharing` is set, see EncryptedPagedCache.
    """

    def __init__(
        self,
        *args: Any,
        attention: str,
        new_tables: Callable[[], Tables],
        sharing: bool,
        **kwargs: Any,
    ) -> None:
        self._attention, self._new_tables, self.sharing = attention, new_tables, sharing
        super().__init__(*args, **kwargs)
        config = self.continuous_batching_config
        if self.distributed_helper.tp_size > 1:
            raise errors.ArgumentError(
                "Continuous batching of a protected model is for one process on the CPU, and this "
                "model is spread over several."
            )
        for name, what in (
            ("use_async_batching", "two batches at once are for GPUs"),
            ("cpu_offload_space", "an encrypted cache lies in main memory; raise num_blocks"),
        ):
            if getattr(config, name) not in (None, False, 0):
                raise errors.ArgumentError(
                    f"{name}={getattr(config, name)} in a ContinuousBatchingConfig is not for "
                    f"encrypted caches: {what}. Leave it out."
                )

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Leaves the model's attention as it is. Raises ArgumentError where that is another one."""
        found = model.config._attn_implementation
        if found != self._attention:
            raise errors.ArgumentError(
                f"Continuous batching of a protected model needs its attention "
                f'"{self._attention}", and this model uses "{found}".'
            )

    def _create_batch_processor(self) -> Any:
        def made(*args: Any, **kwargs: Any) -> EncryptedPagedCache:
            return EncryptedPagedCache(*args, new_tables=self._new_tables, **kwargs)

        token = _making.set(made)
        try:
            processor = super()._create_batch_processor()
        finally:
            _making.reset(token)
        processor.cache.sharing = self.sharing and processor.cache.allow_block_sharing
        self._use_prefix_sharing = processor.cache.sharing
        return processor

    def _run_generation_loop(self, use_inference_mode: bool) -> None:
        """The thread; however it ends, no request is left, and no ids in its inputs."""
        try:
            super()._run_generation_loop(use_inference_mode)
        finally:
            processor = self.batch_processor
            if processor is not None:
                processor.cache.reset()
                processor.inputs_and_outputs.reset()


class BatchingModel:
    """In front of a protected model's own class: what begins continuous batching."""

    @torch.no_grad()
    def init_continuous_batching(
        self,
        generation_config: Any = None,
        continuous_batching_config: Any = None,
        workload_hints: Any = None,
    ) -> EncryptedBatching:
        """transformers' own, with a manager that keeps requests encrypted. Raises ArgumentError for
        models and options that are not for it."""
        model: Any = self
        call = _of_call.get()
        manager = getattr(model, _KEPT, None)
        if manager is None:
            manager = _new_manager(
                model, generation_config, continuous_batching_config, workload_hints
            )
        elif not isinstance(manager, EncryptedBatching):
            raise errors.ArgumentError(
                "This model keeps a manager of continuous batching from before it was protected; "
                "call model.destroy_cached_continuous_batching_manager() first."
            )
        else:
            manager.switch_to_cb_friendly_attn(model)
        # Whoever adds requests to a manager may do so for several tenants.
        manager.sharing = call is not None
        if call is not None:
            call.append(manager)
        return manager

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own. Where that would only log an error of pyccmem and return what it has,
        such as an IntegrityError, this raises it."""
        managers: list[Any] = []
        token = _of_call.set(managers)
        try:
            results = super().generate_batch(*args, **kwargs)  # type: ignore[misc]
        finally:
            _of_call.reset(token)
        for manager in managers:
            error = manager.background_thread_status.fatal_error
            try:
                if isinstance(error, errors.PyccmemError):
                    raise error
            finally:
                del error
        return results


def _new_manager(
    model: Any, generation_config: Any, batching_config: Any, hints: Any
) -> EncryptedBatching:
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise errors.ArgumentError(
            "Continuous batching is for decoders, and this model has an encoder; use generate()."
        )
    try:
        group_layers_by_attn_type(config)
    except ValueError as error:
        raise errors.ArgumentError(
            f"Continuous batching of transformers has no cache for a layer of this model "
            f"({error}); use generate() with a batch."
        ) from None
    generation = model.generation_config if generation_config is None else generation_config
    if generation.eos_token_id is None:  # -1: none, as transformers has it
        generation = copy.deepcopy(generation)
        generation.eos_token_id = -1
    if batching_config is None:
        batching_config = getattr(generation, "continuous_batching_config", None)
    protection = model._pyccmem_protection
    return EncryptedBatching(
        model=model,
        generation_config=generation,
        continuous_batching_config=batching_config or ContinuousBatchingConfig(),
        workload_hints=hints,
        attention=protection.name,
        new_tables=protection.new_tables,
        sharing=False,
    )
