# SPDX-License-Identifier: Apache-2.0
"""Reductions of tensors larger than a block: NumPy's results, within a bound for floating point,
and never more than a few blocks in the clear."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import damage

import pyccmem
from pyccmem import EncryptedTensor, errors
from pyccmem.core import tiles

KEY = pyccmem.Key.generate()
MIB = 1 << 20

PLAIN = np.random.default_rng(5).standard_normal((2048, 2048), np.float32)  # 16 MiB
SQUARES = np.square(PLAIN, dtype=np.float64)


@pytest.fixture(scope="module")
def large() -> EncryptedTensor:
    return EncryptedTensor.from_numpy(PLAIN, key=KEY, name="large")


def tensor(array: Any) -> EncryptedTensor:
    return EncryptedTensor.from_numpy(array, key=KEY)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "BLOCK_BYTES", 256)


# ---- what is in the clear ------------------------------------------------------------------------

AXES: list[Any] = [None, 0, 1, -1, (0, 1)]
CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    (f"{function.__name__} {axis}", lambda t, f=function, axis=axis: f(t, axis=axis))
    for function in (np.sum, np.mean, np.std, np.max, np.any, np.ptp, np.count_nonzero)
    for axis in AXES
]
CALLS += [
    (f"{name} {axis}", lambda t, name=name, axis=axis: getattr(t, name)(axis=axis))
    for name in ("sum", "prod", "min", "all", "var", "argmin", "argmax")
    for axis in AXES[:4]
]
CALLS += [
    ("add.reduce", np.add.reduce),
    ("logaddexp.reduce", lambda t: np.logaddexp.reduce(t, axis=(0, 1))),
    ("take", lambda t: np.take(t, [5, 7, -1])),
    ("take rows", lambda t: t.take([[1, 2], [3, 4]], axis=0)),
    ("trace", lambda t: t.trace(3)),
    ("diagonal", lambda t: np.diagonal(t, -2)),
    ("item", lambda t: t.item(-1)),
    ("contains", lambda t: 99.0 in t),
    ("dot", lambda t: t.dot(PLAIN[0])),
    ("where", lambda t: t.sum(where=PLAIN > 0, initial=3)),
    ("where encrypted", lambda t: t.sum(where=MASK)),
]
MASK = tensor(PLAIN > 0)
WRITES: list[tuple[str, Callable[[Any], Any]]] = [
    ("fill", lambda t: t.fill(3)),
    ("put", lambda t: t.put([5, 7, -1], [1, 2])),
    ("np.put", lambda t: np.put(t, [5, 7, -1], [1, 2])),
    ("sort", lambda t: t.sort()),
    ("partition", lambda t: t.partition(7, axis=-1)),
]


@pytest.fixture
def budget() -> Iterator[Callable[[int], None]]:
    gc.collect()
    before = pyccmem.get_plaintext_budget()

    def leave(nbytes: int) -> None:
        pyccmem.set_plaintext_budget(pyccmem.stats()["plaintext_reserved"] + nbytes)

    try:
        yield leave
    finally:
        pyccmem.set_plaintext_budget(before)


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_plaintext_is_bounded(name: str, call: Any, large: Any, budget: Any) -> None:
    budget(5 * MIB)
    found = call(large)
    wanted = call(PLAIN) if name not in ("where encrypted",) else PLAIN.sum(where=PLAIN > 0)
    assert type(found) is type(wanted) and np.shape(found) == np.shape(wanted)
    # NumPy adds what a mask lets through, and whatever is not a plain sum, one after another.
    rough = {"where": 3e-4, "where encrypted": 3e-4, "logaddexp.reduce": 0.02}.get(name, 3e-5)
    np.testing.assert_allclose(found, wanted, rtol=rough, atol=2e-3)
    del found
    with pytest.raises(errors.PlaintextBudgetError):
        np.asarray(large)  # the control: the whole is more than that
    with pytest.raises(errors.PlaintextBudgetError):
        np.median(large)
    assert pyccmem.stats()["plaintext_reserved"] <= pyccmem.get_plaintext_budget() - 5 * MIB


@pytest.mark.parametrize(("name", "call"), WRITES, ids=[name for name, _ in WRITES])
def test_writes_are_bounded(name: str, call: Any, budget: Any) -> None:
    plain, t = PLAIN.copy(), tensor(PLAIN)
    budget(5 * MIB)
    call(plain)
    call(t)
    for at in range(0, len(plain), 128):
        rows = t[at : at + 128]
        if name == "partition":
            assert (np.sort(rows) == np.sort(plain[at : at + 128])).all()
            assert (rows[:, :7].max(axis=1) <= rows[:, 7:].min(axis=1)).all()
        else:
            assert (rows == plain[at : at + 128]).all()
        del rows
    with pytest.raises(errors.PlaintextBudgetError):
        t += 1


def test_a_block_is_what_is_read_at_a_time(large: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the tensor is of one block, and together they are the tensor, once."""
    read: list[int] = []
    getitem = EncryptedTensor.__getitem__

    def noting(self: Any, index: Any) -> Any:
        found = getitem(self, index)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(EncryptedTensor, "__getitem__", noting)
    for axis in AXES:
        read.clear()
        large.sum(axis=axis)
        assert max(read) <= MIB and sum(read) == PLAIN.nbytes
    read.clear()
    np.sort(large)
    assert max(read) == PLAIN.nbytes  # the control: a function that opens the whole


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_sums_are_within_the_bound(large: Any, axis: Any) -> None:
    eps = np.finfo(np.float32).eps
    n = PLAIN.size if axis is None else 2048
    exact = np.sum(PLAIN, axis=axis, dtype=np.longdouble)
    bound = (np.log2(n) + 128) * eps * np.sum(np.abs(PLAIN), axis=axis, dtype=np.float64)
    if axis == 0:
        bound = n * eps * np.sum(np.abs(PLAIN), axis=axis, dtype=np.float64)
    found = large.sum(axis=axis)
    assert (np.abs(found - exact) <= bound).all()
    ones = tensor(np.full((2048, 2048), 0.1, np.float32)).sum(axis=axis)
    assert np.allclose(ones, n * float(np.float32(0.1)), rtol=1e-5)
    running = np.cumsum(np.full(1 << 22, 0.1, np.float32))[-1]
    assert not np.isclose(running, (1 << 22) * 0.1, rtol=1e-5)  # the control: one after another


