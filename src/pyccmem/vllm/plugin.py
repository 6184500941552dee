# SPDX-License-Identifier: Apache-2.0
"""Registers with vLLM. It runs in each of its processes, also those that serve a plain model, and
maybe more than once: so it changes nothing but tables of names, and makes no key."""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Registers the quantization method "pyccmem", the loader of sealed directories and the
    attention over encrypted caches. May be repeated. Raises MissingPackageError without vLLM."""
    try:
        from vllm.model_executor.layers import quantization
    except ImportError as error:
        from ..errors import MissingPackageError

        raise MissingPackageError(
            "pyccmem.vllm needs vLLM, which is not installed; pip install 'pyccmem[vllm]'."
        ) from error
    from ..directories.marks import METHOD
    from .engine import patch_engine

    patch_engine()  # in an engine's process, where its class is loaded already
    if METHOD in quantization.QUANTIZATION_METHODS:
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from .loader import register_loader
    from .method import PyccmemQuantization

    register_loader()
    # vLLM takes no other attention for processors than the one of this name.
    path = "pyccmem.vllm.attention.EncryptedAttentionBackend"
    register_backend(AttentionBackendEnum.CPU_ATTN, path)
    quantization.register_quantization_config(METHOD)(PyccmemQuantization)
