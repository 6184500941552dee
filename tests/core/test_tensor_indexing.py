# SPDX-License-Identifier: Apache-2.0
"""Index expressions: whatever numpy answers for a plain array is what a tensor must answer.

Values, shape, dtype, scalar or array, and the kind of exception are compared, for reading and for
assignment, over shapes that span several pages and shapes that are empty.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest

import pyccmem
from pyccmem import EncryptedTensor, errors

hypothesis = pytest.importorskip("hypothesis", reason="needs the [test] extra's hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

DTYPES = ("u1", "<f4", ">i4", "<f8", "<c16", "S3", "<M8[s]")

#: From a scalar to several pages, with rows that are smaller and larger than one.
SHAPES = (
    (),
    (7,),
    (3000,),
    (5, 4),
    (40, 300),
    (3, 2100),
    (4, 5, 6),
    (9, 3, 200),
    (2, 1, 3, 4),
    (0,),
    (3, 0, 2),
    (0, 4),
    (1, 1),
)

#: Of the largest of these tests; together they try four times as many expressions. `make test-full`
#: asks for 5,000.
EXAMPLES = int(os.environ.get("PYCCMEM_EXAMPLES", "2000"))
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def contents(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Values that all differ as far as the dtype can tell them apart."""
    numbers = np.arange(int(np.prod(shape)), dtype=np.int64) * 7919 % 1_000_003
    if dtype.startswith("S"):
        numbers %= 1000
    return numbers.astype(np.dtype(dtype)).reshape(shape)


class Pairs(dict):
    """(plain array, tensor) by shape and dtype; without the contents in a failure's report."""

    def __repr__(self) -> str:
        return f"<{len(self)} pairs>"


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """A plain array and a tensor of the same contents for every shape and dtype."""
    made = Pairs()
    with pyccmem.Key.generate() as key:
        for shape in SHAPES:
            for dtype in DTYPES:
                plain = contents(shape, dtype)
                made[shape, dtype] = (plain, EncryptedTensor.from_numpy(plain, key=key))
    return made


def bound(n: int) -> st.SearchStrategy[int | None]:
    """A limit of a slice: mostly inside an axis of length n, sometimes beyond it."""
    return st.none() | st.integers(-n - 2, n + 2)


@st.composite
def slices(draw: st.DrawFn, n: int) -> slice:
    steps = (
        st.none() | st.integers(-4, 4) | st.integers(-n - 2, n + 2) | st.sampled_from((130, -700))
    )
    return slice(draw(bound(n)), draw(bound(n)), draw(steps))


def numbers(n: int) -> st.SearchStrategy[Any]:
    """One index along an axis of length n, in the types that count as one; few are outside."""
    inside = st.integers(-n, n - 1) if n else st.just(0)
    kinds = (int, np.int64, np.uint8, np.int16, lambda i: np.array(i))
    typed = st.tuples(inside, st.sampled_from(kinds)).map(
        lambda pair: pair[1](pair[0] if pair[1] is not np.uint8 else abs(pair[0]) % 256)
    )
    return inside | inside | typed | st.integers(-n - 3, n + 3)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """An array that selects along the first axis of `shape`, or along its first axes."""
    n = shape[0] if shape else 0
    kind = draw(st.sampled_from(("integers", "integers", "list", "mask", "masks", "outside")))
    if kind in ("mask", "masks"):
        length = shape[: 1 if kind == "mask" else draw(st.integers(1, max(len(shape), 1)))]
        if draw(st.integers(0, 20)) == 0:
            length = (*length[:-1], (length or (1,))[-1] + 1)
        seed = draw(st.integers(0, 2**32 - 1))
        share = draw(st.sampled_from((0.0, 0.05, 0.5, 1.0)))
        return np.random.default_rng(seed).random(length) < share
    reach = n + 1 if kind == "outside" else n
    rank = 1 if kind == "list" else draw(st.integers(1, 2))
    size = tuple(draw(st.integers(0, 5)) for _ in range(rank))
    seed = draw(st.integers(0, 2**32 - 1))
    picked = np.random.default_rng(seed).integers(-reach, max(reach, 1), size)
    if kind == "list":
        return picked.tolist()
    return picked.astype(draw(st.sampled_from(("i8", "i4", "i2"))))