def test_many_halves(small_blocks: None) -> None:
    """NumPy adds rows of float16 one after another, which stops at 2048; blocks do not."""
    t = tensor(np.ones((4000, 2), np.float16))
    assert t.sum(axis=0).tolist() == [4000, 4000] and t.sum(axis=0).dtype == np.float16
    assert t.mean(axis=0).tolist() == [1, 1]


SHAPES = [(300,), (30, 7), (5, 1, 60), (3, 4, 5, 6), (1, 400), (2, 2, 2, 2, 2, 2, 2, 2)]


@pytest.mark.parametrize("kind", ["i8", "u2", "?", "f8", "c8", "f2"])
def test_every_set_of_axes(kind: str, small_blocks: None) -> None:
    for shape in SHAPES:
        plain = np.random.default_rng(1).integers(0, 5, shape).astype(kind)
        t = tensor(plain)
        for count in range(1, min(len(shape), 3) + 1):
            for axes in itertools.combinations(range(len(shape)), count):
                for name in ("sum", "max", "any", "mean", "var"):
                    wanted = getattr(plain, name)(axis=axes)
                    found = getattr(t, name)(axis=axes)
                    assert found.dtype == wanted.dtype and np.shape(found) == np.shape(wanted)
                    if name in ("mean", "var"):
                        rough = 2e-3 if kind == "f2" else 1e-5
                        np.testing.assert_allclose(found, wanted, rtol=rough, atol=rough)
                    else:  # sums of few small integers are exact in every type
                        np.testing.assert_array_equal(found, wanted)
                if count == 1:
                    for name in ("argmax", "argmin"):
                        wanted = getattr(plain, name)(axis=axes[0])
                        np.testing.assert_array_equal(getattr(t, name)(axis=axes[0]), wanted)
        assert t.argmax() == plain.argmax() and t.argmin() == plain.argmin()


def test_the_first_of_equals_and_what_is_no_number(small_blocks: None) -> None:
    plain = np.zeros((40, 9))
    for at, value in [(123, 5), (200, 5), (300, np.nan), (310, np.nan)]:
        plain.flat[at] = value
        t = tensor(plain)
        with np.errstate(invalid="ignore"):
            for name in ("argmax", "argmin", "max", "min"):
                for axis in (None, 0, 1):
                    found, wanted = getattr(t, name)(axis=axis), getattr(plain, name)(axis=axis)
                    np.testing.assert_array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore")
