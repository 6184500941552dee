# SPDX-License-Identifier: Apache-2.0
"""QuantizedTensor over blocks that exist: what it gives is what NumPy gives of the plain array."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import errors
from pyccmem.quantized import (
    FORMATS,
    BlockFormat,
    QuantizedTensor,
    concatenate,
    dequantize_blocks,
)

#: A format for each way that blocks are opened.
SOME = [FORMATS[name] for name in ("q4_0", "q4_k", "q6_k", "int4_g64_zp", "int8_row")]


def packed_of(kind: BlockFormat, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Blocks at random, whose scales are small numbers."""
    packed = np.random.default_rng(seed).integers(0, 256, kind.packed_shape(shape), dtype=np.uint8)
    if not kind.scaled_rows:
        blocks = packed.reshape(-1, kind.nbytes)
        blocks[:, :4] = blocks[:, -4:] = 0x2C
        if kind.gguf is None:
            blocks[:, :8].view("<f4")[...] = 0.5
    return packed


def made(
    kind: BlockFormat, shape: tuple[int, ...], key: Any, seed: int = 1, **options: Any
) -> tuple[QuantizedTensor, np.ndarray]:
    """A tensor, and the plain array that it stands for."""
    packed = packed_of(kind, shape, seed)
    plain = dequantize_blocks(packed, kind).reshape(shape)
    raw = pyccmem.EncryptedTensor.from_numpy(packed, key=key, **options)
    scale = None
    if kind.scaled_rows:
        factors = np.linspace(0.25, 2, len(packed), dtype=np.float32)
        scale = pyccmem.EncryptedTensor.from_numpy(factors, key=key)
        plain = plain * factors.reshape(*shape[:-1], 1)
    return QuantizedTensor.from_blocks(raw, kind.name, shape, scale), plain


@contextmanager
def room_for(nbytes: int) -> Iterator[None]:
    """Bounds the plaintext at so many bytes more than there are now."""
    gc.collect()
    pyccmem.set_plaintext_budget(pyccmem.stats()["plain_in_use"] + nbytes)
    try:
        yield
    finally:
        pyccmem.set_plaintext_budget(None)


@pytest.fixture
def key() -> Any:
    with pyccmem.Key.generate() as made_key:
        yield made_key


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