@st.composite
def basic(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """A basic index, as likely right as wrong in one place."""
    items: list[Any] = []
    used = draw(st.integers(0, len(shape) + (draw(st.integers(0, 15)) == 0)))
    for axis in range(used):
        n = shape[axis] if axis < len(shape) else 1
        items.append(draw(numbers(n) | slices(n) | slices(n)))
    for extra in draw(st.lists(st.sampled_from((None, None, Ellipsis)), max_size=2)):
        items.insert(draw(st.integers(0, len(items))), extra)
    if len(items) == 1 and draw(st.booleans()):
        return items[0]
    return tuple(items)


@st.composite
def leading_array(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """An array along the first axis and a basic index for the others."""
    first = draw(arrays(shape))
    rest = draw(basic(shape[1:]) if len(shape) > 1 else st.just(()))
    if not isinstance(rest, tuple):
        rest = (rest,)
    if not rest and draw(st.booleans()):
        return first
    return (first, *rest)


@st.composite
def anything(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Arrays anywhere, several of them, and what is no index at all."""
    items: list[Any] = []
    for axis in range(draw(st.integers(1, len(shape) + 1))):
        left = shape[axis:] or (1,)
        choice = draw(st.integers(0, 9))
        if choice < 4:
            items.append(draw(arrays(left)))
        elif choice < 8:
            items.append(draw(numbers(left[0]) | slices(left[0])))
        else:
            odd = (
                True,
                False,
                np.True_,
                1.5,
                "x",
                [[1, 0]],
                [],
                None,
                ...,
                [1.0],
                1j,
                2**70,
                b"a",
                np.timedelta64(1, "s"),
            )
            items.append(draw(st.sampled_from(odd)))
    return items[0] if len(items) == 1 and draw(st.booleans()) else tuple(items)


def outcome(work: Any) -> tuple[Any, Exception | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about casts that lose something
            return work(), None
    except Exception as error:
        return None, error


def same_kind_of_error(expected: Exception, found: Exception | None) -> None:
    if not isinstance(expected, (IndexError, TypeError, ValueError)):
        # A value's own failure to be converted, such as OverflowError, comes through as it is.
        assert type(found) is type(expected), (expected, found)
        return
    assert isinstance(found, errors.PyccmemError), (expected, found)
    assert isinstance(found, type(expected)), (expected, found)
    text = str(found)
    assert text.endswith(".") and len(text) > 30, text


def check_read(plain: np.ndarray, tensor: EncryptedTensor, index: Any) -> None:
    expected, error = outcome(lambda: plain[index])
    found, found_error = outcome(lambda: tensor[index])
    if error is not None:
        same_kind_of_error(error, found_error)
        return
    assert found_error is None, found_error
    assert type(found) is type(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
    if isinstance(found, np.ndarray):
        assert found.flags.c_contiguous and found.flags.writeable


CASES = st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES))


@MANY
@given(data=st.data(), case=CASES)
def test_basic_indexing_reads_what_numpy_reads(pairs: Any, data: Any, case: Any) -> None:
    check_read(*pairs[case], data.draw(basic(case[0])))


@MANY
@given(data=st.data(), case=CASES)
def test_arrays_on_the_first_axis_read_what_numpy_reads(pairs: Any, data: Any, case: Any) -> None:
    check_read(*pairs[case], data.draw(leading_array(case[0])))


@settings(MANY, max_examples=EXAMPLES * 3 // 5)
@given(data=st.data(), case=CASES)
def test_any_index_reads_what_numpy_reads(pairs: Any, data: Any, case: Any) -> None:
    check_read(*pairs[case], data.draw(anything(case[0])))


# ---- assignment -------------------------------------------------------------------------------


@st.composite
def values(draw: st.DrawFn, target: tuple[int, ...]) -> Any:
    """Something to assign to a selection of shape `target`: mostly of a shape that broadcasts."""
    kind = draw(st.sampled_from(("scalar", "array", "array", "other", "list", "odd")))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    if kind == "scalar":
        return draw(
            st.sampled_from((3, 200, -1, 2.5, np.float32(7), np.int8(-3), True, "12", 1e300))
        )
    if kind == "odd":
        return draw(
            st.sampled_from((None, object(), "word", [1, [2, 3]], {}, [], 300, -129, 2**70))
        )
    shape = list(target)
    for axis in range(len(shape)):
        if draw(st.integers(0, 4)) == 0:
            shape[axis] = 1
    shape = shape[draw(st.integers(0, len(shape))) if draw(st.integers(0, 3)) == 0 else 0 :]
    if draw(st.integers(0, 5)) == 0:
        shape.insert(0, draw(st.integers(1, 2)))
    made = rng.integers(0, 100, shape)
    if kind == "list" and made.size < 300:
        return made.tolist()
    if kind == "other":
        made = made.astype(draw(st.sampled_from(("f2", ">f8", "u1", "c8", "S4"))))
        return made if made.ndim < 2 else np.asfortranarray(made)
    return made


def check_write(plain: np.ndarray, tensor: EncryptedTensor, index: Any, value: Any) -> None:
    before = plain.copy()
    model = plain.copy()

    def assign(where: Any) -> None:
        where[index] = value

    _, error = outcome(lambda: assign(model))
    _, found_error = outcome(lambda: assign(tensor))
    try:
        if error is not None:
            # Where index and value are both wrong, either may be named.
            bad_index = outcome(lambda: plain[index])[1]
            wrong_index = bad_index is not None and isinstance(found_error, type(bad_index))
            same_kind_of_error(bad_index if wrong_index else error, found_error)
            assert tensor[...].tobytes() == before.tobytes(), "a refused assignment changed it"
        else:
            assert found_error is None, found_error
            assert tensor[...].tobytes() == model.tobytes()
    finally:
        tensor[...] = before


def selection_shape(plain: np.ndarray, index: Any) -> tuple[int, ...]:
    found, error = outcome(lambda: plain[index])
    return np.shape(found) if error is None and plain.dtype.kind != "S" else ()


@settings(MANY, max_examples=EXAMPLES * 4 // 5)
@given(data=st.data(), case=CASES)
def test_basic_assignment_does_what_numpy_does(pairs: Any, data: Any, case: Any) -> None:
    plain, tensor = pairs[case]
    index = data.draw(basic(case[0]))
    check_write(plain, tensor, index, data.draw(values(selection_shape(plain, index))))


@settings(MANY, max_examples=EXAMPLES * 4 // 5)
@given(data=st.data(), case=CASES)
def test_assignment_to_arrays_of_rows_does_what_numpy_does(
    pairs: Any, data: Any, case: Any
) -> None:
    plain, tensor = pairs[case]
    index = data.draw(leading_array(case[0]))
    check_write(plain, tensor, index, data.draw(values(selection_shape(plain, index))))


@settings(MANY, max_examples=EXAMPLES * 2 // 5)
@given(data=st.data(), case=CASES)
def test_any_assignment_does_what_numpy_does(pairs: Any, data: Any, case: Any) -> None:
    plain, tensor = pairs[case]
    index = data.draw(anything(case[0]))
    check_write(plain, tensor, index, data.draw(values(selection_shape(plain, index))))
