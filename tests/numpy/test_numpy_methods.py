# SPDX-License-Identifier: Apache-2.0
"""The methods and attributes of np.ndarray on tensors: each has a decision, and what there is gives
NumPy's answer for the plain array."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyccmem
from pyccmem import EncryptedTensor, errors
from pyccmem.core import tiles

KEY = pyccmem.Key.generate()
ARENA = pyccmem.Arena(key=KEY)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "tensors.md"

#: What each name of np.ndarray is on a tensor. "plain": a decrypted array or number; "tensor": a
#: tensor over the same bytes; "form": what it is, and no data; "change": changes the tensor;
#: "python": of the language, compared in test_numpy_operators; "own": a method of its own, with
#: other arguments; "refused": raises whatever it is given; "absent": an AttributeError that says
#: what to use instead.
DECISIONS: dict[str, str] = {
    **dict.fromkeys(
        "T mT all any argmax argmin argpartition argsort astype choose clip compress conj "
        "conjugate cumprod cumsum diagonal dot flatten imag item max mean min nonzero prod real "
        "repeat round searchsorted std sum swapaxes take tobytes tolist trace transpose var "
        "byteswap".split(),
        "plain",
    ),
    **dict.fromkeys("flat ravel reshape squeeze to_device view".split(), "tensor"),
    **dict.fromkeys("device dtype flags itemsize nbytes ndim shape size strides".split(), "form"),
    **dict.fromkeys("fill partition put sort".split(), "change"),
    "copy": "own",
    **dict.fromkeys(
        "__array_finalize__ __array_interface__ __array_namespace__ __array_priority__ "
        "__array_struct__ __array_wrap__ __class_getitem__ __dlpack__ __dlpack_device__ "
        "__setstate__ __buffer__ base ctypes data dump dumps getfield resize setfield setflags "
        "tofile itemset newbyteorder ptp tostring".split(),
        "absent",
    ),
    **dict.fromkeys(
        "__copy__ __deepcopy__ __delitem__ __reduce__ __reduce_ex__".split(), "refused"
    ),
    **dict.fromkeys("__array__ __array_function__ __array_ufunc__".split(), "own"),
    **{
        f"__{name}__": "python"
        for name in (
            "abs add and bool complex contains divmod float floordiv getitem iadd iand ifloordiv "
            "ilshift imatmul imod imul index int invert ior ipow irshift isub iter itruediv ixor "
            "len lshift matmul mod mul neg or pos pow radd rand rdivmod rfloordiv rlshift rmatmul "
            "rmod rmul ror rpow rrshift rshift rsub rtruediv rxor setitem sub truediv xor eq ne lt "
            "le gt ge format hash"
        ).split()
    },
}  # fmt: skip


def tensor(array: Any) -> EncryptedTensor:
    return EncryptedTensor.from_numpy(array, key=KEY)


# ---- decisions -----------------------------------------------------------------------------------


def test_each_name_has_a_decision() -> None:
    names = set(dir(np.ndarray)) - set(dir(object)) | set(DECISIONS) & set(dir(np.ndarray))
    assert names <= set(DECISIONS), sorted(names - set(DECISIONS))


def test_what_there_is_is_listed_and_what_there_is_not_says_what_to_use() -> None:
    t = tensor(np.ones((2, 3)))
    for name, decision in DECISIONS.items():
        there = decision != "absent"
        assert hasattr(t, name) is there, name
        assert (name in dir(t)) is there and (name in dir(EncryptedTensor)) is there, name
        if not there:
            with pytest.raises(AttributeError, match=f"has no attribute '{name}'; .{{10}}"):
                getattr(t, name)
    with pytest.raises(AttributeError) as caught:
        t.nothing  # noqa: B018
    assert ";" not in str(caught.value)  # the control: no hint for what NumPy has not either


def test_absent_attributes_hide_nothing_from_protocols() -> None:
    t = tensor(np.arange(6.0).reshape(2, 3))
    assert np.asarray(t).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError):
        memoryview(t)  # type: ignore[arg-type]
    with pytest.raises((AttributeError, TypeError, ValueError)):
        np.from_dlpack(t)  # type: ignore[arg-type]
    with pytest.raises((AttributeError, ValueError)):
        t.shape = (3, 2)  # type: ignore[misc]
    assert t.shape == (2, 3)


def test_the_docs_name_each_public_one() -> None:
    text = DOCS.read_text()
    text = text[text.index("### Methods and attributes") :]
    text = text[: text.index("\n### ", 1)]
    for name in DECISIONS:
        if not name.startswith("_"):
            assert f"`{name}" in text, name


def test_what_is_refused() -> None:
    t = tensor(np.ones((2, 3)))
    for work in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(errors.NotPicklableError):
            work(t)
    with pytest.raises(ValueError, match=r"np\.delete"):
        del t[0]
    with pytest.raises(errors.ArgumentTypeError, match="plain copies"):
        t.copy()
    with pytest.raises(errors.ArgumentError, match="flatten"):
        t.ravel("F")
    for change in (lambda: t.reshape(3, 2, order="F"), lambda: t.reshape(6, copy=True)):
        with pytest.raises(errors.ArgumentError):
            change()
    with pytest.raises(ValueError, match="cpu"):
        t.to_device("cuda")
    assert t.to_device("cpu") is t


# ---- answers -------------------------------------------------------------------------------------


#: Types that are tried with fewer shapes.
RARE = ("i1", "i2", "i4", "u1", "u2", "u4", "c16", ">f4", ">i2", ">c16", "g")


def arrays() -> Iterator[np.ndarray]:
    kinds: list[Any] = ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
    kinds += ["c8", *RARE]
    random = np.random.default_rng(3)
    for kind in kinds:
        for shape in ((), (0,), (2, 0), (7,), (3, 4), (2, 1, 5))[
            kind in RARE :: 1 + (kind in RARE)
        ]:
            numbers = random.integers(-9, 9, shape) / (2 if np.dtype(kind).kind in "fc" else 1)
            if np.dtype(kind).kind == "c":
                numbers = numbers + 1j * random.integers(-3, 3, shape)
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield np.asarray(numbers).astype(kind)
    yield from (
        np.array(["b", "a", "cc", "a"]), np.array([b"x", b"", b"x"]),
        np.array(["2020-01-01", "NaT", "2019-01-01"], "M8[D]"), np.array([3, 1, 2], "m8[s]"),
        np.array([(2, 1.0), (1, 2.0)], [("a", "i4"), ("b", "f8")]),
        np.array([np.nan, 1, -np.inf, np.nan], "f4"),
        np.array([[1, np.nan, 0], [2, 3, np.nan]]),
    )  # fmt: skip


OTHERS = ["bfloat16", "float8_e4m3fn", "int4"]

AXES: list[Any] = [None, 0, -1, 1, (0, 1), (), 5, "x"]
M = np.array([True, False, True, True])

#: Calls of each method: arguments by place, and by name.
CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    name: [((axis,), {}) for axis in AXES]
    + [((), {}), ((), {"keepdims": True}), ((), {"axis": 0, "keepdims": True}), ((1, 2, 3, 4), {})]
    for name in ("sum", "prod", "min", "max", "any", "all", "mean", "argmin", "argmax")
}
for _name in ("sum", "prod", "min", "max", "any", "all", "mean"):
    CALLS[_name] += [
        ((), {"where": False}), ((), {"where": M, "axis": -1}), ((0,), {"where": M[:, None]}),
        ((), {"where": np.ones((2, 2, 2, 2), bool)}), ((), {"where": [1]}),
    ]  # fmt: skip
for _name in ("sum", "prod", "min", "max"):
    CALLS[_name] += [
        ((), {"initial": 2}), ((0,), {"initial": 3}), ((-1,), {"initial": 2, "where": M}),
        ((), {"initial": None}), ((), {"initial": "a"}),
    ]  # fmt: skip
for _name in ("sum", "prod", "mean"):
    CALLS[_name] += [
        ((), {"dtype": kind, "axis": axis}) for kind in ("f8", "f2", "i8") for axis in (None, -1)
    ]
CALLS |= {
    name: CALLS["mean"]
    + [((), {"ddof": 1}), ((0,), {"ddof": 1}), ((-1,), {"ddof": 5}), ((), {"ddof": 0.5})]
    for name in ("var", "std")
}
CALLS |= {
    "T": [], "mT": [], "real": [], "imag": [],
    "astype": [
        (("f8",), {}), (("i2",), {}), (("f4",), {"casting": "safe"}), (("S",), {}), (("O",), {}),
        (("nonsense",), {}), (("?",), {}), (("f4", "F"), {}), (("c16",), {"casting": "no"}),
    ],
    "choose": [(([[1, 2, 3], [4, 5, 6]],), {}), (([1, 2],), {"mode": "clip"})],
    "clip": [((0, 1), {}), ((None, 1), {}), ((), {"min": 1}), ((), {}), (("a", 1), {})],
    "compress": [(([True, False],), {}), (([0, 1, 1], -1), {}), (([1] * 99,), {}), ((1,), {})],
    "conj": [((), {})], "conjugate": [((), {})],
    "cumsum": [((), {}), ((0,), {}), ((-1, "f8"), {}), ((7,), {})],
    "cumprod": [((), {}), ((0,), {}), ((-1, "f8"), {}), ((7,), {})],
    "diagonal": [((), {}), ((1,), {}), ((-1, 1, 0), {}), ((0, -1, 0), {}), ((9,), {}),
                 ((0, 0, 0), {}), ((0, 5, 1), {})],
    "trace": [((), {}), ((1,), {}), ((-1, 1, 0), {}), ((0, -1, 0, "f8"), {}), ((9,), {}),
              ((0, 0, 0), {})],
    "dot": [((2,), {}), ((np.arange(4.0),), {}), ((np.ones((4, 2), "f4"),), {}), (("a",), {})],
    "flatten": [((), {}), (("F",), {}), (("x",), {})],
    "item": [((), {}), ((0,), {}), ((-1,), {}), ((2, 1), {}), (((1, 2),), {}), ((0, 0, 0), {}),
             ((99,), {}), ((1.5,), {}), (("a",), {})],
    "nonzero": [((), {})],
    "argsort": [((), {}), ((0,), {"kind": "stable"}), ((None,), {}), ((4,), {}),
                ((), {"order": "b"})],
    "argpartition": [((0,), {}), ((1, 0), {}), ((50,), {})],
    "repeat": [((2,), {}), ((3, 0), {}), (([1, 2], 0), {}), ((-1,), {})],
    "round": [((), {}), ((1,), {}), ((-1,), {})],
    "searchsorted": [((1,), {}), (([0, 3], "right"), {}), (("a",), {})],
    "swapaxes": [((0, 1), {}), ((-1, 0), {}), ((0, 7), {})],
    "transpose": [((), {}), ((1, 0), {}), (((2, 0, 1),), {}), ((0, 0), {})],
    "take": [((0,), {}), (([0, -1],), {}), (([[0, 1], [1, 0]], 0), {}), ((1, -1), {}), ((99,), {}),
             (([99, -99],), {"mode": "wrap"}), (([99, -99], 0), {"mode": "clip"}), ((1.5,), {}),
             (([],), {}), ((0, 9), {}), ((0,), {"mode": "x"}), ((np.array(1), 1), {}),
             (([True],), {})],
    "tobytes": [((), {}), (("F",), {})],
    "tolist": [((), {})],
    "byteswap": [((), {})],
    "ravel": [((), {}), (("C",), {}), (("K",), {})],
    "reshape": [((-1,), {}), ((3, -1), {}), (((2, 2),), {}), (((-1, 1),), {"order": "C"})],
    "squeeze": [((), {}), ((0,), {}), ((-1,), {}), ((9,), {}), (((0, 1),), {})],
    "view": [((), {}), (("u1",), {})],
    "flat": [], "device": [], "dtype": [], "itemsize": [], "nbytes": [], "ndim": [], "shape": [],
    "size": [], "strides": [], "to_device": [(("cpu",), {}), (("x",), {})],
    "fill": [((1,), {}), ((2.5,), {}), (([1, 2],), {}), (("a",), {}), ((1j,), {}),
             ((np.array(3),), {}), ((np.array([3]),), {})],
    "put": [((0, 1), {}), (([0, -1], [5, 6]), {}), (([0, 1, 2], [7, 8]), {}),
            (([0, 0], [1, 2]), {}), (([], 1), {}), ((0, []), {}), (([99, -99], 1, "wrap"), {}),
            (([99, -99], 1, "clip"), {}),
            ((99, 1), {}), ((0, "a"), {}), ((0, 1, "x"), {}), ((0, 1.75), {})],
    "sort": [((), {}), ((0,), {}), ((-1, "stable"), {}), ((9,), {}), ((), {"order": "b"}),
             ((None,), {}), ((), {"kind": "x"})],
    "partition": [((1,), {}), ((0, 0), {}), (([0, 1],), {}), ((50,), {})],
}  # fmt: skip

CHANGES = [name for name, decision in DECISIONS.items() if decision == "change"]
READS = [name for name, decision in DECISIONS.items() if decision in ("plain", "tensor", "form")]


def test_each_method_is_called() -> None:
    assert set(CALLS) | {"flags"} == set(CHANGES) | set(READS)


def outcome(work: Callable[[], Any]) -> Any:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return work()
        except Exception as error:
            return error


def used(owner: Any, name: str, args: Any, options: Any) -> Any:
    found = getattr(owner, name)
    return found(*args, **options) if callable(found) else found


#: Sums and means whose order of summation is not NumPy's in bits.
ROUNDED = {"sum", "prod", "mean", "var", "std", "trace"}


def close(found: Any, wanted: Any) -> bool:
    """Equal up to the rounding of the type, for elements that are sums of few small numbers."""
    kind = wanted.dtype
    if repr(found) == repr(wanted):
        return True
    if kind.kind not in "fcV" and kind.name not in OTHERS:
        return bool(np.array_equal(found, wanted))
    wide = np.clongdouble if kind.kind == "c" else np.longdouble
    if kind.kind == "V" and kind.names:
        return bool(found == wanted)
    bits = {"bfloat16": 2**-7, "float8_e4m3fn": 2**-2}.get(kind.name)
    step = np.finfo(kind).eps if bits is None and kind.name not in OTHERS else bits or 0
    return bool(
        np.allclose(
            np.asarray(found).astype(wide), np.asarray(wanted).astype(wide),
            rtol=32 * float(step), atol=32 * float(step), equal_nan=True,
        )
    )  # fmt: skip


def assert_same(name: str, found: Any, wanted: Any, what: Any) -> None:
    if isinstance(wanted, BaseException):
        kinds = (ValueError, TypeError, IndexError)  # and what NumPy says of whatever else
        expected: Any = next((kind for kind in kinds if isinstance(wanted, kind)), type(wanted))
        if "where" in what[4] and isinstance(wanted, kinds):
            expected = kinds  # of two faults NumPy names either
        assert isinstance(found, expected), (what, found, wanted)
        return
    if isinstance(wanted, tuple) and DECISIONS[name] != "form":
        for one, other in zip(found, wanted, strict=True):
            assert_same(name, one, other, what)
        return
    if DECISIONS[name] == "tensor":
        assert isinstance(found, EncryptedTensor), (what, found)
        if name == "flat":
            wanted = wanted.copy()
        found = found[...]
        assert isinstance(wanted, np.ndarray)
    else:
        assert type(found) is type(wanted), (what, found, wanted)
    if not isinstance(wanted, np.ndarray | np.generic):
        assert found == wanted or repr(found) == repr(wanted), (what, found, wanted)
        return
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (what, found, wanted)
    if name in ROUNDED and wanted.dtype.names is None:
        assert close(found, wanted), (what, found, wanted)
    elif wanted.dtype.hasobject:
        assert repr(found) == repr(wanted), (what, found, wanted)
    else:
        assert repr(found) == repr(wanted), (what, found, wanted)
        if wanted.dtype.char not in "gG":  # whose padding may be anything
            assert found.tobytes() == wanted.tobytes(), (what, found, wanted)


def is_otherwise(name: str, plain: np.ndarray, args: Any, options: Any) -> bool:
    """True where NumPy's answer is not a tensor's, or differs from array to array."""
    if name == "strides":
        return not plain.size
    if plain.dtype.name == "int4" and "where" in options:
        return name in ROUNDED  # the mean of nothing is no int4: 0, or an error
    return name == "byteswap" and plain.dtype.kind in "UM"  # no text and no date any more


def compare(plain: np.ndarray, name: str) -> int:
    counted = 0
    t = EncryptedTensor.from_numpy(plain, arena=ARENA)
    for args, options in CALLS[name] or [((), {})]:
        if is_otherwise(name, plain, args, options):
            continue
        if name in CHANGES:
            t[...] = plain
        twin = plain.copy()
        what = name, plain.dtype, plain.shape, args, options
        wanted = outcome(lambda: used(twin, name, args, options))  # noqa: B023
        if name == "put" and isinstance(wanted, IndexError):
            twin = plain.copy()  # NumPy writes what comes before the wrong one
        found = outcome(lambda: used(t, name, args, options))  # noqa: B023
        assert_same(name, found, wanted, what)
        if name in CHANGES:
            assert repr(t[...]) == repr(twin), (what, t[...], twin)
        counted += 1
    assert name in CHANGES or t[...].tobytes() == plain.tobytes(), what
    return counted


@pytest.mark.parametrize("size", ["a block", "blocks"])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_answers(name: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "blocks":
        monkeypatch.setattr(tiles, "BLOCK_BYTES", 24)
    counted = sum(compare(plain, name) for plain in arrays())
    assert counted > 60


@pytest.mark.parametrize("name", sorted(CALLS))
def test_answers_of_types_of_ml_dtypes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(tiles, "BLOCK_BYTES", 8)
    for kind in OTHERS:
        for shape in ((), (7,), (3, 4)):
            count = int(np.prod(shape))
            numbers = np.asarray(np.arange(count).reshape(shape) % 5 - 2)
            plain = numbers.astype(getattr(ml_dtypes, kind))
            assert compare(plain, name)
