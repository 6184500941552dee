# SPDX-License-Identifier: Apache-2.0
"""Attention over an encrypted cache against the same over one that encrypts nothing: what the
cipher costs, by the same code on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .. import measure
from ..kv_cache import KVCache
from . import cache_shapes
from .cache_shapes import LLAMA, MULTI, Heads, Layers, Measured
from .rounds import CheckError

TASK = "plain-pages"

#: Heads, type, tokens, rows of q. The rows of a prompt are all of its tokens.
CASES: tuple[tuple[Heads, str, int, int], ...] = (
    (LLAMA, "bfloat16", 8192, 1),
    (LLAMA, "float32", 8192, 1),
    (MULTI, "bfloat16", 8192, 1),
    (LLAMA, "bfloat16", 256, 256),
    (LLAMA, "bfloat16", 2048, 2048),
)


def measure_here(
    rounds: int,
    quick: bool,
    counts: Sequence[int],
    cases: Sequence[tuple[Heads, str, int, int]] = CASES,
) -> Iterator[Measured]:
    """Yields all cases, with each number of threads."""
    for heads, dtype, tokens, rows in cases:
        layers = Layers(heads, dtype, tokens, rows)
        with layers.filled(KVCache) as ours, layers.filled(measure.plain_cache) as plain:
            _check(layers, ours, plain)
            for number in counts:
                with cache_shapes.threads(number):
                    found = cache_shapes.in_turn(
                        {"ours": layers.calls(ours), "plain": layers.calls(plain)}, rounds, quick
                    )
                yield Measured(
                    TASK, number, heads.name, dtype, tokens, rows, found["ours"], found["plain"]
                )


def _check(layers: Layers, ours: KVCache, plain: KVCache) -> None:
    """Both must give the same bits, and the last row what NumPy gives."""
    got, same = ours.attend(0, layers.q), plain.attend(0, layers.q)
    what = f"{layers.heads.name}, {layers.dtype}, {layers.tokens} tokens, {layers.rows} rows"
    if not np.array_equal(got, same):
        raise CheckError(f"{what}: encrypted and plain differ, so their speeds mean nothing.")
    heads = layers.heads
    group = heads.query // heads.stored
    q = cache_shapes.as_float(layers.q)[0, :, -1].reshape(heads.stored, group, heads.size)
    k, v = cache_shapes.as_float(layers.k)[0], cache_shapes.as_float(layers.v)[0]
    scores = q @ k.transpose(0, 2, 1) * heads.size**-0.5
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    expected = weights @ v / weights.sum(axis=2, keepdims=True)
    cache_shapes.must_be_close(
        got[0, :, -1], expected.reshape(heads.query, heads.size), layers.dtype, what
    )