def agree(t: QuantizedTensor, plain: np.ndarray, index: Any) -> None:
    """What NumPy refuses is refused, with its error."""
    try:
        wanted = plain[index]
    except IndexError:
        with pytest.raises(errors.IndexingError):
            t[index]
    else:
        assert same(t[index], wanted), index


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_every_index_gives_what_numpy_gives(kind: BlockFormat, key: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in ((7, 512), (2, 3, 256), (256,), (1, 256), (2, 1, 2, 256)):
        with made(kind, shape, key)[0] as t:
            plain = made(kind, shape, key)[1]
            assert same(t.dequantize(), plain) and same(t[...], plain)
            last = np.array([0, 255, 3])
            for index in [
                *(
                    0,
                    -1,
                    np.int64(0),
                    slice(None),
                    slice(1, None),
                    slice(5, 2),
                    slice(None, None, -2),
                ),
                *((0,), (Ellipsis, 3), (Ellipsis, slice(2, 9)), (Ellipsis, slice(None, None, -1))),
                *((Ellipsis, None), (None, Ellipsis), (Ellipsis, last), (Ellipsis, 0, slice(4))),
                (),
            ]:
                agree(t, plain, index)
            if len(shape) > 1:
                rows = rng.integers(-shape[0], shape[0], 5)
                mask = rng.random(shape[0]) < 0.5
                every = rng.random(shape) < 0.01
                for index in [
                    *(
                        rows,
                        rows.tolist(),
                        rows.reshape(5, 1),
                        mask,
                        every,
                        [],
                        (rows, Ellipsis, 7),
                    ),
                    *(
                        (rows, Ellipsis, rows),
                        (mask, Ellipsis, slice(1, 3)),
                        (0, None),
                        (slice(1), None),
                    ),
                    *((rows, Ellipsis, slice(None)), (None, rows, Ellipsis, 3), True, False),
                    (Ellipsis, np.array([[1], [2]]), np.array([0, 5])),
                ]:
                    agree(t, plain, index)
                assert len(t) == len(plain)
                assert all(same(a, b) for a, b in zip(t, plain, strict=True))


def test_numpy_errors_are_ours(key: Any) -> None:
    with made(FORMATS["q4_0"], (4, 64), key)[0] as t:
        for index in (4, -5, (0, 64), [9], (0, 0, 0), np.zeros(3, bool)):
            with pytest.raises(errors.IndexingError, match="shape"):
                t[index]
        for index in ("a", 1.5, None.__class__):
            with pytest.raises((errors.IndexingError, errors.ArgumentTypeError)):
                t[index]


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_a_large_tensor_is_opened_in_parts(kind: BlockFormat, key: Any) -> None:
    """More than what is staged at a time, in any order; and the plaintext beside the result stays
    within it."""
    shape = (1300, 2048)
    t, plain = made(kind, shape, key)
    with t:
        order = np.random.default_rng(2).permutation(len(plain))
        assert same(t[order], plain[order])
        with room_for(plain.nbytes + (1 << 20)):
            assert same(t.dequantize(), plain)
        with room_for(plain.nbytes), pytest.raises(errors.PlaintextBudgetError):  # the control
            t.dequantize()
        pieces = list(t.blocks(1 << 20))
        assert len(pieces) == 11 and same(np.concatenate(pieces), plain)
        assert same(t[:, 5:2000:7], plain[:, 5:2000:7])
        assert same(t[::3, [1, 2000]], plain[::3, [1, 2000]])
        out = np.full((3, 2048), 9, np.float32)
        t.read_into(out, 5)
        assert same(out, plain[5:8])


def test_what_it_is(key: Any) -> None:
    t, plain = made(FORMATS["q4_k"], (3, 2, 512), key, name="weights")
    assert t.shape == (3, 2, 512) and t.ndim == 3 and t.size == plain.size
    assert t.format is t.dtype is FORMATS["q4_k"]
    assert t.raw.shape == (6, 288) and t.raw.dtype == np.uint8 and t.nbytes == 6 * 288
    assert t.bits_per_weight == 4.5 and t.scale is None
    assert t.writable and t.authenticated and t.cipher == "aegis-128x2" and t.verify() == []
    assert repr(t) == (
        "<pyccmem.QuantizedTensor 'weights' of shape (3, 2, 512), q4_k, aegis-128x2, open>"
    )
    t.freeze()
    assert t.frozen and not t.writable and "frozen" in repr(t)
    assert same(t[1], plain[1])
    t.thaw()
    assert not t.frozen
    array = np.asarray(t)
    assert same(array, plain) and not array.flags.writeable
    assert np.array(t, np.float64).dtype == np.float64
    with pytest.raises(errors.ArgumentError, match="always a copy"):
        t.__array__(copy=False)
    assert same(t * 2, plain * 2) and same(np.add(1, t), 1 + plain)
    with pytest.raises(errors.ArgumentError, match="assign rows"):
        np.add(plain, 1, out=t)
    with pytest.raises(AttributeError, match=r"map t\.raw"):
        t.map()  # type: ignore[attr-defined]
    t.close()
    t.close()
    assert t.closed and t.raw.closed and "closed" in repr(t)
    for use in (lambda: t[0], t.dequantize, t.verify, t.__enter__, lambda: t[0:0]):
        with pytest.raises(errors.ClosedError):
            use()
    with made(FORMATS["int8_row"], (4, 10), key)[0] as rows:
        assert rows.bits_per_weight == 8 + 32 / 10 and rows.scale is not None
    assert rows.scale.closed


def test_it_is_not_copied_or_pickled(key: Any) -> None:
    with made(FORMATS["q8_0"], (2, 32), key)[0] as t:
        for use in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(errors.NotPicklableError, match="QuantizedTensor"):
                use(t)


def test_a_copy_is_one_of_the_blocks(key: Any) -> None:
    for kind in (FORMATS["q5_k"], FORMATS["int8_row"]):
        t, plain = made(kind, (5, 512), key, name="w")
        arena = pyccmem.Arena(key=key, frozen=kind.scaled_rows)
        for options in ({"key": key}, {"arena": arena}, {"key": key, "name": "other"}):
            with t.copy(**options) as other:
                assert same(other.dequantize(), plain)
                assert other.name == options.get("name", "w")
                assert other.raw.buffer is not t.raw.buffer
        with pytest.raises(errors.ArgumentTypeError, match="key="):
            t.copy()
        t.close()


def test_a_changed_page_is_told_with_its_rows(key: Any) -> None:
    t, plain = made(FORMATS["q4_k"], (64, 1024), key, name="w")
    support.damage(t.raw.buffer, 2)
    for index in (..., 15, slice(10, 20), [20, 15], (..., 0)):
        with pytest.raises(errors.IntegrityError, match="rows 14 to 21 of q4_k") as caught:
            t[index]
        assert caught.value.page == 2 and caught.value.name == "w"
    assert same(t[:14], plain[:14]) and same(t[22:], plain[22:]) and t.verify() == [2]
    out = np.full((64, 1024), 9, np.float32)
    with pytest.raises(errors.IntegrityError):
        t.read_into(out)
    assert not out.any()
    x = np.ones((2, 1024), np.float32)
    with pytest.raises(errors.IntegrityError):
        pyccmem.linear(x, t)
    support.damage(t.raw.buffer, 2)
    assert same(t.dequantize(), plain)


def test_a_changed_scale_is_told(key: Any) -> None:
    t, _ = made(FORMATS["int8_row"], (64, 64), key)
    assert t.scale is not None
    support.damage(t.scale.buffer, 0)
    assert t.verify() == [-1]
    with pytest.raises(errors.IntegrityError):
        t[3]


@pytest.mark.parametrize("kind", FORMATS.values(), ids=str)
def test_products_are_those_of_the_dequantised_matrix(kind: BlockFormat, key: Any) -> None:
    rng = np.random.default_rng(5)
    t, plain = made(kind, (70, 512), key)
    exact = plain.astype(np.float64)
    bias = rng.normal(size=70).astype(np.float32)
    for shape in ((512,), (1, 512), (3, 5, 512), (0, 512)):
        x = rng.normal(size=shape).astype(np.float32)
        y = pyccmem.linear(x, t, bias)
        assert y.dtype == np.float32 and y.shape == (*shape[:-1], 70)
        wanted = x.astype(np.float64) @ exact.T + bias
        room = np.abs(x).astype(np.float64) @ np.abs(exact).T + np.abs(bias)
        assert (np.abs(y - wanted) <= 0.02 * room + 1e-6).all()
        assert same(t.linear(x, bias), y)
    x = rng.normal(size=(4, 512))
    assert np.allclose(
        pyccmem.linear(x, t), x @ exact.T, rtol=1e-9, atol=1e-9 * np.abs(exact).max()
    )
    left = rng.normal(size=(3, 70)).astype(np.float32)
    assert np.allclose(left @ t, left @ exact, rtol=1e-3, atol=1e-3 * np.abs(left @ exact).max())
    right = rng.normal(size=(512, 2)).astype(np.float32)
    assert (t @ right).shape == (70, 2) and np.matmul(left, t).shape == (3, 512)
    t.close()


def test_products_that_do_not_fit_are_refused(key: Any) -> None:
    t, _ = made(FORMATS["q8_0"], (8, 64), key)
    x = np.ones((1, 64), np.float32)
    with pytest.raises(errors.ArgumentError, match="last dimension must be 64"):
        pyccmem.linear(x[:, :32], t)
    with pytest.raises(errors.ArgumentError, match="scale is for weights of int8"):
        pyccmem.linear(x, t, scale=np.ones(8, np.float32))
    with pytest.raises(errors.ArgumentError, match="two dimensions"):
        pyccmem.linear(x, made(FORMATS["q8_0"], (2, 4, 64), key)[0])
    with pytest.raises(errors.ArgumentTypeError, match="QuantizedTensor, not list"):
        pyccmem.linear(x, [1])  # type: ignore[arg-type]
    t.close()
    with pytest.raises(errors.ClosedError):
        pyccmem.linear(x, t)


def test_what_is_no_tensor_of_blocks_is_refused(key: Any) -> None:
    def tensor(shape: Any, dtype: Any = np.uint8) -> Any:
        return pyccmem.EncryptedTensor.zeros(shape, dtype, key=key)

    make = QuantizedTensor.from_blocks
    with pytest.raises(errors.ArgumentTypeError, match="makes no tensor"):
        QuantizedTensor()
    with pytest.raises(errors.ArgumentError, match="formats are q4_0"):
        make(tensor((2, 18)), "q4", (2, 32))
    with pytest.raises(errors.ArgumentTypeError, match="not ndarray"):
        make(np.zeros((2, 18), np.uint8), "q4_0", (2, 32))  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError, match="int8"):
        make(tensor((2, 18), np.int8), "q4_0", (2, 32))
    for shape in ((2, 64), (1, 32), (2, 2, 32), (-2, 32)):
        with pytest.raises(errors.ArgumentError):
            make(tensor((2, 18)), "q4_0", shape)
    with pytest.raises(errors.ArgumentError, match="multiple of 32"):
        make(tensor((2, 18)), "q4_0", (2, 33))
    with pytest.raises(errors.ArgumentError, match="number alone"):
        make(tensor((2, 18)), "q4_0", ())
    with pytest.raises(errors.ArgumentError, match="leave scale out"):
        make(tensor((2, 18)), "q4_0", (2, 32), tensor(2, np.float32))
    with pytest.raises(errors.ArgumentError, match="needs scale"):
        make(tensor((2, 18)), "int8_row", (2, 18))
    with pytest.raises(errors.ArgumentTypeError, match="float32"):
        make(tensor((2, 18)), "int8_row", (2, 18), tensor(2))
    with pytest.raises(errors.ArgumentError, match=r"must be \(2,\)"):
        make(tensor((2, 18)), "int8_row", (2, 18), tensor(3, np.float32))
    for shape in ((0, 32), (3, 0), (0,)):
        kind = FORMATS["q4_0"]
        with make(tensor(kind.packed_shape(shape)), kind, shape) as empty:
            assert empty.dequantize().shape == shape and empty.bits_per_weight == 0
            assert empty.verify() == []


