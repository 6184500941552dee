# SPDX-License-Identifier: Apache-2.0
"""Long mixed sequences of calls beside a model of plain arrays: after each step the cache holds
what the model does, and no number was ever used for two contents, under any key, over the whole
run."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from kv_support import Numbers, Options, assert_near, attention, data_of, tables_of

from pyccmem import KVCache, errors

LAYERS, HEADS, KEY, VALUE = 2, 2, 128, 96  # 16 tokens a block
BLOCK = 16
LONGEST = 90
MOST = 5  # sequences, and forks


class Rows:
    """K and V of one sequence of one layer, [heads, tokens, size], and what was evicted."""

    def __init__(self, k: np.ndarray, v: np.ndarray, first: int = 0) -> None:
        self.k, self.v, self.first = k, v, first

    @classmethod
    def empty(cls) -> Rows:
        return cls(np.zeros((HEADS, 0, KEY), "f4"), np.zeros((HEADS, 0, VALUE), "f4"))

    @property
    def length(self) -> int:
        return self.k.shape[1]

    def with_more(self, k: np.ndarray, v: np.ndarray) -> Rows:
        return Rows(np.concatenate([self.k, k], 1), np.concatenate([self.v, v], 1), self.first)

    def cropped(self, n: int) -> Rows:
        return Rows(self.k[:, :n], self.v[:, :n], self.first if n else 0)

    def evicted(self, before: int) -> Rows:
        """Whole blocks go; what is not in a block stays."""
        gone = min(before, self.length) // BLOCK * BLOCK
        return Rows(self.k, self.v, max(self.first, gone))


class Twin:
    """A cache and its model: for each layer a list of sequences."""

    def __init__(self, cache: KVCache, model: list[list[Rows]]) -> None:
        self.cache, self.model = cache, model

    def check(self, numbers: Numbers, layers: Any, rng: np.random.Generator) -> None:
        for layer in layers:
            assert self.cache._opened().sequences(layer) == len(self.model[layer])
            for s, rows in enumerate(self.model[layer]):
                assert self.cache.length(layer, s) == rows.length
                assert self.cache.first(layer, s) == rows.first
                for which, plain in (("k", rows.k), ("v", rows.v)):
                    found = self.cache.read(layer, which, sequence=s)
                    assert found.tobytes() == plain[:, rows.first :].tobytes()
        numbers.look(tables_of(self.cache))
        assert self.cache.stats()["sealed"] > max(numbers.seen, default=-1)

    def attend(self, layer: int, rng: np.random.Generator) -> None:
        rows = int(rng.integers(1, 4))
        model = self.model[layer]
        q = rng.standard_normal((len(model), 2 * HEADS, rows, KEY)).astype("f4")
        wanted = attention(
            q,
            [one.k[:, one.first :] for one in model],
            [one.v[:, one.first :] for one in model],
            Options(),
            "float32",
            [one.first for one in model],
        )
        assert_near(self.cache.attend(layer, q), wanted)


class Run:
    """Random steps, on a cache and its forks."""

    def __init__(self, seed: int) -> None:
        self.pick, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.numbers, self.twins = Numbers(), [self.new()]
        self.counts: dict[str, int] = {}

    def new(self) -> Twin:
        cache = KVCache(LAYERS, HEADS, KEY, VALUE, dtype="float32")
        assert tables_of(cache).block_tokens(0) == BLOCK
        return Twin(cache, [[Rows.empty()] for _ in range(LAYERS)])

    def rows(self, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        return tuple(  # type: ignore[return-value]
            self.rng.random((*shape, size), dtype=np.float32) for size in (KEY, VALUE)
        )

    def step(self) -> None:
        twin = self.pick.choice(self.twins)
        name = self.pick.choices(
            ["append", "append_all", "token", "crop", "crop_all", "reorder", "repeat", "fork",
             "close", "evict", "attend", "refused", "begin"],
            [8, 4, 12, 5, 3, 3, 1, 2, 2, 3, 4, 2, 0.1],
        )[0]  # fmt: skip
        layers = getattr(self, name)(twin)
        self.counts[name] = self.counts.get(name, 0) + 1
        if twin in self.twins:
            twin.check(self.numbers, range(LAYERS) if layers is None else layers, self.rng)

    # ---- the steps ----

    def append(self, twin: Twin) -> Any:
        layer = self.pick.randrange(LAYERS)
        s = self.pick.randrange(len(twin.model[layer]))
        if twin.model[layer][s].length > LONGEST:
            return []
        k, v = self.rows(HEADS, self.pick.randrange(0, 3 * BLOCK))
        twin.cache.append(layer, k, v, sequence=s)
        twin.model[layer][s] = twin.model[layer][s].with_more(k, v)
        return [layer]

    def append_all(self, twin: Twin, count: int | None = None) -> Any:
        layer = self.pick.randrange(LAYERS)
        model = twin.model[layer]
        if max(one.length for one in model) > LONGEST:
            return []
        count = self.pick.randrange(1, BLOCK) if count is None else count
        k, v = self.rows(len(model), HEADS, count)
        twin.cache.append(layer, k, v)
        twin.model[layer] = [one.with_more(k[s], v[s]) for s, one in enumerate(model)]
        return [layer]

    def token(self, twin: Twin) -> Any:
        return self.append_all(twin, 1)

    def crop(self, twin: Twin) -> Any:
        layer = self.pick.randrange(LAYERS)
        counts = [
            self.pick.choice([one.length, self.pick.randint(one.first, one.length)])
            for one in twin.model[layer]
        ]
        twin.cache.crop(counts, layer=layer)
        twin.model[layer] = [
            one.cropped(n) for one, n in zip(twin.model[layer], counts, strict=True)
        ]
        return [layer]

    def crop_all(self, twin: Twin) -> Any:
        every = [one for model in twin.model for one in model]
        least, most = max(one.first for one in every), min(one.length for one in every)
        if 0 < most < least:
            with pytest.raises(errors.RangeError):
                twin.cache.crop(most)
            return None
        n = self.pick.randint(max(least, most - 12), most) if most else 0
        twin.cache.crop(n)
        twin.model = [[one.cropped(n) for one in model] for model in twin.model]
        return None

    def reorder(self, twin: Twin) -> Any:
        n = len(twin.model[0])
        chosen = [self.pick.randrange(n) for _ in range(self.pick.randint(1, MOST))]
        twin.cache.reorder(chosen)
        twin.model = [[model[at] for at in chosen] for model in twin.model]
        return None

    def repeat(self, twin: Twin) -> Any:
        if len(twin.model[0]) * 2 > MOST:
            return []
        twin.cache.repeat(2)
        twin.model = [[one for one in model for _ in range(2)] for model in twin.model]
        return None

    def fork(self, twin: Twin) -> Any:
        if len(self.twins) < MOST:
            self.twins.append(Twin(twin.cache.fork(), [list(model) for model in twin.model]))
        return None

    def close(self, twin: Twin) -> Any:
        if len(self.twins) > 1:
            self.twins.remove(twin)
            twin.cache.close()
        return []

    def evict(self, twin: Twin) -> Any:
        layer = self.pick.randrange(LAYERS)
        before = self.pick.randint(0, LONGEST)
        twin.cache.evict(before, layer=layer)
        twin.model[layer] = [one.evicted(before) for one in twin.model[layer]]
        return [layer]

    def attend(self, twin: Twin) -> Any:
        twin.attend(self.pick.randrange(LAYERS), self.rng)
        return []

    def refused(self, twin: Twin) -> Any:
        """What fails changes nothing, though other layers and sequences came first."""
        counts = [one.length for one in twin.model[0]]
        counts[-1] = max(one.length for model in twin.model for one in model) + 1
        with pytest.raises(errors.RangeError):
            twin.cache.crop(counts)
        with pytest.raises(errors.ArgumentError):
            twin.cache.reorder([0, len(counts)])
        return None

    def begin(self, twin: Twin) -> Any:
        """Another cache, under another key."""
        for one in self.twins:
            one.cache.close()
        self.twins, self.numbers = [self.new()], Numbers()
        return []


def run(seed: int, steps: int) -> Run:
    steady = Run(seed)
    for _ in range(steps):
        steady.step()
    assert min(steady.counts.values()) > 0 and len(steady.counts) > 11
    return steady


def test_mixed_steps() -> None:
    run(1, 2500)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 7))
def test_a_hundred_thousand_mixed_steps(seed: int) -> None:
    run(seed, 20_000)


# ---- controls ------------------------------------------------------------------------------------


def test_a_number_that_comes_twice_is_noticed() -> None:
    steady = run(3, 200)
    tables = tables_of(steady.twins[0].cache)
    steady.token(steady.twins[0])
    steady.numbers.look(tables)
    place = tables.places(0, 0)[-1]
    data_of(place)[5] ^= 1  # as if other contents had been sealed under it
    with pytest.raises(AssertionError, match=f"number {place.number} was used for two"):
        steady.numbers.look(tables)


def test_a_model_that_is_wrong_is_noticed() -> None:
    steady = run(4, 200)
    twin = steady.twins[0]
    steady.token(twin)
    twin.check(steady.numbers, range(LAYERS), steady.rng)
    right = twin.model[1]
    twin.model[1] = [one.with_more(*steady.rows(HEADS, 1)) for one in right]
    with pytest.raises(AssertionError):
        twin.check(steady.numbers, [1], steady.rng)
    twin.model[1] = [Rows(one.k, one.v + 1) for one in right]
    with pytest.raises(AssertionError):
        twin.check(steady.numbers, [1], steady.rng)
