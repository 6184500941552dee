# SPDX-License-Identifier: Apache-2.0
"""Products, embeddings and other operations with encrypted weights against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import support

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch.nn import functional as F  # noqa: E402
from torch_support import assert_close, sealed  # noqa: E402

from pyccmem.product import tiles  # noqa: E402
from pyccmem.torch import EncryptedTensor  # noqa: E402

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(5,), (1, 5), (2, 5), (19, 5), (3, 2, 5), (2, 3, 11, 5), (0, 5), (2, 0, 5)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", ["none", "plain", "encrypted"])
def test_linear(key: pyccmem.Key, dtype: Any, shape: tuple[int, ...], bias: str) -> None:
    x, w, b = (torch.randn(s).to(dtype) for s in (shape, (7, 5), (7,)))
    given = {"none": None, "plain": b, "encrypted": sealed(b, key)}[bias]
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            wanted = F.linear(x, w, None if bias == "none" else b)
            assert_close(F.linear(x, sealed(w, key), given), wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 9, 40, 49, 300])
def test_linear_by_many_tiles(
    key: pyccmem.Key, dtype: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", 10_000)
    monkeypatch.setattr(tiles, "LARGE_TILE_BYTES", 20_000)
    x, w, b = (torch.randn(s).to(dtype) for s in ((rows, 300), (151, 300), (151,)))
    t = sealed(w, key)
    assert_close(F.linear(x, t, b), F.linear(x, w, b))
    assert_close(F.linear(x[:, :151], t.t()), F.linear(x[:, :151], w.t()))
    assert_close(x[:, :151] @ t, x[:, :151] @ w)


def test_rows_that_do_not_lie_in_order(key: pyccmem.Key) -> None:
    w = torch.randn(7, 5)
    t = sealed(w, key)
    for x in (torch.randn(5, 30).t(), torch.randn(30, 10)[:, ::2], torch.randn(5).expand(4, 5)):
        assert_close(F.linear(x, t), F.linear(x, w))
    assert_close(F.linear(x, t, torch.randn(14)[::2] * 0), F.linear(x, w))


PRODUCTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x @ W.T": lambda x, w, b: x @ w.T,
    "x @ W.mT": lambda x, w, b: x @ w.mT,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "addmm, columns": lambda x, w, b: torch.addmm(x[0], torch.ones(3, 7, dtype=x.dtype), w),
    "addmm, beta": lambda x, w, b: torch.addmm(b, x, w.t(), beta=2, alpha=3),
    "mm": lambda x, w, b: torch.mm(x, w.t()),
    "matmul, stack": lambda x, w, b: torch.matmul(x.view(2, -1, 5), w.t()),
    "matmul, vector": lambda x, w, b: x[0] @ w.t(),
    "mv": lambda x, w, b: w @ x[0],
    "W @ X": lambda x, w, b: w @ x.t(),
    "W @ W.T": lambda x, w, b: w @ w.t(),
    "bmm": lambda x, w, b: torch.bmm(x[None], w.t()[None]),
    "einsum": lambda x, w, b: torch.einsum("ni,oi->no", x, w),
    "part of W": lambda x, w, b: F.linear(x, w[2:5], b[2:5]),
    "slice, T": lambda x, w, b: x @ w[1:4].t(),
    "bilinear": lambda x, w, b: F.bilinear(x, x, w.view(7, 5, 1).expand(7, 5, 5), b),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("rows", [2, 60])
def test_other_products(key: pyccmem.Key, dtype: Any, name: str, rows: int) -> None:
    x, w, b = (torch.randn(s).to(dtype) for s in ((rows, 5), (7, 5), (7,)))
    wanted = PRODUCTS[name](x, w, b)
    assert_close(PRODUCTS[name](x, sealed(w, key), sealed(b, key)), wanted)


def test_wrong_arguments_are_refused_as_torch_does(key: pyccmem.Key) -> None:
    w = torch.randn(7, 5)
    t = sealed(w, key)
    before = t.core.buffer.stats()["reads"]
    for x, b in [
        (torch.ones(2, 4), None),
        (torch.ones(2, 5, dtype=torch.float64), None),
        (torch.ones(2, 5, dtype=torch.int64), None),
        (torch.ones(2, 5, dtype=torch.bfloat16), None),
        (torch.ones(2, 5), torch.ones(6)),
        (torch.ones(30, 5), torch.ones(2, 7)),
    ]:
        with pytest.raises(RuntimeError):
            F.linear(x, w, b)
        with pytest.raises(RuntimeError):
            F.linear(x, t, b)
    assert t.core.buffer.stats()["reads"] == before, "something was opened before the refusal"


def test_autocast(key: pyccmem.Key) -> None:
    x, w, b = torch.randn(30, 50), torch.randn(40, 50), torch.randn(40)
    with torch.autocast("cpu", torch.bfloat16):
        for n in (1, 30):
            assert_close(F.linear(x[:n], sealed(w, key), sealed(b, key)), F.linear(x[:n], w, b))
        assert_close(x @ sealed(w, key).t(), x @ w.t())
    assert_close(F.linear(x, sealed(w, key)), F.linear(x, w))


def test_gradients_of_inputs(key: pyccmem.Key) -> None:
    """Encrypted weights take none, but what comes before them does."""
    w, table = torch.randn(7, 5), torch.randn(7)
    results = []
    for weight, shift in ((w, table), (sealed(w, key), sealed(table, key))):
        x = torch.linspace(-1, 1, 15).view(3, 5).requires_grad_()
        y = F.layer_norm(torch.addmm(shift, F.linear(x, weight) @ weight, weight.t()), (7,), shift)
        (y * shift).pow(2).sum().backward()
        results.append(x.grad)
    assert results[0].abs().max() > 0
    assert_close(results[1], results[0])
    b = torch.zeros(7, requires_grad=True)
    F.linear(torch.ones(2, 5), sealed(w, key), b).sum().backward()
    assert torch.equal(b.grad, torch.full((7,), 2.0))


def test_changed_pages_give_nothing(key: pyccmem.Key) -> None:
    w = sealed(torch.ones(64, 1024), key)
    b = sealed(torch.ones(64), key)
    support.damage(w.core.buffer, 9)
    for rows in (1, 40):
        with pytest.raises(errors.IntegrityError):
            F.linear(torch.ones(rows, 1024), w, b)
        with pytest.raises(errors.IntegrityError):
            torch.ones(rows, 64) @ w
    assert F.embedding(torch.tensor([0, 40]), w).shape == (2, 1024)
    with pytest.raises(errors.IntegrityError):
        F.embedding(torch.tensor([0, 9]), w)
    support.damage(b.core.buffer, 0)
    with pytest.raises(errors.IntegrityError):
        F.linear(torch.ones(1, 8), sealed(torch.ones(64, 8), key), b)


# ---- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_embedding_opens_the_rows_asked_for(key: pyccmem.Key, dtype: Any) -> None:
    table = torch.randn(1000, 2048).to(dtype)
    t = sealed(table, key)
    for ids in (
        torch.tensor([[1, 999], [0, 1]]),
        torch.tensor(5),
        torch.tensor([], dtype=torch.int64),
        torch.tensor([3, 2], dtype=torch.int32),
        torch.arange(40).view(8, 5).t(),
    ):
        before = t.core.buffer.stats()["bytes_read"]
        assert torch.equal(F.embedding(ids, t, padding_idx=1), F.embedding(ids, table))
        assert torch.equal(F.embedding(sealed(ids, key), t), F.embedding(ids, table))
        row = 2048 * dtype.itemsize
        assert t.core.buffer.stats()["bytes_read"] - before <= 2 * ids.numel() * row
    assert torch.equal(t[torch.tensor([-1, 4])], table[torch.tensor([-1, 4])])
    assert torch.equal(t.index_select(0, torch.tensor([7])), table[7:8])
    assert torch.equal(F.embedding(torch.tensor([1]), t[5:9]), table[6:7])
    for wrong in ([1000], [-1], [2**40]):
        with pytest.raises(IndexError):
            F.embedding(torch.tensor(wrong), t)
    with pytest.raises((RuntimeError, TypeError)):
        F.embedding(torch.tensor([1.5]), t)


def test_embedding_that_renormalizes_writes_back(key: pyccmem.Key) -> None:
    table, ids = torch.randn(20, 8) * 5, torch.tensor([3, 4])
    t = sealed(table, key)
    assert_close(F.embedding(ids, t, max_norm=1.0), F.embedding(ids, table, max_norm=1.0))
    assert_close(t.decrypt(), table)


def test_embedding_bag(key: pyccmem.Key) -> None:
    table, ids = torch.randn(20, 8), torch.tensor([[1, 2], [3, 3]])
    assert_close(F.embedding_bag(ids, sealed(table, key)), F.embedding_bag(ids, table))


# ---- other operations ----------------------------------------------------------------------------


def test_results_are_plain(key: pyccmem.Key) -> None:
    """The trap of wrapper subclasses: activations that turn into the subclass."""
    x, w = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    v = torch.randn(8)
    t, u = sealed(w, key), sealed(v, key)
    pairs = [
        (F.conv2d(x, t), F.conv2d(x, w)),
        (F.layer_norm(x, (8,), u, u), F.layer_norm(x, (8,), v, v)),
        (x * u, x * v),
        (u * x, v * x),
        (u + 1, v + 1),
        (1 - u, 1 - v),
        (torch.cat([u, v]), torch.cat([v, v])),
        (torch.stack([u, u]), torch.stack([v, v])),
        (torch.where(u > 0, u, v * 2), torch.where(v > 0, v, v * 2)),
        (u.softmax(0), v.softmax(0)),
        (u.sum(), v.sum()),
        (torch.zeros_like(u), torch.zeros_like(v)),
        (F.rms_norm(x, (8,), u), F.rms_norm(x, (8,), v)),
    ]
    for found, wanted in pairs:
        assert_close(found, wanted)
    target = torch.zeros(8)
    target.copy_(u)
    target += u
    assert type(target) is torch.Tensor and torch.equal(target, v + v)
    assert u.tolist() == v.tolist() and bool((u == v).all()) and torch.equal(u, v)
    assert not isinstance(u.max(0).values, EncryptedTensor)


def test_running_statistics_are_not_lost(key: pyccmem.Key) -> None:
    x, mean, var = torch.randn(9, 4), torch.zeros(4), torch.ones(4)
    t, u = sealed(mean, key), sealed(var, key)
    assert_close(F.batch_norm(x, t, u, training=True), F.batch_norm(x, mean, var, training=True))
    assert_close(t.decrypt(), mean)
    assert_close(u.decrypt(), var)
    assert mean.abs().max() > 0
