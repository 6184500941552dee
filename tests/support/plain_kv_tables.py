# SPDX-License-Identifier: Apache-2.0
"""KVTables without encryption: the same interface over lists of NumPy arrays, and an attention in
float64. It is what the native tables are compared with, and what adapters are tested on."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from pyccmem import errors

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


def memory(address: int, elements: int, dtype: str) -> np.ndarray:
    """So many elements at an address, which may be written to; bfloat16 as uint16."""
    kind = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}[dtype]
    if not elements:
        return np.empty(0, kind)
    buffer = (ctypes.c_char * (elements * SIZES[dtype])).from_address(address)
    return np.frombuffer(buffer, kind)


def strided(address: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A view of shape `shape` with strides in elements; the last dimension is dense."""
    if not all(shape):
        return np.empty(shape, memory(0, 0, dtype).dtype)
    extent = sum((n - 1) * s for n, s in zip(shape[:-1], strides, strict=True)) + shape[-1]
    flat = memory(address, extent, dtype)
    size = SIZES[dtype]
    return np.lib.stride_tricks.as_strided(
        flat, shape, (*(s * size for s in strides), size), writeable=True
    )


def opened(array: Any, dtype: str) -> np.ndarray:
    """As float64."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def closed(values: np.ndarray, dtype: str) -> np.ndarray:
    """From float64, rounded to the nearest, ties to even."""
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype({"float32": np.float32, "float16": np.float16}[dtype])


def rounded(values: np.ndarray) -> np.ndarray:
    """What a row is after int8 with a scale for it."""
    scale = np.abs(values).max(-1, keepdims=True) / 127.0
    whole = np.rint(np.divide(values, scale, out=np.zeros_like(values), where=scale > 0))
    return whole * scale


class Layer:
    def __init__(self, dtype: str, heads: int, key_size: int, value_size: int, n: int) -> None:
        self.dtype, self.heads, self.sizes = dtype, heads, (key_size, value_size)
        empty = [np.empty((heads, 0, size)) for size in self.sizes]
        #: For each sequence K and V of shape (heads, tokens, size), and the first token left.
        self.sequences = [(empty[0], empty[1], 0) for _ in range(n)]


class PlainKVTables:
    """See pyccmem.core.kv_tables.KVTables."""

    BLOCK = 4

    def __init__(self, sequences: int, *, level: str | None = None, require: str | None = None):
        self._n, self._layers, self._gone = sequences, [], [False]
        self.closed = False
        self.attended = 0

    def _check(self) -> None:
        if self.closed or self._gone[0]:
            raise errors.ClosedError("erased")

    def add_layer(self, dtype: str, heads: int, key_size: int, value_size: int) -> int:
        self._layers.append(Layer(dtype, heads, key_size, value_size, self._n))
        return len(self._layers) - 1

    def block_tokens(self, layer: int) -> int:
        return self.BLOCK

    def sequences(self, layer: int) -> int:
        return len(self._layers[layer].sequences)

    def length(self, layer: int, sequence: int) -> tuple[int, int]:
        k, _, first = self._layers[layer].sequences[sequence]
        return k.shape[1], first

    def append(self, layer, k, v, tokens, *, sequence=0, sequences=None) -> None:
        self._check()
        this = self._layers[layer]
        n = len(this.sequences) - sequence if sequences is None else sequences
        new = []
        for rows, size in zip((k, v), this.sizes, strict=True):
            values = strided(
                rows.address,
                rows.dtype,
                (n, this.heads, tokens, size),
                (rows.sequence, rows.head, rows.token),
            )
            values = opened(values, rows.dtype)
            if this.dtype == "int8":
                values = rounded(values)
            elif this.dtype != rows.dtype:
                raise errors.ArgumentError("another type")
            new.append(values)
        for i in range(n):
            old_k, old_v, first = this.sequences[sequence + i]
            this.sequences[sequence + i] = (
                np.concatenate((old_k, new[0][i]), 1),
                np.concatenate((old_v, new[1][i]), 1),
                first,
            )

    def crop(self, layer: int, sequence: int, tokens: int) -> None:
        self._check()
        this = self._layers[layer]
        k, v, first = this.sequences[sequence]
        if tokens > k.shape[1] or (tokens < first):
            raise errors.RangeError("evicted, or not there")
        this.sequences[sequence] = (k[:, :tokens], v[:, :tokens], first)

    def evict(self, layer: int, sequence: int, before: int) -> None:
        this = self._layers[layer]
        k, v, first = this.sequences[sequence]
        full = min(before, k.shape[1]) // self.BLOCK * self.BLOCK
        first = max(first, full)
        k, v = k.copy(), v.copy()
        k[:, :first] = v[:, :first] = np.nan
        this.sequences[sequence] = (k, v, first)

    def reorder(self, layer: int, source: list[int]) -> None:
        this = self._layers[layer]
        this.sequences = [this.sequences[s] for s in source]

    def read(self, layer, sequence, which, first, tokens, out) -> None:
        self._check()
        this = self._layers[layer]
        number = {"k": 0, "v": 1}[which]
        found = this.sequences[sequence]
        if first < found[2] or first + tokens > found[0].shape[1]:
            raise errors.RangeError("evicted, or not there")
        values = found[number][:, first : first + tokens]
        place = strided(
            out.address,
            out.dtype,
            (this.heads, tokens, this.sizes[number]),
            (out.head, out.token),
        )
        place[...] = closed(values, out.dtype)

    def attend(self, what: Any) -> None:
        self._check()
        self.attended += 1
        this = self._layers[what.layer]
        n, heads, rows = what.sequences, what.query_heads, what.rows
        q = strided(
            what.q,
            what.q_dtype,
            (n, heads, rows, this.sizes[0]),
            (what.q_sequence, what.q_head, what.q_row),
        )
        out = strided(
            what.out,
            what.q_dtype,
            (n, heads, rows, this.sizes[1]),
            (what.out_sequence, what.out_head, what.out_row),
        )
        q = opened(q, what.q_dtype)
        for s in range(n):
            k, v, evicted = this.sequences[what.sequence + s]
            length = k.shape[1]
            token = np.arange(length)[None, :]
            position = np.arange(length - rows, length)[:, None]
            seen = np.broadcast_to(token >= evicted, (rows, length)).copy()
            if what.causal:
                seen &= token <= position
            if what.window:
                seen &= token > position - what.window
            if what.from_ is not None:
                seen &= token >= int(what.from_[s])
            if what.to is not None:
                seen &= token < int(what.to[s])
            for h in range(heads):
                group = h // (heads // this.heads)
                scores = q[s, h] @ np.nan_to_num(k[group]).T * what.scale
                if what.softcap:
                    scores = np.tanh(scores / what.softcap) * what.softcap
                row_seen = seen
                if what.mask is not None:
                    # Of what was evicted there need be no value.
                    count = min(length, what.mask_tokens)
                    skip = min(evicted, count)
                    at = what.mask + 4 * (s * what.mask_sequence + h * what.mask_head + skip)
                    added = strided(at, "float32", (rows, count - skip), (what.mask_row,))
                    matrix = np.full((rows, length), -np.inf)
                    matrix[:, skip:count] = added
                    scores = scores + matrix
                    row_seen = seen & (matrix > -np.inf)
                scores = np.where(row_seen, scores, -np.inf)
                sink = -np.inf
                if what.sinks is not None:
                    sink = float(memory(what.sinks, heads, "float32")[h])
                top = np.maximum(scores.max(1, initial=-np.inf), sink)
                top = np.where(np.isfinite(top), top, 0.0)
                weights = np.exp(scores - top[:, None])
                total = weights.sum(1) + np.exp(sink - top)
                weights = np.divide(
                    weights, total[:, None], out=np.zeros_like(weights), where=total[:, None] > 0
                )
                out[s, h] = closed(weights @ np.nan_to_num(v[group]), what.q_dtype)

    def fork(self) -> PlainKVTables:
        self._check()
        other = PlainKVTables(self._n)
        other._gone = self._gone
        for this in self._layers:
            copy = Layer(this.dtype, this.heads, *this.sizes, 0)
            copy.sequences = list(this.sequences)
            other._layers.append(copy)
        return other

    def erase(self) -> None:
        self._gone[0] = True

    @property
    def erased(self) -> bool:
        return self._gone[0] or self.closed

    def close(self) -> None:
        self.closed = True

    def stats(self) -> dict[str, int]:
        return {"blocks": 0, "records": 0}
