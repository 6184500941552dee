# SPDX-License-Identifier: Apache-2.0
"""In vLLM's engine: which tenant a request is of, and that only one tenant's requests share the
beginning of a prompt."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import secrets
import sys
from typing import Any

from ..directories.marks import METHOD

__all__ = ["is_encrypted", "patch_engine", "tenant_of"]

_secret: tuple[int, bytes] | None = None


def is_encrypted(config: Any) -> bool:
    """Returns True for a VllmConfig of a model under pyccmem."""
    model = config.model_config
    return model is not None and model.quantization == METHOD


def tenant_of(salt: str | None) -> str | None:
    """Returns the name of the tenant whose requests have this `cache_salt`: a MAC under a secret of
    this process, so that the salt goes nowhere. None without a salt."""
    global _secret
    if not salt:
        return None
    if _secret is None or _secret[0] != os.getpid():
        _secret = (os.getpid(), secrets.token_bytes(32))
    return hmac.new(_secret[1], salt.encode(), hashlib.sha256).hexdigest()


def patch_engine() -> None:
    """Has vLLM's engine name the tenant of each request to the workers. May be repeated. Does
    nothing in a process without an engine."""
    core = sys.modules.get("vllm.v1.engine.core")
    if core is None or hasattr(core.EngineCore.preprocess_add_request, "pyccmem"):
        return
    from vllm.v1.core.sched.output import NewRequestData

    preprocess = core.EngineCore.preprocess_add_request
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

    @functools.wraps(from_request)
    def named(cls: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        made = from_request(cls, request, *args, **kwargs)
        if hasattr(request, "pyccmem_tenant"):
            made.pyccmem_tenant = request.pyccmem_tenant
        return made

    preprocess_add_request.pyccmem = True  # type: ignore[attr-defined]
    core.EngineCore.preprocess_add_request = preprocess_add_request
    NewRequestData.from_request = classmethod(named)
