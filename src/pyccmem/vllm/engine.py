# SPDX-License-Identifier: Apache-2.0
"""In vLLM's engine: requests are named by their tenants, and only one tenant's share the beginning
of a prompt."""

from __future__ import annotations

import functools
import secrets
import sys
from typing import Any

from .scheduling import patch_scheduler
from .settings import is_encrypted
from .tenants import tenant_of

__all__ = ["patch_engine"]


def patch_engine() -> None:
    """Has vLLM's engine name the tenant of each request to the workers. May be repeated. Does
    nothing in a process without an engine."""
    core = sys.modules.get("vllm.v1.engine.core")
    if core is None or hasattr(core.EngineCore.preprocess_add_request, "pyccmem"):
        return
    from vllm.v1.core.sched.output import NewRequestData

    patch_scheduler()
    preprocess = core.EngineCore.preprocess_add_request
    reset = core.EngineCore.reset_prefix_cache
    from_request = NewRequestData.from_request.__func__

    @functools.wraps(preprocess)
    def preprocess_add_request(engine: Any, request: Any) -> Any:
        if not is_encrypted(engine.vllm_config):
            return preprocess(engine, request)
        tenant = tenant_of(request.cache_salt)
        if tenant is None:  # prompts of nobody in particular have no beginning in common
            request.cache_salt = secrets.token_hex(32)
        made, wave = preprocess(engine, request)
        made.pyccmem_tenant = tenant
        return made, wave

    @functools.wraps(reset)
    def reset_prefix_cache(engine: Any, *args: Any, **kwargs: Any) -> Any:
        done = reset(engine, *args, **kwargs)
        if done and is_encrypted(engine.vllm_config):
            from .steps import forget_ended

            engine.model_executor.collective_rpc(forget_ended)
        return done

    @functools.wraps(from_request)
    def named(cls: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        made = from_request(cls, request, *args, **kwargs)
        if hasattr(request, "pyccmem_tenant"):
            made.pyccmem_tenant = request.pyccmem_tenant
        return made

    preprocess_add_request.pyccmem = True  # type: ignore[attr-defined]
    core.EngineCore.preprocess_add_request = preprocess_add_request
    core.EngineCore.reset_prefix_cache = reset_prefix_cache
    NewRequestData.from_request = classmethod(named)
