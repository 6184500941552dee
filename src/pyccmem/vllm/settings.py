# SPDX-License-Identifier: Apache-2.0
"""What of a model is encrypted, and how long what ended requests had is kept, as environment
variables say, which all of vLLM's processes have."""

from __future__ import annotations

import os
from typing import Any

from .. import errors
from ..directories.marks import METHOD

__all__ = ["CACHE", "KEEP", "LORA", "encrypts_cache", "is_encrypted", "keeps_ended", "takes_lora"]

#: "encrypted" (as without it) or "plain": keys and values in vLLM's own cache, in the clear.
CACHE = "PYCCMEM_VLLM_CACHE"

#: "prefixes" (as without it): what a tenant's request had stays for the tenant's next ones, until
#: vLLM needs the room. "nothing": it is erased when the request ends.
KEEP = "PYCCMEM_VLLM_KEEP"

#: "plain": adapters of LoRA are taken, and lie in memory in the clear. "refuse", as without it.
LORA = "PYCCMEM_VLLM_LORA"


def is_encrypted(config: Any) -> bool:
    """Returns True for a VllmConfig of a model under pyccmem."""
    model = config.model_config
    return model is not None and model.quantization == METHOD


def encrypts_cache(config: Any) -> bool:
    """Returns True for a VllmConfig whose keys and values are encrypted: of a model under pyccmem,
    unless PYCCMEM_VLLM_CACHE says otherwise. Raises ConfigError for a word that it does not
    know."""
    return is_encrypted(config) and _word(CACHE, "encrypted", "plain") == "encrypted"


def keeps_ended(config: Any) -> bool:
    """Returns True if what a tenant's requests had is kept when they have ended. Raises ConfigError
    for a word that PYCCMEM_VLLM_KEEP does not know."""
    kept = _word(KEEP, "prefixes", "nothing") == "prefixes"
    return kept and bool(config.cache_config.enable_prefix_caching)


def takes_lora() -> bool:
    """Returns True if adapters may lie in memory in the clear. Raises ConfigError for a word that
    PYCCMEM_VLLM_LORA does not know."""
    return _word(LORA, "refuse", "plain") == "plain"


def _word(variable: str, usual: str, other: str) -> str:
    """Returns what an environment variable says, which is one of two words."""
    word = os.environ.get(variable) or usual
    if word not in (usual, other):
        raise errors.ConfigError(f"{variable} is {word!r}; it must be {usual} or {other}.")
    return word