def test_every_ufunc(small_blocks: None) -> None:
    plain = np.random.default_rng(2).integers(1, 100, (50, 8))
    for form in (plain, plain / 7.0, plain > 50):
        t = tensor(form)
        assert t.nbytes > tiles.BLOCK_BYTES
        for name in dir(np):
            ufunc = getattr(np, name)
            if not isinstance(ufunc, np.ufunc) or ufunc.nin != 2 or ufunc.signature:
                continue
            for axis in (0, 1, None):
                try:
                    wanted = ufunc.reduce(form, axis=axis)
                except (TypeError, ValueError) as error:
                    with pytest.raises(type(error)):
                        ufunc.reduce(t, axis=axis)
                    continue
                found = ufunc.reduce(t, axis=axis)
                assert type(found) is type(wanted) and found.dtype == wanted.dtype
                rough = 0.03 if wanted.dtype == np.float16 else 1e-12
                np.testing.assert_allclose(found, wanted, rtol=rough)


def test_places_for_results(small_blocks: None) -> None:
    plain = np.arange(400.0).reshape(40, 10)
    t, line, number = tensor(plain), np.zeros(10), tensor(np.zeros(()))
    assert np.sum(t, axis=0, out=line) is line and (line == plain.sum(axis=0)).all()
    for function in (np.mean, np.std, np.max, np.ptp):
        place = tensor(np.zeros(10))
        assert function(t, axis=0, out=place) is place
        np.testing.assert_allclose(place[...], function(plain, axis=0))
    assert np.add.reduce(t, axis=None, out=number) is number and number == plain.sum()
    where = tensor(np.zeros(10, np.intp))
    assert t.argmax(axis=0, out=where) is where and (where == 39).all()
    for wrong in (np.zeros(9), np.zeros((1, 1, 10)), 3, [1.0]):
        with pytest.raises((TypeError, ValueError)):
            t.sum(axis=0, out=wrong)
    read_only = np.zeros(10)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        t.sum(axis=0, out=read_only)


@pytest.mark.filterwarnings("ignore:Mean of empty|Degrees of|invalid")
def test_masks(small_blocks: None) -> None:
    plain = np.random.default_rng(4).standard_normal((30, 12))
    t = tensor(plain)
    for mask in (plain > 0, plain[0] > 0, plain[:, :1] > 0, np.zeros(12, bool)):
        for name in ("sum", "mean", "std", "any"):
            for axis in (None, 0, 1):
                with np.errstate(all="ignore"):
                    wanted = getattr(plain, name)(axis=axis, where=mask)
                    for one in (mask, tensor(mask)):
                        found = getattr(t, name)(axis=axis, where=one)
                        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    with pytest.warns(RuntimeWarning, match="empty slice"), np.errstate(all="ignore"):
        t.mean(axis=0, where=np.zeros(12, bool))
    with pytest.warns(RuntimeWarning, match="Degrees of freedom"), np.errstate(all="ignore"):
        t.var(axis=1, ddof=12)
    assert np.var(t, axis=0, mean=plain.mean(axis=0, keepdims=True)).shape == (12,)


# ---- what can go wrong ---------------------------------------------------------------------------


