# SPDX-License-Identifier: Apache-2.0
"""Encrypted models in vLLM on processors.

    pip install 'pyccmem[vllm]'
    PYCCMEM_KEY_FILE=model.key vllm serve SEALED

register() is the entry point that vLLM calls in each of its processes. Nothing of vLLM is imported
before it is called.
"""

from __future__ import annotations

from .plugin import register

__all__ = ["register"]
