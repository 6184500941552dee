# SPDX-License-Identifier: Apache-2.0
"""Attention over a cache against float64: every type, shape and option, alone and together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kv_support import DTYPES, Options, assert_near, attention, numpy_type

import pyccmem
from pyccmem import KVCache

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
GROUPS = (1, 2, 3, 4, 6, 7, 8)
QUERY_TYPES = ["float32", "float16", *(["bfloat16"] if "bfloat16" in DTYPES else [])]


class Case:
    """A cache of one layer, filled in steps, and what it should hold."""

    def __init__(
        self,
        dtype: str = "float32",
        heads: int = 2,
        key_size: int = 64,
        value_size: int | None = None,
        lengths: Any = (40,),
        steps: int = 3,
        seed: int = 0,
    ) -> None:
        value_size = key_size if value_size is None else value_size
        self.rng, self.dtype = np.random.default_rng(seed), dtype
        self.cache = KVCache(1, heads, key_size, value_size, dtype=dtype, sequences=len(lengths))
        kind = numpy_type(dtype)
        for s, tokens in enumerate(lengths):
            cuts = sorted(self.rng.integers(0, tokens + 1, steps - 1).tolist()) if steps > 1 else []
            for begin, end in zip([0, *cuts], [*cuts, tokens], strict=True):
                k = self.rng.standard_normal((heads, end - begin, key_size)).astype(kind)
                v = self.rng.standard_normal((heads, end - begin, value_size)).astype(kind)
                self.cache.append(0, k, v, sequence=s)
        self.keys, self.values = (
            [self.cache.read(0, which, sequence=s) for s in range(len(lengths))] for which in "kv"
        )

    def queries(self, heads: int, rows: int, dtype: str = "float32") -> np.ndarray:
        shape = (len(self.keys), heads, rows, self.keys[0].shape[-1])
        return self.rng.standard_normal(shape).astype(numpy_type(dtype))

    def answer(self, q: np.ndarray, options: Options, first: Any = None) -> Any:
        return attention(q, self.keys, self.values, options, self.dtype, first)

    def check(self, q: np.ndarray, **options: Any) -> None:
        found = self.cache.attend(0, q, **options)
        assert found.dtype == q.dtype
        assert_near(found, self.answer(q, Options(**options)))


# ---- shapes and types ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
def test_group_sizes(dtype: str, group: int) -> None:
    case = Case(dtype, heads=2, key_size=128, lengths=(77,))
    for rows in (1, 2, 5, 33):
        case.check(case.queries(2 * group, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query", QUERY_TYPES)
def test_types_of_queries(dtype: str, query: str) -> None:
    case = Case(dtype, heads=2, key_size=64, lengths=(50, 3))
    case.check(case.queries(4, 1, query))
    case.check(case.queries(4, 20, query))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("key_size", "value_size"),
    [(1, 1), (3, 5), (17, 8), (32, 32), (80, 80), (96, 64), (192, 128), (256, 256), (576, 512)],
)
def test_sizes_of_heads(dtype: str, key_size: int, value_size: int) -> None:
    case = Case(dtype, 1, key_size, value_size, lengths=(70,))
    for rows in (1, 9):
        case.check(case.queries(3, rows))


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 128, 700])
def test_lengths_of_sequences(tokens: int) -> None:
    case = Case(lengths=(tokens, 5))
    for rows in (1, 3, 40):
        case.check(case.queries(4, rows))
        case.check(case.queries(4, rows), causal=False)


def test_the_same_bits_with_any_number_of_threads() -> None:
    case = Case("float16", heads=4, key_size=128, lengths=(3000, 100))
    before = pyccmem.get_num_threads()
    try:
        for rows in (1, 60):
            q = case.queries(8, rows)
            found = []
            for threads in (1, 2, 5):
                pyccmem.set_num_threads(threads)
                found.append(case.cache.attend(0, q))
            assert_near(found[0], case.answer(q, Options()))
            for other in found[1:]:
                assert_near(other, case.answer(q, Options()))
    finally:
        pyccmem.set_num_threads(before)


# ---- options -------------------------------------------------------------------------------------


def _options(case: Case, heads: int, rows: int, name: str) -> dict[str, Any]:
    """An option that changes the answer."""
    tokens = max(k.shape[1] for k in case.keys)
    rng = case.rng
    return {
        "scale": {"scale": 0.7},
        "not causal": {"causal": False},
        "window": {"window": 5},
        "softcap": {"softcap": 1.5},
        "a mask of bool": {"mask": rng.random((tokens,)) < 0.7},
        "a mask of a row": {"mask": rng.standard_normal((rows, tokens)).astype("f4")},
        "a mask of a head": {"mask": rng.standard_normal((heads, 1, tokens)).astype("f4")},
        "a mask of a sequence": {
            "mask": rng.standard_normal((len(case.keys), 1, 1, tokens)).astype("f4")
        },
        "sinks": {"sinks": rng.standard_normal(heads).astype("f4")},
        "lengths": {"lengths": [tokens - 9, 4]},
        "starts": {"starts": [6, 2]},
    }[name]


OPTIONS = [
    "scale",
    "not causal",
    "window",
    "softcap",
    "a mask of bool",
    "a mask of a row",
    "a mask of a head",
    "a mask of a sequence",
    "sinks",
    "lengths",
    "starts",
]


@pytest.mark.parametrize("rows", [1, 6, 40])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option(name: str, rows: int) -> None:
    """And the control: without the option the answer is another one."""
    case = Case("float16", heads=2, key_size=64, lengths=(60, 45))
    q = case.queries(6, rows)
    options = _options(case, 6, rows, name)
    case.check(q, **options)
    if (name, rows) != ("not causal", 1):  # the last row sees all tokens anyway
        with pytest.raises(AssertionError, match="off by"):
            assert_near(case.cache.attend(0, q), case.answer(q, Options(**options)))
        with pytest.raises(AssertionError, match="off by"):
            assert_near(case.cache.attend(0, q, **options), case.answer(q, Options()))


def test_one_token_more_or_less_is_noticed() -> None:
    """A control of the causal limit and of the window."""
    case = Case(lengths=(60,))
    q = case.queries(2, 8)
    for options in ({"window": 9}, {"window": 11}, {"lengths": 59}, {"starts": 51}):
        wanted = case.answer(q, Options(window=10))
        with pytest.raises(AssertionError, match="off by"):
            assert_near(case.cache.attend(0, q, **options), wanted)
    shorter = Case(lengths=(60,))
    shorter.cache.crop(59)
    with pytest.raises(AssertionError, match="off by"):
        assert_near(shorter.cache.attend(0, q), case.answer(q, Options()))


def test_softcap_comes_before_the_mask() -> None:
    """A hidden token stays hidden: tanh() would make a number of -infinity."""
    case = Case(lengths=(30,))
    mask = np.zeros((1, 30), np.float32)
    mask[0, :20] = -np.inf
    case.check(case.queries(2, 3), softcap=20.0, mask=mask)
    case.check(case.queries(2, 3), softcap=20.0, mask=mask == 0)


@pytest.mark.parametrize("rows", [1, 30])
def test_rows_that_see_nothing_are_zeros(rows: int) -> None:
    case = Case(lengths=(20, 6))
    q = case.queries(2, rows)
    for options in (
        {"mask": np.zeros(20, bool)},
        {"mask": np.full((1, 20), -np.inf, np.float32), "softcap": 5.0},
        {"lengths": 0},
        {"starts": 20},
        {"lengths": [3, 3], "starts": [3, 5], "sinks": np.zeros(2)},
    ):
        out = np.ones_like(q)
        assert not case.cache.attend(0, q, out=out, **options).any()
    found = case.cache.attend(0, q)
    if rows > 6:
        assert not found[1, :, : rows - 6].any() and found[1, :, rows - 6 :].any()
    assert_near(found, case.answer(q, Options()))


def test_large_scores_do_not_overflow() -> None:
    case = Case("float16", key_size=128, lengths=(64,))
    q = case.queries(2, 2) * np.float32(3e3)
    case.check(q, scale=1.0)
    sink = np.float32([1e4, -1e4])
    case.check(q, sinks=sink)
    assert np.isfinite(case.cache.attend(0, q.astype("f2"))).all()


def test_what_is_not_a_number_stays_where_it_is() -> None:
    """A NaN in one row of q spoils that row alone; in V of one head, that head."""
    case = Case(heads=2, lengths=(30,))
    q = case.queries(4, 6)
    wanted = case.cache.attend(0, q)
    q[0, 1, 2, 5] = np.nan
    found = case.cache.attend(0, q)
    assert np.isnan(found[0, 1, 2]).all()
    rest = np.ones(found.shape, bool)
    rest[0, 1, 2] = False
    assert np.allclose(found[rest], wanted[rest], atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_after_eviction_positions_stay(dtype: str) -> None:
    case = Case(dtype, lengths=(200, 90))
    q = case.queries(4, 3)
    mask = case.rng.standard_normal((3, 200)).astype("f4")
    case.cache.evict([100, 64])
    first = [case.cache.first(0, s) for s in range(2)]
    assert all(0 < f <= wanted for f, wanted in zip(first, (100, 64), strict=True))
    assert [case.cache.length(0, s) for s in range(2)] == [200, 90]
    keys = [k[:, f:] for k, f in zip(case.keys, first, strict=True)]
    values = [v[:, f:] for v, f in zip(case.values, first, strict=True)]
    for options in ({}, {"window": 20}, {"mask": mask}, {"lengths": [150, 80]}, {"starts": 70}):
        wanted = attention(q, keys, values, Options(**options), dtype, first)
        assert_near(case.cache.attend(0, q, **options), wanted)


# ---- what goes in --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_out_as_they_went_in(dtype: str) -> None:
    rng = np.random.default_rng(5)
    k = rng.standard_normal((3, 37, 40)).astype(numpy_type(dtype))
    v = (rng.standard_normal((3, 37, 24)) * 100).astype(numpy_type(dtype))
    cache = KVCache(1, 3, 40, 24, dtype=dtype)
    cache.append(0, k[:, :20], v[:, :20])
    for t in range(20, 37):
        cache.append(0, k[:, t], v[:, t])
    for which, plain in (("k", k), ("v", v)):
        found = cache.read(0, which)[0]
        part = cache.read(0, which, sequence=0, start=13, stop=29)
        assert part.tobytes() == found[:, 13:29].tobytes()
        if dtype != "int8":
            assert found.dtype == plain.dtype and found.tobytes() == plain.tobytes()
            continue
        step = np.abs(plain).max(axis=-1, keepdims=True) / 127
        assert found.dtype == np.float32 and np.all(np.abs(found - plain) <= step * 0.501)


@pytest.mark.parametrize("given", QUERY_TYPES)
def test_int8_takes_each_type(given: str) -> None:
    rng = np.random.default_rng(6)
    k = rng.standard_normal((1, 20, 64)).astype(numpy_type(given))
    cache = KVCache(1, 1, 64, dtype="int8")
    cache.append(0, k, k)
    wide = np.asarray(k, np.float32)
    step = np.abs(wide).max(axis=-1, keepdims=True) / 127
    assert np.all(np.abs(cache.read(0, "k")[0] - wide) <= step * 0.501)


def test_int8_of_zeros_and_of_extremes() -> None:
    cache = KVCache(1, 1, 8, dtype="int8")
    rows = np.float32([[0] * 8, [3e38] + [-3e38] * 7, [1e-38] * 8, [127, -127, 1, -1, 0, 2, 3, 4]])
    cache.append(0, rows[None], rows[None])
    found = cache.read(0, "v")[0, 0]
    assert not found[0].any() and np.isfinite(found).all()
    assert np.allclose(found[1], rows[1], rtol=0.01) and np.array_equal(found[3], rows[3])


def test_strided_arrays_and_others_are_taken() -> None:
    rng = np.random.default_rng(7)
    wide = rng.standard_normal((30, 5, 2, 64)).astype("f4")
    k, v = wide[:, 1].transpose(1, 0, 2), wide[:, 3].transpose(1, 0, 2)
    wanted = KVCache(1, 2, 64, dtype="float32")
    wanted.append(0, np.ascontiguousarray(k), np.ascontiguousarray(v))
    q = rng.standard_normal((2, 4, 1, 64)).astype("f4").transpose(2, 1, 0, 3)
    forms = {
        "transposed": (k, v),
        "backwards": (k[:, ::-1][:, ::-1], v[::-1][::-1]),
        "not dense": (np.asfortranarray(k), np.repeat(v, 2, axis=-1)[..., ::2]),
        "float64": (k.astype("f8"), v.astype("f8")),
        "big-endian": (k.astype(">f4"), v.astype(">f4")),
        "lists": (k.tolist(), v.tolist()),
        "not aligned": tuple(
            np.frombuffer(b"x" + one.tobytes(), np.uint8)[1:].view("f4").reshape(one.shape)
            for one in (k, v)
        ),
    }
    for name, (one, other) in forms.items():
        cache = KVCache(1, 2, 64, dtype="float32")
        cache.append(0, one, other)
        for which in "kv":
            assert cache.read(0, which).tobytes() == wanted.read(0, which).tobytes(), name
        turned = q[:1][:, :, ::-1]
        plain = wanted.attend(0, np.ascontiguousarray(turned))
        assert np.array_equal(cache.attend(0, turned), plain), name
        wide_out = np.ones((2, 4, 6, 64), np.float32)
        out = wide_out[:1, :, ::3]
        assert cache.attend(0, turned, out=out) is out and np.array_equal(out, plain)
        wide_out[:1, :, ::3] = 1
        assert (wide_out == 1).all()


def test_bits_of_bfloat16() -> None:
    rng = np.random.default_rng(8)
    wide = rng.standard_normal((2, 20, 32)).astype("f4")
    bits = (wide.view("u4") >> 16).astype("u2")
    rounded = (bits.astype("u4") << 16).view("f4")
    cache = KVCache(1, 2, 32)
    assert cache.dtype == "bfloat16"
    cache.append(0, bits, bits)
    q = rng.standard_normal((2, 3, 32)).astype("f4")
    wanted = attention(q[None], [rounded], [rounded], Options(), "bfloat16")
    assert_near(cache.attend(0, q)[None], wanted)
    q_bits = (q.view("u4") >> 16).astype("u2")
    found = cache.attend(0, q_bits)
    assert found.dtype == np.uint16
    as_floats = (found.astype("u4") << 16).view("f4")
    q_rounded = (q_bits.astype("u4") << 16).view("f4")
    answer = attention(q_rounded[None], [rounded], [rounded], Options(), "bfloat16")
    assert np.allclose(as_floats, answer.values[0], atol=2.0**-7, rtol=2.0**-8)


# ---- everything together -------------------------------------------------------------------------


@st.composite
def cases(draw: Any) -> tuple[Case, np.ndarray, dict[str, Any]]:
    sequences = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(0, 90), min_size=sequences, max_size=sequences))
    heads, group = draw(st.integers(1, 3)), draw(st.sampled_from(GROUPS))
    sizes = st.integers(1, 140)
    case = Case(
        draw(st.sampled_from(DTYPES)),
        heads,
        draw(sizes),
        draw(sizes),
        lengths,
        draw(st.integers(1, 4)),
        draw(st.integers(0, 2**32)),
    )
    rows, tokens, rng = draw(st.integers(1, 40)), max(lengths), case.rng
    q = case.queries(heads * group, rows, draw(st.sampled_from(QUERY_TYPES)))
    options: dict[str, Any] = {"causal": draw(st.booleans())}
    if draw(st.booleans()):
        options["scale"] = draw(st.floats(-2, 2, width=32))
    if draw(st.booleans()):
        options["window"] = draw(st.integers(1, 60))
    if draw(st.booleans()):
        options["softcap"] = draw(st.floats(0.5, 50, width=32))
    if draw(st.booleans()):
        options["sinks"] = (rng.standard_normal(heads * group) * 3).astype("f4")
    for name in ("lengths", "starts"):
        if draw(st.booleans()):
            options[name] = rng.integers(0, tokens + 5, sequences).tolist()
    if tokens and draw(st.booleans()):
        shape = tuple(
            n if draw(st.booleans()) else 1 for n in (sequences, heads * group, rows, tokens)
        )[draw(st.integers(0, 3)) :]
        mask = (rng.standard_normal(shape) * 2).astype("f4")
        mask[rng.random(shape) < 0.2] = -np.inf
        options["mask"] = mask > 0 if draw(st.booleans()) else mask
    return case, q, options


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(cases())
def test_all_options_together(drawn: tuple[Case, np.ndarray, dict[str, Any]]) -> None:
    case, q, options = drawn
    case.check(q, **options)


@pytest.mark.full
@settings(max_examples=3000, suppress_health_check=SLOW)
@given(cases())
def test_all_options_together_at_length(drawn: tuple[Case, np.ndarray, dict[str, Any]]) -> None:
    case, q, options = drawn
    case.check(q, **options)
