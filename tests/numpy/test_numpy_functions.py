# SPDX-License-Identifier: Apache-2.0
"""NumPy's functions on tensors: what one would write into an argument is written to the tensor or
refused, and what it reads it reads right.

The functions are NumPy's public ones, found by looking, each called with every set of arguments
below. A call that changes an array is made again with a tensor in the array's place.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pyccmem
from pyccmem import EncryptedTensor

KEY = pyccmem.Key.generate()

#: Not called: they touch files, print, ask, change settings, or run for long.
LEFT_OUT = frozenset(
    "save savez savez_compressed savetxt load loadtxt genfromtxt fromfile fromregex memmap "
    "open_memmap tofile dump dumps info lookfor source who show_config show_runtime test seterr "
    "seterrcall setbufsize set_printoptions printoptions errstate geterr geterrcall getbufsize "
    "set_state get_state seed set_string_function disp add_docstring add_newdoc add_newdoc_ufunc "
    "safe_eval deprecate deprecate_with_doc bytes get_include get_printoptions setflags resize "
    "set_numeric_ops seterrobj geterrobj drop_metadata read_array write_array read_magic "
    "write_magic read_array_header_1_0 read_array_header_2_0 write_array_header_1_0 "
    "write_array_header_2_0 opt_func_info kron as_strided from_dlpack".split()
)


#: They take whatever `out` is for an array, without looking (in check_output(), up to NumPy 2.4 at
#: least), and crash where what lies there happens to look like one: they are given none.
UNCHECKED_OUT = {
    f"Generator.{name}"
    for name in ("random", "standard_exponential", "standard_gamma", "standard_normal")
}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """NumPy's public functions, and the methods of its ufuncs, arrays and generators."""
    modules = [np, np.linalg, np.fft, np.char, np.emath, np.lib, np.lib.stride_tricks]
    modules += [getattr(np, name) for name in ("strings", "rec") if hasattr(np, name)]
    seen: set[int] = set()
    for module in modules:
        for name in sorted(dir(module)):
            function = getattr(module, name)
            if name.startswith("_") or name in LEFT_OUT or id(function) in seen:
                continue
            if isinstance(function, type | types.ModuleType) or not callable(function):
                continue
            seen.add(id(function))
            yield f"{module.__name__}.{name}", function
            if isinstance(function, np.ufunc):
                for method in ("at", "reduce", "accumulate", "reduceat", "outer"):
                    yield f"np.{name}.{method}", getattr(function, method)
    for kind in (np.random.Generator, np.random.RandomState):
        for name in dir(kind):
            if not name.startswith("_") and name not in LEFT_OUT and callable(getattr(kind, name)):
                yield f"{kind.__name__}.{name}", seeded(kind, name)
    for name in dir(np.ndarray):
        method = getattr(np.ndarray, name)
        if callable(method) and name not in LEFT_OUT and not name.startswith("_"):
            yield (
                f"ndarray.{name}",
                lambda *a, name=name, **k: getattr(FLOATS.copy(), name)(*a, **k),
            )


def seeded(kind: Any, name: str) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> Any:
        bits = np.random.PCG64(7) if kind is np.random.Generator else np.random.MT19937(7)
        return getattr(kind(bits), name)(*args, **options)

    return function


FLOATS = np.array([[3.0, 0.5, 2.0], [0.25, 4.0, 1.5], [1.0, 7.0, 5.0]])
ROW = np.array([2.0, 0.5, 1.0])
PLACES = np.array([2, 0, 1])
MASK = np.array([True, False, True])
SQUARE_MASK = FLOATS > 1.2


