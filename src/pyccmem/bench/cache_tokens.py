# SPDX-License-Identifier: Apache-2.0
"""Tokens of a Llama with random weights after contexts of several lengths: weights and cache
encrypted, against the same model plain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import pyccmem.torch
import pyccmem.transformers

from ..keys import Key
from . import cache_shapes
from .cache_shapes import Measured
from .rounds import CheckError

TASK = "tokens"
NAME = "Llama"

#: 322 million parameters; four query heads for each of K and V, as Llama-3 has.
SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 3,
    "vocab_size": 8192,
}

#: Tokens before those that are timed, for a quick run and for all.
CONTEXTS = {True: (128, 1024), False: (128, 512, 2048, 8192, 16384)}

#: Tokens in one sample.
TOKENS = {True: 2, False: 4}

#: How far logits may differ, as a share of the largest: bfloat16 in every layer.
CLOSE = 0.05


def measure_here(
    rounds: int,
    quick: bool,
    counts: Sequence[int],
    shape: dict[str, int] | None = None,
    contexts: Sequence[int] | None = None,
) -> Iterator[Measured]:
    """Yields tokens after each context, with each number of threads."""
    contexts = contexts or CONTEXTS[quick]
    plain = _model(shape or SHAPE, max(contexts) + 64)
    with Key.generate() as key:
        ours = pyccmem.torch.encrypt_module(copy.deepcopy(plain), key=key)
    pyccmem.transformers.protect_inputs(ours)
    millions = sum(parameter.numel() for parameter in plain.parameters()) / 1e6
    for context in contexts:
        plain_cache = DynamicCache(config=plain.config)
        with pyccmem.transformers.EncryptedCache(ours.config) as cache:
            _fill((plain_cache, cache), plain.config, context)
            subjects = {"ours": (ours, cache), "plain": (plain, plain_cache)}
            _check(subjects)
            for number in counts:
                with cache_shapes.threads(number):
                    found = cache_shapes.samples_in_turn(
                        {name: _sample(*one, TOKENS[quick]) for name, one in subjects.items()},
                        rounds,
                        quick,
                        tries=1,
                    )
                yield Measured(
                    TASK,
                    number,
                    NAME,
                    "bfloat16",
                    context,
                    1,
                    found["ours"],
                    found["plain"],
                    f"{millions:.0f} million parameters",
                )


def _model(shape: dict[str, int], positions: int) -> Any:
    config = LlamaConfig(**shape, max_position_embeddings=positions, tie_word_embeddings=False)
    torch.manual_seed(7)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _fill(caches: Sequence[Any], config: Any, tokens: int) -> None:
    """Puts the same random keys and values into all caches, in place of those of a prompt, which
    would take minutes and leave as many behind."""
    size = config.hidden_size // config.num_attention_heads
    generator = torch.Generator().manual_seed(3)
    for layer in range(config.num_hidden_layers):
        k, v = torch.randn(
            (2, 1, config.num_key_value_heads, tokens, size), generator=generator
        ).bfloat16()
        for cache in caches:
            cache.update(k.clone(), v.clone(), layer)


def _step(model: Any, cache: Any) -> Any:
    return model(torch.tensor([[5]]), cache=cache, use_cache=True).logits


def _check(subjects: dict[str, tuple[Any, Any]]) -> None:
    """Both must give the same logits, for two tokens one after the other."""
    found = {}
    for name, (model, cache) in subjects.items():
        length = cache.get_seq_length()
        found[name] = torch.cat([_step(model, cache) for _ in range(2)]).float()
        if cache.get_seq_length() != length + 2:
            raise CheckError(f"{NAME}, {name}: its cache is not used.")
        cache.crop(-2)
    error = (found["ours"] - found["plain"]).abs().max()
    if not error <= CLOSE * found["plain"].abs().max():
        raise CheckError(f"{NAME}, encrypted: the result is wrong, so its speed means nothing.")


def _sample(model: Any, cache: Any, tokens: int) -> Callable[[], float]:
    """Returns the seconds for a token, after as many as the cache has."""

    def run() -> float:
        # Threads of whoever was timed before may wait in a busy loop for a while.
        _step(model, cache)
        cache.crop(-1)

        def decode() -> None:
            for _ in range(tokens):
                _step(model, cache)

        took = cache_shapes.once(decode) / tokens
        cache.crop(-tokens)
        return took

    return run
