# SPDX-License-Identifier: Apache-2.0
"""EncryptedTensor of torch: views, writes, copies, conversions, refusals."""

from __future__ import annotations

import copy
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import support

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch_support import sealed  # noqa: E402

from pyccmem.torch import EncryptedTensor  # noqa: E402

TYPES = [
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
    "float64", "complex64", "complex128", "uint16", "float8_e4m3fn",
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_every_type(key: pyccmem.Key, kind: str) -> None:
    dtype = getattr(torch, kind)
    values = (torch.arange(-60, 60).reshape(8, 15) % 7).to(dtype)
    t = sealed(values, key)
    assert t.dtype == dtype and t.shape == (8, 15) and t.device.type == "cpu"
    back = t.decrypt()
    assert type(back) is torch.Tensor and back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), values.view(torch.uint8))
    stored = bytes(t.core.buffer.ciphertext)
    assert values.numpy().tobytes()[:64] not in stored if kind == "int64" else True
    again = EncryptedTensor.from_core(t.core)
    assert again.dtype == dtype and again.core is t.core


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5)])
def test_every_shape(key: pyccmem.Key, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    t = sealed(values, key)
    assert torch.equal(t.decrypt(), values) and torch.equal(t + 1, values + 1)
    assert torch.equal(copy.deepcopy(t).decrypt(), values)
    strided = torch.randn(6, 8)[::2, ::2].t()
    assert torch.equal(sealed(strided, key).decrypt(), strided)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "number": lambda t: t[2],
    "two": lambda t: t[1, -2],
    "rows": lambda t: t[1:4],
    "step": lambda t: t[::2],
    "columns": lambda t: t[:, 1:3],
    "t": lambda t: t.t(),
    "T, rows": lambda t: t.T[1:3],
    "rows, T": lambda t: t[1:3].T,
    "view": lambda t: t.view(-1)[7:20],
    "view rows": lambda t: t.view(3, -1)[1],
    "reshape": lambda t: t.reshape(2, 3, 4)[1, 2],
    "chunk": lambda t: t.chunk(3)[2],
    "split": lambda t: t.split(4)[1],
    "unbind": lambda t: t.unbind(1)[2],
    "unsqueeze": lambda t: t[None][0, 2],
    "expand": lambda t: t[0].expand(3, 4),
    "diagonal": lambda t: t.diagonal(),
    "narrow": lambda t: t.narrow(0, 2, 3).narrow(1, 1, 2),
    "permute": lambda t: t.permute(1, 0)[2],
    "as_strided": lambda t: t[1].as_strided((2, 2), (5, 1), 3),
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "bits": lambda t: t.view(torch.int32)[1],
    "flatten": lambda t: t.flatten()[3:5],
    "empty": lambda t: t[3:3],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_read_and_write(key: pyccmem.Key, name: str) -> None:
    """A view reads as a plain one does, and what is written to it is in the tensor."""
    plain = torch.randn(6, 4)
    t, take = sealed(plain, key), VIEWS[name]
    wanted = take(plain)
    found = take(t)
    assert isinstance(found, EncryptedTensor), "a view must not be a copy in the clear"
    assert found.shape == wanted.shape and found.stride() == wanted.stride()
    assert torch.equal(found.decrypt(), wanted) and torch.equal(found + 1, wanted + 1)
    if name == "expand":
        return  # torch refuses to write to one
    found.mul_(3)
    wanted.mul_(3)
    assert torch.equal(t.decrypt(), plain)
    found.copy_(torch.zeros(wanted.shape, dtype=wanted.dtype))
    wanted.zero_()
    assert torch.equal(t.decrypt(), plain) and torch.equal(found.decrypt(), wanted)


WRITES: dict[str, Callable[[Any], Any]] = {
    "set row": lambda t: t.__setitem__(0, 5),
    "set slice": lambda t: t.__setitem__((slice(1, 3), 2), torch.ones(2)),
    "set mask": lambda t: t.__setitem__(t > 0, -1.0),
    "set rows": lambda t: t.__setitem__(torch.tensor([0, 2]), 9.0),
    "add_": lambda t: t.add_(2, alpha=3),
    "+=": lambda t: t.__iadd__(1),
    "zero_": lambda t: t.zero_(),
    "fill_": lambda t: t.fill_(7),
    "clamp_": lambda t: t.clamp_(-0.1, 0.1),
    "copy_ broadcast": lambda t: t.copy_(torch.arange(4.0)),
    "copy_ converts": lambda t: t.copy_(torch.arange(24).view(6, 4)),
    "copy_ strided": lambda t: t.copy_(torch.arange(24.0).view(4, 6).t()),
    "data": lambda t: t.data.fill_(3),
    "index_fill_": lambda t: t.index_fill_(0, torch.tensor([1]), 4),
    "masked_fill_": lambda t: t.masked_fill_(torch.eye(6, 4).bool(), 4),
    "addmm_": lambda t: t.addmm_(torch.ones(6, 2), torch.ones(2, 4)),
    "out": lambda t: torch.add(torch.ones(6, 4), 1, out=t),
    "out slice": lambda t: torch.mul(torch.ones(4), 3, out=t[2]),
    "self": lambda t: t.copy_(t),
    "uses itself": lambda t: t.add_(t),
    "_foreach": lambda t: torch._foreach_add_([t], 1.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_no_write_is_lost(key: pyccmem.Key, name: str) -> None:
    plain = torch.randn(6, 4)
    t = sealed(plain, key)
    other = t.detach()
    WRITES[name](plain)
    WRITES[name](t)
    assert torch.equal(t.decrypt(), plain) and torch.equal(other.decrypt(), plain)


def test_in_place_returns_the_tensor_itself(key: pyccmem.Key) -> None:
    t = sealed(torch.ones(3), key)
    assert t.add_(1) is t and torch.add(t, 1, out=t) is t


@pytest.mark.parametrize("shape", [(0,), (5,), (9, 9), (4, 3)])
def test_out_of_another_shape_is_refused(key: pyccmem.Key, shape: tuple[int, ...]) -> None:
    out = sealed(torch.full(shape, 7.0), key)
    one, row = sealed(torch.ones(3, 4), key), torch.ones(4)
    for ask in (
        lambda: torch.add(one, one, out=out),
        lambda: torch.add(torch.ones(3, 4), row, out=out),
        lambda: torch.matmul(one, torch.ones(4, 2), out=out),
        lambda: torch.cat([one, one], out=out),
        lambda: torch.max(one, 1, out=(out, torch.empty(3, dtype=torch.long))),
    ):
        with warnings.catch_warnings(), pytest.raises(errors.ArgumentError, match="resized"):
            warnings.simplefilter("ignore")  # torch's own, that it resizes
            ask()
        assert torch.equal(out.decrypt(), torch.full(shape, 7.0))
    plain = torch.empty(0)
    assert torch.add(one, row, out=plain) is plain and torch.equal(plain, torch.full((3, 4), 2.0))


@pytest.mark.parametrize("name", ["transposed", "shape", "part", "type"])
def test_data_takes_shape_strides_and_type_of_the_new(key: pyccmem.Key, name: str) -> None:
    changes: dict[str, Callable[[Any], Any]] = {
        "transposed": lambda t: t.t(),
        "shape": lambda t: t.view(2, 8),
        "part": lambda t: t[1:],
        "type": lambda t: t.double(),
    }
    plain = torch.nn.Parameter(torch.randn(4, 4), requires_grad=False)
    found = torch.nn.Parameter(sealed(plain.data, key), requires_grad=False)
    for parameter in (plain, found):
        parameter.data = changes[name](parameter.data)
    for wanted, seen in ((plain, found), (plain + 1, found + 1)):
        assert (seen.shape, seen.dtype) == (wanted.shape, wanted.dtype)
        assert seen.stride() == wanted.stride() and seen.is_contiguous() == wanted.is_contiguous()
    assert isinstance(found, torch.nn.Parameter) and isinstance(found, EncryptedTensor)
    assert torch.equal(found.decrypt(), plain)
    x = torch.randn(2, plain.shape[1], dtype=plain.dtype)
    linear = torch.nn.functional.linear
    torch.testing.assert_close(linear(x, found), linear(x, plain))


def test_writes_to_what_shares_no_memory(key: pyccmem.Key) -> None:
    t = sealed(torch.zeros(4), key)
    array = t.numpy()
    with pytest.raises(ValueError):
        array[0] = 1
    assert np.array_equal(np.asarray(t), np.zeros(4))
    assert torch.equal(t.decrypt(), torch.zeros(4))


def test_conversions_convert(key: pyccmem.Key) -> None:
    plain = torch.randn(300, 1000)
    t = sealed(plain, key)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int32):
        new = t.to(dtype)
        assert isinstance(new, EncryptedTensor) and new.core.itemsize == dtype.itemsize
        assert torch.equal(new.decrypt(), plain.to(dtype)) and new.core is not t.core
    assert t.to(torch.float32) is t and t.cpu() is t and t.float() is t
    assert torch.equal(t.half().decrypt(), plain.half())
    clone = t.clone()
    clone.zero_()
    assert torch.equal(t.decrypt(), plain)
    assert isinstance(torch.empty_like(t), EncryptedTensor)
    assert t.to("meta").device.type == "meta"


def test_copies_share_what_was_shared(key: pyccmem.Key) -> None:
    t = sealed(torch.ones(5), key)
    one, same, view = copy.deepcopy([t, t, t.detach()])
    assert one is same and one is not t
    one.fill_(2)
    assert torch.equal(view.decrypt(), torch.full((5,), 2.0))
    assert torch.equal(t.decrypt(), torch.ones(5))
    copy.copy(t).fill_(3)
    assert torch.equal(t.decrypt(), torch.full((5,), 3.0))


def test_copies_without_the_key(key: pyccmem.Key) -> None:
    with pyccmem.Key.generate() as gone:
        t = sealed(torch.arange(9.0), gone)
    assert torch.equal(copy.deepcopy(t).decrypt(), torch.arange(9.0))
    assert torch.equal(t.bfloat16().decrypt(), torch.arange(9.0).bfloat16())


REFUSED: dict[str, Callable[[Any], Any]] = {
    "cuda": lambda t: t.cuda(),
    "to cuda": lambda t: t.to("cuda"),
    "to cuda, type": lambda t: t.to("cuda:0", torch.float16),
    "gradient": lambda t: torch.nn.Parameter(t).sum().backward(),
    "data_ptr": lambda t: t.data_ptr(),
    "constructor": lambda t: EncryptedTensor(torch.ones(2)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(key: pyccmem.Key, name: str) -> None:
    t = sealed(torch.ones(3), key)
    with pytest.raises((errors.ArgumentError, errors.ArgumentTypeError)) as caught:
        REFUSED[name](t)
    text = str(caught.value)
    if "cuda" in name:
        assert "plaintext would leave protected memory" in text and "decrypt_module" in text
    if "grad" in name:
        assert "decrypt_module" in text


def test_wrong_arguments(key: pyccmem.Key) -> None:
    for value in (np.ones(3), torch.ones(3).to_sparse(), torch.ones(3, device="meta")):
        with pytest.raises(errors.ArgumentTypeError):
            sealed(value, key)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentTypeError):
        sealed(torch.ones(3), b"k" * 32)  # type: ignore[arg-type]
    core = pyccmem.EncryptedTensor.zeros((4,), np.uint16, key=key)
    assert EncryptedTensor.from_core(core, torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(errors.ArgumentError):
        EncryptedTensor.from_core(core, torch.float32)
    with pytest.raises(errors.ArgumentTypeError):
        EncryptedTensor.from_core(torch.ones(3))  # type: ignore[arg-type]


def test_nothing_printed_shows_data(key: pyccmem.Key) -> None:
    t = sealed(torch.full((), 7.25), key)
    parameter = torch.nn.Parameter(t, requires_grad=False)
    assert type(parameter) is EncryptedTensor and isinstance(parameter, torch.nn.Parameter)
    for text in (repr(t), str(t), f"{t}", f"{t:>90}", repr(parameter), repr([t[...]])):
        assert "7.25" not in text and "EncryptedTensor" in text
    assert t.item() == 7.25


def test_changed_pages_and_closed_tensors(key: pyccmem.Key) -> None:
    t = sealed(torch.ones(3000), key)
    support.damage(t.core.buffer, 1)
    for work in (t.decrypt, lambda: t + 1, lambda: t.add_(1), t.clone, lambda: t[2000] + 1):
        with pytest.raises(errors.IntegrityError):
            work()
    assert torch.equal(t[:1000] + 0, torch.ones(1000)), "other pages can still be read"
    t.core.close()
    for work in (t.decrypt, lambda: t + 1, lambda: t.add_(1), lambda: t.copy_(torch.ones(3000))):
        with pytest.raises(errors.ClosedError):
            work()
    assert "closed" in repr(t)


@support.not_sanitized
def test_a_forked_child(key: pyccmem.Key) -> None:
    t = sealed(torch.ones(8, 8), key)
    held = t._stored.lock

    def child() -> None:
        for work in (
            t.decrypt,
            lambda: torch.nn.functional.linear(torch.ones(1, 8), t),
            lambda: t.add_(1),
            lambda: t.copy_(torch.zeros(8, 8)),
            lambda: t.to(torch.float16),
        ):
            with pytest.raises(errors.ForkError):
                work()

    with held:
        support.in_forked_child(child)


def test_plaintext_goes_with_its_last_user(key: pyccmem.Key) -> None:
    t = sealed(torch.randn(100, 100), key)
    gc.collect()
    before = pyccmem.stats()["plain_in_use"]
    values = t.decrypt()
    assert pyccmem.stats()["plain_in_use"] == before + 40_000
    view = values[3:].t()
    array = view.numpy()
    del values, view
    assert pyccmem.stats()["plain_in_use"] == before + 40_000
    del array
    assert pyccmem.stats()["plain_in_use"] == before
    for work in (lambda: t + 1, lambda: t.sum(), lambda: t.add_(1), lambda: t[:3] @ t.t()):
        work()
        gc.collect()
        assert pyccmem.stats()["plain_in_use"] == before


def test_writers_in_threads(key: pyccmem.Key) -> None:
    """Read-modify-write of views of one tensor loses nothing."""
    t = sealed(torch.zeros(4, 700), key)

    def work(row: int) -> None:
        for _ in range(50):
            t[row].add_(1)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(t.decrypt(), torch.full((4, 700), 50.0))