def argument_sets() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments; arrays are copied before each call."""
    firsts: list[tuple[Any, ...]] = [
        (FLOATS,), (ROW,), (FLOATS, ROW), (FLOATS, FLOATS + 1), (FLOATS, 1), (ROW, PLACES),
        (FLOATS, PLACES), (ROW, MASK), (FLOATS, SQUARE_MASK), (PLACES, PLACES + 1), (MASK, ~MASK),
        ((FLOATS, FLOATS),), (PLACES,), (MASK,), (3,), (0.5, 2.0),
    ]  # fmt: skip
    for first in firsts:
        yield first, {}
    for first in firsts:  # a result's place
        for shape, kind in [
            ((), float), ((3,), float), ((3, 3), float), ((3,), bool), ((3, 3), bool), ((), bool),
            ((3,), int), ((3, 3), int), ((), int), ((3, 3), complex), ((3,), complex),
            ((6, 3), float), ((1, 3), float),
        ]:  # fmt: skip
            out = np.zeros(shape, kind)
            yield first, {"out": out}
            if kind is float and shape != (1, 3):
                yield (*first, out), {}
                yield (*first, 0, out), {}
                yield (*first, 0, None, out), {}
                yield (*first, None, None, out), {}
    places = (np.zeros(3), np.zeros(3)), (np.zeros((3, 3)), np.zeros((3, 3)))
    for first, pair in itertools.product(((FLOATS,), (ROW,), (ROW, ROW), (FLOATS, FLOATS)), places):
        yield first, {"out": pair}
        yield (*first, *pair), {}
    yield (ROW,), {"out": (np.zeros(3), np.zeros(3, np.int32))}
    for more in [
        (PLACES, ROW), (MASK, ROW), (PLACES[:, None], ROW[:, None], 1), (0, 5.0), (1, 2.0, 5.0),
        (SQUARE_MASK, ROW), (PLACES, ROW, "clip"), (ROW, ROW + 1), ("subtract", FLOATS),
    ]:  # fmt: skip
        for first in (FLOATS, ROW):
            yield (first, *more), {}
            yield (first, *more), {"out": np.zeros(first.shape)}
    yield (FLOATS, 2.0), {"where": SQUARE_MASK}
    yield (FLOATS, 2.0), {"where": SQUARE_MASK, "out": np.ones((3, 3))}
    yield (FLOATS, PLACES), {"out": np.zeros((3, 3)), "axis": 0, "mode": "clip"}
    yield (np.array([1.0, np.nan, np.inf]),), {"copy": False}
    yield (np.array([1.0, np.nan, np.inf]), False), {}
    yield (FLOATS,), {"axis": 1}
    yield (FLOATS,), {"axis": 0, "out": np.zeros(3)}
    yield (FLOATS,), {"axis": 0, "keepdims": True, "out": np.zeros((1, 3))}
    yield (FLOATS,), {"overwrite_input": True}
    yield ("ij->i", FLOATS), {"out": np.zeros(3)}
    yield ("ij,j->ij", FLOATS, ROW), {"out": np.zeros((3, 3))}
    yield ([FLOATS, ROW, FLOATS],), {}
    yield ([FLOATS, FLOATS],), {"out": np.zeros((3, 3))}
    yield ([FLOATS, FLOATS],), {"out": np.zeros((3, 6)), "axis": 1}
    yield ([ROW, ROW],), {"out": np.zeros((2, 3))}
    yield (PLACES % 2, [ROW, -ROW]), {"out": np.zeros(3)}
    yield (FLOATS, 50), {"out": np.array(0.0)}
    yield ((3,),), {"out": np.zeros(3)}
    yield (), {"out": np.zeros(3)}
    yield (2.0,), {"out": np.zeros(3)}
    yield ("2020-01-03", PLACES), {"out": np.zeros(3, "M8[D]")}
    yield (np.zeros(3, "M8[D]"),), {"out": np.zeros(3, bool)}
    yield (np.zeros(3, "M8[D]"), np.ones(3, "M8[D]")), {"out": np.zeros(3, int)}


def method_sets() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of a ufunc's methods."""
    for first, place in ((FLOATS, PLACES), (ROW, PLACES), (PLACES + 1, PLACES), (MASK, MASK)):
        yield (first, place), {}
        yield (first, place, first[0]), {}
    for first, kind in ((FLOATS, float), (FLOATS > 1, bool), (PLACES + 1, int)):
        yield (first,), {}
        for shape in ((), (3,), (3, 3)):
            yield (first,), {"out": np.zeros(shape, kind)}
            yield (first,), {"out": (np.zeros(shape, kind),)}
            yield (first, PLACES[:1]), {"out": np.zeros((1, *shape[1:]), kind)}
    yield (ROW, ROW), {"out": np.zeros((3, 3))}


SETS = list(argument_sets())
METHOD_SETS = list(method_sets())
RANDOM_SETS = [
    (args, options)
    for args, options in SETS
    if len(args) < 3
    and set(options) <= {"out", "axis"}
    and not any(isinstance(a, list) for a in args)
]


def arrays_in(value: Any) -> Iterator[Any]:
    if isinstance(value, np.ndarray | EncryptedTensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from arrays_in(item)


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, change) for item in value)
    if isinstance(value, dict):
        return {name: replaced(item, change) for name, item in value.items()}
    return value


def tensor(array: Any) -> EncryptedTensor:
    return EncryptedTensor.from_numpy(array, key=KEY)


