# SPDX-License-Identifier: Apache-2.0
"""What the tests of key-value caches share: an attention in float64, how near a result has to be to
it, and where a cache keeps its ciphertext."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import pyccmem
from pyccmem import KVCache
from pyccmem.core.kv_tables import KVTables, Place

try:
    import ml_dtypes

    BFLOAT16: Any = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None

#: The types that caches store, as far as NumPy has them here.
DTYPES = ["float32", "float16", "int8", *(["bfloat16"] if BFLOAT16 is not None else [])]

#: What a result of each type is rounded by: half a unit in the last place of 1.
HALF_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def numpy_type(name: str) -> Any:
    """The dtype of arrays that go into a cache of this type, or of queries."""
    return {"bfloat16": BFLOAT16, "int8": np.dtype("f4")}.get(name) or np.dtype(name)


def tables_of(cache: KVCache) -> KVTables:
    """What a cache is made of."""
    return cache._opened()


# ---- the answer ----------------------------------------------------------------------------------


class Options(NamedTuple):
    """Of one attention, for all of its sequences."""

    scale: float | None = None
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    mask: Any = None
    sinks: Any = None
    lengths: Any = None
    starts: Any = None


class Answer(NamedTuple):
    """What an attention should give, and by how much a result may differ from it."""

    values: np.ndarray  # [sequences, query_heads, rows, value_size], float64
    error: np.ndarray


def attention(
    q: np.ndarray,
    keys: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    options: Options,
    dtype: str,
    first: Sequence[int] | None = None,
) -> Answer:
    """In float64, one row after the other: q is [sequences, query_heads, rows, size], keys[s] and
    values[s] are [heads, tokens, size] of tokens from first[s] on. `dtype`: the cache's."""
    kind = str(np.asarray(q).dtype)
    rounded = kind == dtype == "bfloat16" and rounds_weights()
    found = [
        _of_sequence(
            np.asarray(q[s], np.float64),
            np.asarray(keys[s], np.float64),
            np.asarray(values[s], np.float64),
            options,
            s,
            0 if first is None else first[s],
            dtype,
            rounded,
        )
        for s in range(len(q))
    ]
    out = np.stack([one[0] for one in found])
    error = np.stack([one[1] for one in found])
    tiny = 2.0**-24 if kind == "float16" else 0  # what the smallest numbers are rounded by
    return Answer(out, error + np.abs(out) * HALF_UNIT[kind] * 1.01 + tiny)


def _each(value: Any, s: int, default: int) -> int:
    return default if value is None else int(value if np.ndim(value) == 0 else value[s])


def rounds_weights() -> bool:
    """Whether kernels here round the weights of V to bfloat16 where q, K and V are of it."""
    info = pyccmem.cpu_info()
    return info["tier"] == "vaes512" and info["features"]["avx512_bf16"]


def _of_sequence(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    o: Options,
    s: int,
    first: int,
    dtype: str,
    rounded: bool,
) -> tuple[np.ndarray, np.ndarray]:
    heads, rows, size = q.shape
    group, length = heads // k.shape[0], first + k.shape[1]
    mask = None
    if o.mask is not None:
        mask = np.asarray(o.mask)
        if mask.dtype == bool:
            mask = np.where(mask, 0.0, -np.inf)
        while mask.ndim < 4:
            mask = mask[None]
        mask = mask[min(s, mask.shape[0] - 1)].astype(np.float64)
    scale = size**-0.5 if o.scale is None else o.scale
    out, error = np.zeros((heads, rows, v.shape[2])), np.zeros((heads, rows, 1))
    for h in range(heads):
        kv = h // group
        for r in range(rows):
            position = length - rows + r
            seen = np.arange(first, length)
            if o.causal:
                seen = seen[seen <= position]
            if o.window is not None:
                seen = seen[seen > position - o.window]
            seen = seen[seen >= _each(o.starts, s, 0)]
            seen = seen[seen < _each(o.lengths, s, length)]
            scores = q[h, r] @ k[kv, seen - first].T * scale
            # By how much float32 may miss a score.
            size_of_scores = np.abs(q[h, r]) @ np.abs(k[kv, seen - first]).T * abs(scale)
            if o.softcap:
                scores = o.softcap * np.tanh(scores / o.softcap)
            if mask is not None:
                m = mask[min(h, mask.shape[0] - 1), min(r, mask.shape[1] - 1)]
                added = m[seen] if mask.shape[2] > 1 else np.repeat(m, len(seen))
                scores = scores + added
                size_of_scores = size_of_scores + np.abs(np.where(np.isinf(added), 0, added))
            there = scores > -np.inf
            scores, seen = scores[there], seen[there]
            if not len(seen):
                continue
            sink = -np.inf if o.sinks is None else float(o.sinks[h])
            top = max(scores.max(), sink)
            weights = np.exp(scores - top)
            total = weights.sum() + np.exp(sink - top)
            values = v[kv, seen - first]
            out[h, r] = weights / total @ values
            largest = np.abs(values).max()
            units = 32 + 16 * size_of_scores.max() + np.sqrt(len(seen))
            error[h, r] = largest * units * 2.0**-23
            if rounded:  # to 8 bits
                error[h, r] += (weights / total @ np.abs(values)).max() * 2.0**-9
            if dtype == "int8":  # queries and weights are rounded to 15 bits
                error[h, r] += largest * (2 + size_of_scores.max()) * 2.0**-13
    return out, error


def assert_near(found: Any, answer: Answer) -> None:
    """That a result is as near to the answer as it should be."""
    got = np.asarray(found).astype(np.float64)
    assert got.shape == answer.values.shape, (got.shape, answer.values.shape)
    off = np.abs(got - answer.values)
    times = np.max(off / np.maximum(answer.error, 1e-300), initial=0)
    assert np.all(off <= answer.error), f"off by {times:.3g} times what it may be"


# ---- ciphertext ----------------------------------------------------------------------------------


def bytes_at(address: int, count: int) -> Any:
    """Memory as a writable array of bytes."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))


def data_of(place: Place) -> Any:
    return bytes_at(place.data, place.nbytes)


def tag_of(place: Place) -> Any:
    return bytes_at(place.tag, 16)


class Numbers:
    """Every number that a key was seen to be used with, and for what: none may come twice."""

    def __init__(self) -> None:
        self.seen: dict[int, bytes] = {}

    def look(self, tables: KVTables) -> int:
        """Looks at all that a cache holds. Returns at how many places."""
        count = 0
        digests: dict[int, bytes] = {}  # by address: beams share
        for layer in range(64):
            try:
                sequences = tables.sequences(layer)
            except ValueError:
                break
            for sequence in range(sequences):
                for place in tables.places(layer, sequence):
                    self.note(place, digests)
                    count += 1
        return count

    def note(self, place: Place, digests: dict[int, bytes]) -> None:
        digest = digests.get(place.data)
        if digest is None:
            found = hashlib.blake2b(data_of(place), digest_size=16)
            found.update(tag_of(place))
            digest = digests[place.data] = found.digest()
        before = self.seen.setdefault(place.number, digest)
        assert before == digest, f"number {place.number} was used for two contents"