@support.linux_only
def test_a_forked_child_is_refused() -> None:
    done = support.check_python(
        """
import os, numpy as np, pyccmem
from pyccmem.quantized import QuantizedTensor
key = pyccmem.Key.generate()
raw = pyccmem.EncryptedTensor.from_numpy(np.zeros((2, 18), np.uint8), key=key)
t = QuantizedTensor.from_blocks(raw, "q4_0", (2, 32))
if os.fork() == 0:
    for use in (lambda: t[0], t.dequantize, lambda: pyccmem.linear(np.ones((1, 32), "f4"), t)):
        try:
            use()
        except pyccmem.errors.ForkError:
            continue
        os._exit(1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    )
    assert done.split() == ["0"]


def test_threads_read_at_once(key: Any) -> None:
    t, plain = made(FORMATS["q6_k"], (200, 1024), key)
    wrong: list[int] = []

    def read(at: int) -> None:
        for i in range(at, 200, 4):
            if not same(t[i], plain[i]):
                wrong.append(i)

    support.run_threads([partial(read, at) for at in range(4)])
    assert not wrong
    t.close()


# ---- another shape -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOME, ids=str)
def test_reshape_keeps_whole_rows(kind: BlockFormat, key: Any) -> None:
    t, plain = made(kind, (2, 6, 512), key)
    for shape in ((12, 512), (3, 2, 2, 512), (-1, 512), (1, 12, -1)):
        one = t.reshape(shape)
        wanted = plain.reshape(shape)
        assert one.shape == wanted.shape and one.raw is t.raw
        assert same(one[...], wanted) and same(one[-1], wanted[-1])
    flat = t.reshape(12, 512)
    x = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    assert same(pyccmem.linear(x, flat), pyccmem.linear(x, QuantizedTensor.from_blocks(
        t.raw, kind, (12, 512), t.scale)))  # fmt: skip
    t.reshape(12, 512)[7] = plain[0, 0]
    assert np.allclose(t[1, 1], plain[0, 0], atol=0.2 * abs(plain).max())  # the same blocks
    flat.close()
    assert t.closed
    row, values = made(kind, (512,), key)
    assert same(row.reshape(1, 512)[0], values)
    empty, _ = made(kind, (0, 512), key)
    assert empty.reshape(5, 0, 512).shape == (5, 0, 512)


def test_reshape_refuses_parts_of_rows(key: Any) -> None:
    t, _ = made(FORMATS["q8_0"], (2, 6, 512), key)
    for shape in ((24, 256), (6144,), (2, 6, 2, 256), (), (512, 12)):
        with pytest.raises(errors.ArgumentError):
            t.reshape(shape)
    for shape in ((5, 512), (-1, -1, 512), (7, -1)):
        with pytest.raises(errors.ArgumentError, match="The new shape"):
            t.reshape(shape)
    with pytest.raises(errors.ArgumentTypeError):
        t.reshape("wide")
    for options in ({"order": "F"}, {"copy": True}):
        with pytest.raises(errors.ArgumentError, match="moves no data"):
            t.reshape(12, 512, **options)
    none, _ = made(FORMATS["q8_0"], (4, 0), key)
    with pytest.raises(errors.ArgumentError):
        none.reshape(7, 0)


# ---- one after the other -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOME, ids=str)
@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        (((3, 512), (5, 512), (1, 512)), 0),
        (((3, 4, 512), (3, 1, 512)), 1),
        (((3, 4, 512), (2, 4, 512)), -3),
        (((2, 2, 3, 512), (2, 2, 0, 512), (2, 2, 5, 512)), 2),
        (((2, 512),), 0),
        (((0, 512), (0, 512)), 0),
    ],
)
def test_concatenate(kind: BlockFormat, shapes: Any, axis: int, key: Any) -> None:
    """The values are those that NumPy joins; blocks have moved as they are."""
    pairs = [made(kind, shape, key, seed) for seed, shape in enumerate(shapes)]
    joined = concatenate([t for t, _ in pairs], axis, name="w")
    wanted = np.concatenate([plain for _, plain in pairs], axis)
    assert joined.format is kind and joined.name == "w"
    assert same(joined[...], wanted)
    assert joined.frozen and not joined.writable
    assert all(same(t[...], plain) for t, plain in pairs)
    x = np.ones((2, 512), np.float32)
    rows = joined.reshape(-1, 512) if wanted.size else joined
    bound = 0.01 * np.abs(wanted).sum(-1).reshape(1, -1)
    assert (np.abs(pyccmem.linear(x, rows) - x @ wanted.reshape(-1, 512).T) <= bound).all()


def test_concatenate_opens_a_mebibyte(key: Any) -> None:
    pairs = [made(FORMATS["q8_0"], (6000, 512), key, seed) for seed in range(2)]
    before = pyccmem.stats()["plain_in_use"]
    with room_for(3 << 20):  # of 6 MiB
        joined = concatenate([t for t, _ in pairs])
    assert same(joined[11_999], pairs[1][1][-1])
    with pytest.raises(errors.PlaintextBudgetError), room_for(100 << 10):  # the control
        concatenate([t for t, _ in pairs])
    gc.collect()
    assert pyccmem.stats()["plain_in_use"] <= before


def test_concatenate_refuses(key: Any) -> None:
    a, _ = made(FORMATS["q8_0"], (2, 3, 512), key)
    b, _ = made(FORMATS["q4_0"], (2, 3, 512), key)
    c, _ = made(FORMATS["q8_0"], (2, 4, 512), key)
    bad: list[tuple[Any, Any, str]] = [
        ([], 0, "at least one"),
        ([a, b], 0, "one format"),
        ([a, c], 0, "more than axis 0"),
        ([a, a], 2, "first 2 axes"),
        ([a, a], -1, "first 2 axes"),
        ([a, a], 3, "first 2 axes"),
        ([a, a.reshape(6, 512)], 0, "more than axis 0"),
    ]
    for tensors, axis, match in bad:
        with pytest.raises(errors.ArgumentError, match=match):
            concatenate(tensors, axis)
    for tensors, axis in (([a, np.ones(3)], 0), ([a], "x"), (7, 0)):
        wrong: Any = tensors
        with pytest.raises((errors.ArgumentTypeError, errors.ArgumentError)):
            concatenate(wrong, axis)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError, match="key"):
        concatenate([a], key=b"x" * 32)  # type: ignore[arg-type]
    a.close()
    with pytest.raises(errors.ClosedError):
        concatenate([a, a])


def test_what_to_use_instead(key: Any) -> None:
    """An array's methods, which a tensor of blocks has not, are named with what does the work."""
    t, _ = made(FORMATS["q8_0"], (2, 512), key)
    hints = {
        "T": r"linear\(x, t\)",
        "sum": r"dequantize\(\)",
        "tobytes": r"dequantize\(\)",
        "astype": "float32",
        "view": r"t\.raw",
        "data": "ciphertext",
        "map": r"t\.raw",
        "open": r"t\[a:b\]",
    }
    for name, hint in hints.items():
        with pytest.raises(AttributeError, match=f"attribute '{name}'; .*{hint}"):
            getattr(t, name)
    with pytest.raises(AttributeError, match=r"attribute 'nothing'$"):
        _ = t.nothing  # type: ignore[attr-defined]
    with pytest.raises(errors.ArgumentTypeError, match=r"'q7_k'.*q4_k"):
        pyccmem.EncryptedTensor.from_numpy(np.ones((2, 512)), dtype="q7_k", key=key)