def same(one: Any, other: Any) -> bool:
    """Equal values of one shape and type, NaN included."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.hasobject:
        return True
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


class Call:
    """One call on arrays: what it changed, and what it gave."""

    def __init__(self, function: Any, args: Any, options: Any) -> None:
        self.function = function
        args, options = self.given = replaced((args, dict(options)), np.copy)
        self.before = [np.copy(array) for array in self.arrays(self.given)]
        self.result = function(*args, **options)
        self.after = self.arrays(self.given)
        self.changed = [
            at for at, pair in enumerate(zip(self.before, self.after, strict=True))
            if not same(*pair)
        ]  # fmt: skip

    @staticmethod
    def arrays(given: Any) -> list[Any]:
        args, options = given
        return [*arrays_in(args), *arrays_in(list(options.values()))]

    def again(self, at: set[int]) -> tuple[list[Any], Any]:
        """With tensors in the place of some arrays: all of them, and the result."""
        numbers = itertools.count()
        args, options = self.given
        fresh = iter(self.before)

        def place(_: Any) -> Any:
            array = np.copy(next(fresh))
            return tensor(array) if next(numbers) in at else array

        args, options = replaced((args, options), place)
        found = self.arrays((args, options))
        return found, self.function(*args, **options)


def called(name: str, function: Callable[..., Any]) -> Iterator[Call]:
    """The calls of one function that NumPy takes."""
    try:
        names = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = {"k"}
    sets = SETS
    if name.count(".") == 2 and name.startswith("np."):
        sets = METHOD_SETS
    elif name.startswith(("Generator", "RandomState")):
        sets = RANDOM_SETS
    for args, options in sets:
        shapes = [array.shape for array in Call.arrays((args, options))]
        if ("cum" in name or name.endswith("reduceat")) and () in shapes:
            continue  # NumPy 2.4 ends the process
        if name.endswith(".at") and function.__self__.nin != len(args) - 1:
            continue  # and so does NumPy 1.23
        if name in UNCHECKED_OUT and "out" in options:
            continue
        if names & {"k", "kwargs", "options"} or names >= set(options):
            with contextlib.suppress(Exception):
                yield Call(function, args, options)


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, Call]]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [(name, call) for name, function in functions() for call in called(name, function)]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def lost(calls: list[tuple[str, Call]]) -> tuple[list[str], set[str], set[str]]:
    """The calls whose writing to a tensor was lost, and the names of the functions that wrote, and
    of those that refused."""
    bad: list[str] = []
    wrote: set[str] = set()
    refused: set[str] = set()
    for name, call in calls:
        if call.given[1].get("overwrite_input"):
            continue  # what it leaves there has no meaning
        for at in call.changed:
            try:
                found, _ = call.again({at})
            except Exception as error:
                refused.add(f"{name}: {type(error).__name__}")
                continue
            if same(found[at][...], call.after[at]):
                wrote.add(name)
            else:
                bad.append(f"{name}{call.given}")
    return bad, wrote, refused


def test_what_is_written_into_an_argument(calls: list[tuple[str, Call]]) -> None:
    bad, wrote, refused = lost(calls)
    assert bad == []
    assert len(wrote) > 250
    # NumPy alone sees these calls: it takes nothing but arrays, or finds that they are read-only.
    assert {name.partition(".")[0] for name in refused} <= {"Generator", "RandomState", "ndarray"}


#: What works by single elements, or writes and asks for the array only then.
ON_ELEMENTS = {
    "Generator.shuffle",
    "RandomState.shuffle",
    "numpy.array_repr",
    "numpy.put",
    "numpy.put_along_axis",
}


def test_a_lost_write_is_noticed(calls: list[tuple[str, Call]]) -> None:
    """The control: with copies that can be written and no protocols but that of conversion."""
    some = [(name, call) for name, call in calls if call.changed and "nan" not in name][::9]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncryptedTensor, "__array__", lambda self, dtype=None, copy=None: self[...])
        patch.delattr("pyccmem.core.operand.Operand.__array_function__")
        patch.setattr(
            "pyccmem.core.operand._applied",
            lambda function, args, options, targets: function(
                *[np.asarray(a) for a in args], **{k: np.asarray(v) for k, v in options.items()}
            ),
        )
        bad, wrote, _ = lost(some)
    assert len(bad) > 40 and wrote <= ON_ELEMENTS


def agree(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, np.ndarray | np.generic | EncryptedTensor | int | float | complex | str):
        return same(one, other)
    return type(one) is type(other)


#: What does not read a tensor as it reads an array.
OTHERWISE = {
    "permutation",  # shuffles what it takes for a copy of its own: refused
    "array",  # copy=False, or of np.char and np.rec, which ask for ndarray by its class
    "asarray",
    "asanyarray",
    "frombuffer",  # a tensor shows no bytes
    "fromstring",
    "rot90",  # changes a number of turns that is an array
    "array2string",  # likewise with numbers of digits
    "array_str",
    "array_repr",
    "byte_bounds",  # NumPy 1: about addresses, or its own attributes
    "get_array_wrap",
    "maximum_sctype",
}

#: Results that differ from call to call, or are about the very object.
WITHOUT_MEANING = ("empty_like", "numpy.empty", "numpy.isfortran", "numpy.bmat")


def test_what_is_read(calls: list[tuple[str, Call]]) -> None:
    broken: set[str] = set()
    tried: dict[str, int] = {}
    for name, call in calls:
        if call.changed or not call.before or tried.get(name, 0) >= 6 or "out" in call.given[1]:
            continue
        if name.endswith(WITHOUT_MEANING) or name.startswith("ndarray"):
            continue
        tried[name] = tried.get(name, 0) + 1
        try:
            _, result = call.again(set(range(len(call.before))))
        except Exception as error:
            broken.add(f"{name}: {error!r}")
            continue
        if not agree(call.result, result):
            broken.add(f"{name}{call.given}: {result!r}, not {call.result!r}")
    names = {re.split(r"[(:]", text)[0].rpartition(".")[2] for text in broken}
    assert names <= OTHERWISE, sorted(broken)
    assert len(tried) > 400
