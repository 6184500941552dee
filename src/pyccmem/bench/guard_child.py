# SPDX-License-Identifier: Apache-2.0
"""Does pieces of work when it is told to, and prints how long each took. guard.py runs it several
times at once, with and without guard(), and lets them take turns.

Usage: python -m pyccmem.bench.guard_child QUICK GUARD, then names of pieces of work as lines of
standard input; each is answered by a line: seconds.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

import pyccmem
from pyccmem import hardening

from ..demo.files import PACKAGE

Work = Callable[[], Any]

#: 90 million parameters in float32, and 11 million for a quick run.
SHAPES = {
    False: {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8},
    True: {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6},
}
LAYERS = 8
VOCABULARY = 8192

CONTEXT = 128  # tokens before those that are timed
TOKENS = 4  # in one sample
PROMPT = 256
REPLY = 8  # tokens that generate() makes in one sample

SENTENCE = "How do I compress a file without losing anything?"
BATCH = 32


def arrays() -> dict[str, Work]:
    """Returns pipelines of NumPy: large arrays, whose memory comes and goes with each step, and
    small ones, of which there are many."""
    generator = np.random.default_rng(1)
    hidden = generator.standard_normal((512, 1024), np.float32)
    rows = generator.standard_normal((2000, 48), np.float32)

    def large() -> Any:
        x = hidden
        for _ in range(3):
            x = (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-5)
            x = x * (1 / (1 + np.exp(-x)))
            e = np.exp(x - x.max(1, keepdims=True))
            x = e / e.sum(1, keepdims=True)
        return x

    def small() -> Any:
        total = np.zeros(48, np.float32)
        for row in rows:
            total = total + row * (1 / (1 + np.abs(row)))
        return total

    return {"numpy-large": large, "numpy-small": small}


def sentences() -> dict[str, Work]:
    """Returns the embeddings of MiniLM; nothing where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or importlib.util.find_spec("sentence_transformers") is None:
        return {}
    from sentence_transformers import SentenceTransformer

    assert spec.submodule_search_locations
    path = os.path.join(spec.submodule_search_locations[0], "model")
    model = SentenceTransformer(path, device="cpu", local_files_only=True)
    batch = [SENTENCE] * BATCH
    return {"sentence": lambda: model.encode(SENTENCE), "batch": lambda: model.encode(batch)}


def llama(quick: bool) -> dict[str, Work]:
    """Returns tokens, prompts and whole requests of a Llama with random weights; nothing without
    transformers."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    torch.set_grad_enabled(False)
    config = LlamaConfig(
        **SHAPES[quick],
        num_hidden_layers=LAYERS,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    model: Any = LlamaForCausalLM(config).eval()
    context = torch.arange(CONTEXT)[None] * 17 % VOCABULARY
    prompt = torch.arange(PROMPT)[None] * 31 % VOCABULARY
    token = torch.tensor([[5]])
    cache = model(context, use_cache=True).past_key_values

    def decode() -> Any:
        for _ in range(TOKENS):
            found = model(token, past_key_values=cache, use_cache=True).logits
        cache.crop(-TOKENS)
        return found.numpy()

    def request() -> Any:
        return model.generate(
            context, max_new_tokens=REPLY, min_new_tokens=REPLY, do_sample=False, pad_token_id=0
        ).numpy()

    return {
        "decode": decode,
        "prompt": lambda: model(prompt, use_cache=True, logits_to_keep=1).logits.numpy(),
        "request": request,
    }


def main(quick: bool, guarded: bool) -> None:
    """Answers lines of standard input until it ends."""
    if guarded:
        pyccmem.guard()
    works = {**arrays(), **sentences(), **llama(quick)}
    found = {}
    for name, work in works.items():
        work()
        found[name] = hashlib.sha256(np.ascontiguousarray(work()).tobytes()).hexdigest()
    parts = [part.name for part in hardening.parts() if part.active]
    print(json.dumps({"results": found, "parts": parts}), flush=True)
    for line in sys.stdin:
        work = works[line.strip()]
        start = perf_counter()
        work()
        print(perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1] == "1", sys.argv[2] == "1")
