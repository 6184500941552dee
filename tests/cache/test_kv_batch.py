# SPDX-License-Identifier: Apache-2.0
"""One native call for the rows of a batch that belong to several caches: against float64, and what
becomes of the others where one cannot be done."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest

import pyccmem
from pyccmem import errors
from pyccmem.core.kv_tables import Attention, Batch, KVTables, Rows

HEADS, SIZE, QUERY_HEADS = 2, 64, 6

#: Tokens before, and new rows. Short ones, a long one beside them, prompts, all together.
BATCHES = [
    [(5, 1)],
    [(40, 1), (3, 1)],
    [(17, 1), (0, 1), (600, 1), (31, 2)],
    [(0, 70), (50, 1), (9, 33), (1, 1), (128, 7)],
    [(20 + n, 1) for n in range(16)],
]


class Server:
    """Caches with what they hold in the clear beside them, and a batch of new rows."""

    def __init__(self, runs: Sequence[tuple[int, int]], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tables, self.layers, self.seen, self.runs = [], [], [], []
        count = sum(rows for _, rows in runs)
        # Rows of a batch as they come out of one merged product.
        merged = rng.standard_normal((count, (QUERY_HEADS + 2 * HEADS) * SIZE)).astype("f4")
        cuts = np.cumsum([QUERY_HEADS * SIZE, HEADS * SIZE])
        self.q, self.k, self.v = (
            part.reshape(count, -1, SIZE) for part in np.split(merged, cuts, axis=1)
        )
        self.out = np.full((count, QUERY_HEADS, SIZE), 7.5, "f4")
        first = 0
        for number, (past, rows) in enumerate(runs):
            tables = KVTables(1)
            for _ in range(number % 3):  # not the same layer in each
                tables.add_layer("float32", 1, 8, 8)
            layer = tables.add_layer("float32", HEADS, SIZE, SIZE)
            k, v = (rng.standard_normal((past, HEADS, SIZE)).astype("f4") for _ in "kv")
            if past:
                tables.append(layer, rows_of(k), rows_of(v), past)
            mine = slice(first, first + rows)
            self.seen.append((np.concatenate([k, self.k[mine]]), np.concatenate([v, self.v[mine]])))
            self.tables.append(tables)
            self.layers.append(layer)
            self.runs.append((tables, past, first, rows))
            first += rows

    def what(self) -> Attention:
        size = self.q.itemsize
        q_row, q_head, _ = (stride // size for stride in self.q.strides)
        return Attention(
            layer=9, sequence=3, sequences=2, query_heads=QUERY_HEADS, rows=0,
            q=self.q.ctypes.data, q_dtype="float32", q_sequence=0, q_head=q_head, q_row=q_row,
            out=self.out.ctypes.data, out_sequence=0, out_head=SIZE, out_row=QUERY_HEADS * SIZE,
            scale=0.125,
        )  # fmt: skip

    def attend(self) -> list[int]:
        return Batch(self.runs).attend(self.layers, rows_of(self.k), rows_of(self.v), self.what())

    def check(self, number: int) -> None:
        """The rows of one run are those of its own keys and values."""
        _, past, first, rows = self.runs[number]
        keys, values = (np.asarray(one, "f8") for one in self.seen[number])
        for r in range(rows):
            for h in range(QUERY_HEADS):
                of = h // (QUERY_HEADS // HEADS)
                scores = keys[: past + r + 1, of] @ self.q[first + r, h].astype("f8") * 0.125
                weights = np.exp(scores - scores.max())
                exact = weights @ values[: past + r + 1, of] / weights.sum()
                assert np.abs(self.out[first + r, h] - exact).max() < 1e-5


def rows_of(states: np.ndarray) -> Rows:
    token, head, _ = (stride // states.itemsize for stride in states.strides)
    return Rows(states.ctypes.data, "float32", 0, head, token)


@pytest.mark.parametrize("runs", BATCHES)
@pytest.mark.parametrize("threads", [1, 2])
def test_each_run_is_an_attention_of_its_own(runs: list[tuple[int, int]], threads: int) -> None:
    before = pyccmem.get_num_threads()
    pyccmem.set_num_threads(threads)
    try:
        server = Server(runs)
        assert server.attend() == []
    finally:
        pyccmem.set_num_threads(before)
    for number, (tables, past, _, rows) in enumerate(server.runs):
        assert tables.length(server.layers[number], 0) == (past + rows, 0)
        server.check(number)


def test_the_check_notices_a_run_of_somebody_else() -> None:
    server = Server([(5, 1), (6, 1)])
    assert server.attend() == []
    server.seen.reverse()
    with pytest.raises(AssertionError):
        server.check(0)


def test_a_changed_block_fails_its_run_alone() -> None:
    server = Server([(40, 1), (40, 1), (3, 40), (40, 1)])
    place = server.tables[1].places(server.layers[1], 0)[0]
    byte = ctypes.c_uint8.from_address(place.data + 5)
    byte.value ^= 1
    assert server.attend() == [1]
    assert not server.out[1].any()
    for number in (0, 2, 3):
        server.check(number)
    with pytest.raises(errors.IntegrityError):
        what = server.what()
        what.layer, what.sequence, what.sequences, what.rows = server.layers[1], 0, 1, 1
        server.tables[1].attend(what)


def test_a_run_that_does_not_go_on_where_its_cache_ends_is_left_as_it_was() -> None:
    server = Server([(12, 1), (8, 1)])
    server.runs[0] = (server.tables[0], 11, 0, 1)
    assert server.attend() == [0]
    assert server.tables[0].length(server.layers[0], 0)[0] == 12
    assert (server.out[0] == 7.5).all()
    server.check(1)


def test_an_erased_cache_and_a_layer_that_is_none() -> None:
    server = Server([(4, 1), (4, 1), (4, 1)])
    server.tables[0].erase()
    server.layers[2] = 77
    assert server.attend() == [0, 2]
    server.check(1)
    server.layers[1] = -1
    assert server.attend() == [0, 1, 2]


def test_what_a_batch_does_not_take() -> None:
    server = Server([(4, 1)])
    what = server.what()
    what.to = np.array([3], np.uint64)
    with pytest.raises(errors.ArgumentError, match="no bounds"):
        Batch(server.runs).attend(server.layers, rows_of(server.k), rows_of(server.v), what)
    server.tables[0].close()
    with pytest.raises(errors.ClosedError):
        Batch(server.runs)
