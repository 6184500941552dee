# SPDX-License-Identifier: Apache-2.0
"""Measures quantised Llamas and prints JSON. quantized_models.py runs it with a number of threads.

Usage: python -m pyccmem.bench.quantized_child SIZE ROUNDS
"""

from __future__ import annotations

import copy
import json
import os
import sys
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from ..keys import Key
from ..torch import encrypt_module, stored_types
from .linear import THREAD_VARIABLES
from .quantized_models import ENCRYPTED, FORMATS, PLAIN, SHAPES
from .rounds import CheckError
from .torch_child import PROMPTS, decode, prefill, timed

#: The least cosine between the logits of a model and those of the plain one, whose weights are
#: random: errors of a format are larger here than with trained ones.
CLOSE = {ENCRYPTED: 0.999, "q4_k": 0.8, "q8_0": 0.99, "int8_row": 0.98}


def made(size: str) -> dict[str, Any]:
    """Returns the models: one plain, and encrypted ones of the same weights."""
    config = LlamaConfig(
        **SHAPES[size], max_position_embeddings=1024, tie_word_embeddings=False, dtype="bfloat16"
    )
    torch.manual_seed(7)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        plain = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    models: dict[str, Any] = {PLAIN: plain}
    with Key.generate() as key:
        for way in (ENCRYPTED, *FORMATS):
            format = None if way == ENCRYPTED else way
            models[way] = encrypt_module(copy.deepcopy(plain), key=key, quantize=format)
    return models


def check(models: dict[str, Any]) -> None:
    """Raises CheckError unless the logits are about those of the plain model."""
    ids = torch.arange(32)[None] * 31 % 32000
    wanted = models[PLAIN](ids).logits.float().flatten()
    for way, least in CLOSE.items():
        got = models[way](ids).logits.float().flatten()
        cosine = float(torch.nn.functional.cosine_similarity(got, wanted, dim=0))
        if not cosine >= least:
            raise CheckError(f"Llama as {way}: the logits are wrong (cosine {cosine:.4f}).")


def main(words: list[str]) -> dict[str, Any]:
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    torch.set_num_threads(int(os.environ.get(THREAD_VARIABLES[0], "1")))
    size, rounds = words[0], int(words[1])
    models = made(size)
    check(models)
    seconds = {"decode": timed({way: decode(model) for way, model in models.items()}, rounds)}
    some = {way: prefill(model) for way, model in models.items()}
    seconds["prefill"] = timed(some, min(rounds, PROMPTS))
    nbytes = {
        way: float(sum(one.bytes for one in stored_types(model).values()))
        for way, model in models.items()
    }
    return {"seconds": seconds, "bytes": nbytes}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