def test_a_changed_page_gives_no_result() -> None:
    t = tensor(PLAIN)
    damage(t.buffer, 3 * MIB // t.page_size)
    for call in (np.sum, np.mean, np.argmax, lambda x: x.std(axis=0), lambda x: 99.0 in x):
        with pytest.raises(errors.IntegrityError):
            call(t)
    assert np.isfinite(t.take(5))  # another page


def test_wrong_arguments_open_nothing() -> None:
    t = tensor(PLAIN)
    t.close()
    for call in (
        lambda: t.sum(axis=9), lambda: t.mean(axis="x"), lambda: np.max(t, axis=(0, 0)),
        lambda: t.argmax(axis=(0, 1)), lambda: t.sum(dtype="nonsense"), lambda: t.sum(out=3),
        lambda: t.sum(where=np.ones((3, 3), bool)), lambda: t.var(ddof="x"),
        lambda: t.take(0, axis=5), lambda: t.take("x"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError, IndexError)) as caught:
            call()
        assert not isinstance(caught.value, errors.ClosedError)
    with pytest.raises(errors.ClosedError):
        t.sum()


def test_read_only_tensors_refuse(tmp_path: Any) -> None:
    from pyccmem.safetensors import load_file, save_file

    save_file({"w": tensor(np.arange(6.0).reshape(2, 3))}, tmp_path / "w", key=KEY)
    t = load_file(tmp_path / "w", key=KEY)["w"]
    for call in (
        lambda: t.fill(1), lambda: t.put(0, 1), lambda: t.sort(), lambda: t.byteswap(True),
        lambda: t.partition(0), lambda: setattr(t, "flat", 1), lambda: setattr(t, "real", 1),
    ):  # fmt: skip
        with pytest.raises(errors.ReadOnlyError):
            call()
    assert t.sum() == 15 and not t.flags.writeable and t[...].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_in_threads(large: Any) -> None:
    found: list[Any] = []

    def work() -> None:
        found.append((large.sum(), large.argmax(), large.max(axis=0).tobytes()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4


# ---- Python's own --------------------------------------------------------------------------------


def test_in(small_blocks: None) -> None:
    for plain in (np.arange(400).reshape(40, 10), np.zeros((0, 3)), np.array(5), np.array(["a"])):
        t = tensor(plain)
        values: list[Any] = [5, 399, 5.5, "a", None, np.float32(3), [1, 2], np.arange(10), (5,)]
        values += [[[5]], np.array(5), object()]
        for value in values:
            try:
                wanted: Any = value in plain
            except Exception as error:
                with pytest.raises(type(error)):
                    value in t  # noqa: B015
                continue
            assert (value in t) is wanted, (plain, value)
        assert (tensor(np.array(5)) in t) is (np.array(5) in plain)


def test_reversed_and_iterated() -> None:
    plain = np.arange(6).reshape(3, 2)
    t = tensor(plain)
    assert [row.tolist() for row in reversed(t)] == [row.tolist() for row in reversed(plain)]
    assert [int(x) for x in t.flat] == list(range(6)) and len(t.flat) == 6
    assert list(reversed(t.flat)) == list(reversed(plain.reshape(-1)))


def test_flat_is_assigned() -> None:
    for shape in ((3, 4), (0,), (), (5,)):
        for values in (7, [1, 2, 3], np.arange(30), np.array([[1], [2]])):
            plain = np.zeros(shape)
            t = tensor(plain)
            plain.flat = values
            t.flat = values
            np.testing.assert_array_equal(t[...], plain)


def test_real_and_imag_are_assigned() -> None:
    plain = np.arange(6).astype("c8").reshape(2, 3)
    t = tensor(plain)
    for values in (5, [1, 2, 3], np.ones((2, 3))):
        plain.real, t.real = values, values
        plain.imag, t.imag = values, tensor(np.asarray(values))
        np.testing.assert_array_equal(t[...], plain)
    with pytest.raises(TypeError):
        tensor(np.zeros(3)).imag = 1


def test_flags() -> None:
    for shape in ((), (0, 3), (4,), (2, 3), (1, 5), (1, 1)):
        flags, wanted = tensor(np.zeros(shape)).flags, np.zeros(shape).flags
        for name in dir(wanted):
            if not name.startswith("_") and name not in ("owndata", "num"):
                assert getattr(flags, name) is getattr(wanted, name), (shape, name)
        for name in "C F W A X B CA FA FNC FORC CONTIGUOUS FORTRAN WRITEABLE BEHAVED".split():
            assert flags[name] is wanted[name], name
        assert flags.num == wanted.num & ~4 and not flags.owndata
        assert repr(flags) == repr(wanted).replace("OWNDATA : True", "OWNDATA : False").rstrip()
    for name in ("c", "nothing", 1, None, []):
        with pytest.raises(KeyError):
            flags[name]  # type: ignore[index]
    with pytest.raises(AttributeError):
        flags.writeable = False  # type: ignore[misc]


def test_copies_of_what_is_decrypted_are_ones_own() -> None:
    t = tensor(np.arange(6.0).reshape(2, 3))
    for array in (t.flatten(), t.astype("f8"), t.astype("f4"), t.take([0, 1])):
        array[...] = 9
    for array in (t.T, t.mT, t.transpose(), t.swapaxes(0, 1), t.real, t.diagonal()):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 9
    assert t[...].tolist() == [[0, 1, 2], [3, 4, 5]]
