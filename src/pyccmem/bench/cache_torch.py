# SPDX-License-Identifier: Apache-2.0
"""Attention over an encrypted cache against torch's scaled_dot_product_attention over plain K and
V, and appending against transformers' DynamicCache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DynamicCache

from ..kv_cache import KVCache
from . import cache_shapes
from .cache_shapes import LLAMA, MINILM, Array, Call, Heads, Layers, Measured
from .rounds import CheckError

TASK, INT8, APPEND = "torch", "int8", "append"

#: Tokens, for a quick run and for all.
TOKENS = {True: (1024, 8192), False: (1024, 8192, 32768)}
CASES = ((LLAMA, "bfloat16"), (LLAMA, "float32"), (MINILM, "bfloat16"), (MINILM, "float32"))

#: A form that takes so many times as long as the best is not tried a second time.
HOPELESS = 2.0

#: Appending: tokens that are there before, layers, tokens that are appended in a call.
FILLED = 8192
DEPTH = {True: 4, False: 32}
APPENDED = 16


def attention(
    rounds: int,
    quick: bool,
    counts: Sequence[int],
    cases: Sequence[tuple[Heads, str]] = CASES,
    sizes: Sequence[int] | None = None,
) -> Iterator[Measured]:
    """Yields decode attention against torch's best form, and int8 against bfloat16, with each
    number of threads."""
    for heads, dtype in cases:
        for tokens in sizes or TOKENS[quick]:
            yield from _attention(heads, dtype, tokens, rounds, quick, counts)


def _attention(
    heads: Heads, dtype: str, tokens: int, rounds: int, quick: bool, counts: Sequence[int]
) -> Iterator[Measured]:
    layers = Layers(heads, dtype, tokens)
    what = f"{heads.name}, {dtype}, {tokens} tokens"
    with layers.filled(KVCache) as cache:
        plain = [(tensor(layers.k), tensor(layers.v)) for _ in range(layers.count)]
        q = tensor(layers.q)
        k, v = plain[0]
        expected = _packed(q.float(), k.float(), v.float())
        got = cache.attend(0, layers.q)
        cache_shapes.must_be_close(got, expected.numpy(), dtype, f"attention, {what}")
        small = layers.filled(KVCache, INT8) if dtype == "bfloat16" else None
        try:
            if small is not None:
                got = small.attend(0, layers.q)
                cache_shapes.must_be_close(got, expected.numpy(), INT8, f"attention, {what}, int8")
            for number in counts:
                with cache_shapes.threads(number):
                    form, calls = best_form(q, plain, expected, dtype)
                    subjects = {"ours": layers.calls(cache), "torch": calls}
                    if small is not None:
                        subjects[INT8] = layers.calls(small)
                    found = cache_shapes.in_turn(subjects, rounds, quick)
                shape = (number, heads.name, dtype, tokens, 1)
                yield Measured(TASK, *shape, found["ours"], found["torch"], form)
                if small is not None:
                    yield Measured(INT8, *shape, found[INT8], found["ours"])
        finally:
            if small is not None:
                small.close()


def tensor(array: Array) -> Tensor:
    """Returns a tensor with a copy of an array; uint16 are the bits of bfloat16."""
    copied = torch.from_numpy(array.copy())
    return copied.view(torch.bfloat16) if array.dtype == np.uint16 else copied


# ---- torch's forms -------------------------------------------------------------------------------


def _packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All query heads of a head of K and V as its rows, which nothing has to be copied for: a
    single row of each sees all tokens."""
    sequences, heads, _, size = q.shape
    stored = k.shape[1]
    return sdpa(q.view(sequences, stored, heads // stored, size), k, v).view(q.shape)


def _by_math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return _packed(q, k, v)


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, enable_gqa=True)


def _expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """K and V repeated for each query head, at every call, as models do."""
    times = q.shape[1] // k.shape[1]
    return sdpa(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def _token_major(k: Tensor) -> Tensor:
    """The same tensor, whose heads of a token lie side by side, as a model computes them."""
    return k.transpose(1, 2).contiguous().transpose(1, 2)


#: The attention by name: how, and how K and V lie.
FORMS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], bool]] = {
    "packed": (_packed, False),
    "packed, token-major": (_packed, True),
    "packed, math": (_by_math, False),
    "enable_gqa": (_grouped, False),
    "enable_gqa, token-major": (_grouped, True),
    "expanded": (_expanded, False),
}


def best_form(
    q: Tensor, plain: Sequence[tuple[Tensor, Tensor]], expected: Tensor, dtype: str
) -> tuple[str, list[Call]]:
    """Returns the fastest of torch's forms, by name, and its calls, one for each layer."""
    grouped = q.shape[1] != plain[0][0].shape[1]
    other = [(_token_major(k), _token_major(v)) for k, v in plain]
    times: dict[str, float] = {}
    made: dict[str, list[Call]] = {}
    for name, (form, token_major) in FORMS.items():
        if not grouped and form in (_grouped, _expanded):
            continue
        chosen = other if token_major else plain
        result = form(q, *chosen[0])
        cache_shapes.must_be_close(
            result.float().numpy(), expected.numpy(), dtype, f"torch's attention, {name}"
        )
        made[name] = [partial(form, q, *pair) for pair in chosen]
        first = cache_shapes.once(made[name][0])
        if not times or first < HOPELESS * min(times.values()):
            first = min(first, *(cache_shapes.once(call) for call in (made[name] * 3)[:6]))
        times[name] = first
    name = min(times, key=lambda one: times[one])
    return name, made[name]


# ---- appending -----------------------------------------------------------------------------------


def append(
    rounds: int,
    quick: bool,
    counts: Sequence[int],
    heads: Heads = LLAMA,
    filled: int = FILLED,
    depth: int | None = None,
) -> Iterator[Measured]:
    """Yields one token appended to all layers, against DynamicCache, which copies what it has."""
    dtype = "bfloat16"
    depth = depth or DEPTH[quick]
    shape = (1, heads.stored, filled, heads.size)
    k = cache_shapes.random_rows(shape, dtype, 1)
    token = cache_shapes.random_rows((1, heads.stored, 1, heads.size), dtype, 2)
    plain_token = tensor(token)
    plain: Any = DynamicCache()
    for layer in range(depth):
        plain.update(tensor(k), tensor(k), layer)
    with KVCache(depth, heads.stored, heads.size, dtype=dtype) as ours:
        for layer in range(depth):
            ours.append(layer, k, k)

        def ours_appended() -> None:
            # Blocks are made of several tokens at once, and all of these share that.
            for _ in range(APPENDED):
                for layer in range(depth):
                    ours.append(layer, token, token)

        def plain_appended() -> None:
            for layer in range(depth):
                plain.update(plain_token, plain_token, layer)

        ours_appended()
        plain_appended()
        stop = filled + 1
        read = ours.read(depth - 1, "k", start=filled - 8, stop=stop).view(np.uint16)
        expected = plain.layers[-1].keys[:, :, filled - 8 : stop].view(torch.uint16).numpy()
        if not np.array_equal(read, expected):
            raise CheckError("A token that was appended is wrong, so its speed means nothing.")
        for number in counts:
            with cache_shapes.threads(number):
                found = cache_shapes.in_turn(
                    {"ours": [ours_appended], "plain": [plain_appended]}, rounds, quick
                )
            yield Measured(
                APPEND,
                number,
                heads.name,
                dtype,
                filled,
                1,
                [seconds / APPENDED for seconds in found["ours"]],
                found["plain"],
                f"{depth} layers",
            )
