# SPDX-License-Identifier: Apache-2.0
"""The native product for vectors of the matrix's own type and an encrypted bias, against torch in
float64."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch; pip install 'pyccmem[torch]'")

import support  # noqa: E402

import pyccmem  # noqa: E402
import pyccmem.torch as pt  # noqa: E402
from pyccmem import errors  # noqa: E402
from pyccmem.torch import _linear  # noqa: E402
from pyccmem.torch._tensor import whole  # noqa: E402

F = torch.nn.functional


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode():
        yield


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the native calls."""
    made: list[int] = []
    inner = _linear._typed

    def typed(*args: Any) -> Any:
        made.append(1)
        return inner(*args)

    monkeypatch.setattr(_linear, "_typed", typed)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["none", "plain", "encrypted"])
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (19,), (48,), (7, 9), (97,)])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (130, 257), (64, 1024), (49, 30_000)])
def test_against_float64(
    calls: list[int], dtype: Any, bias: str, shape: tuple[int, ...], size: tuple[int, int]
) -> None:
    torch.manual_seed(hash((bias, shape, size)) % 1000)
    height, width = size
    with pyccmem.Key.generate() as key:
        w, x = torch.randn(size).to(dtype), torch.randn(*shape, width).to(dtype)
        b = None if bias == "none" else torch.randn(height).to(dtype)
        secret = pt.EncryptedTensor.from_tensor(w, key=key)
        added = pt.EncryptedTensor.from_tensor(b, key=key) if bias == "encrypted" else b
        got = F.linear(x, secret, added)
    assert calls == [1]
    assert got.dtype is dtype and got.shape == (*shape, height)
    exact = F.linear(x.double(), w.double(), None if b is None else b.double())
    size_of = F.linear(x.double().abs(), w.double().abs(), None if b is None else b.double().abs())
    bound = (width + 10) * 2.0**-24 * size_of
    if dtype is torch.bfloat16:
        bound += exact.abs() * 2.0**-8
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("rows", [1, 2, 49])
def test_bfloat16_is_rounded_as_torch_rounds(rows: int) -> None:
    """A product of zeros: the result is the bias, rounded from float32 as torch rounds it."""
    bits = torch.cat(
        [
            torch.randint(-(2**31), 2**31 - 1, (4000,), dtype=torch.int64).to(torch.int32),
            torch.tensor([0, 1, 0x7F800000, 0x7F7FFFFF, 0x7F7F8000, 0x3F808000, 0x3F818000]).to(
                torch.int32
            ),
        ]
    )
    values = bits.view(torch.float32)
    values = values[~values.isnan()]
    from pyccmem.binding import OK, ffi, lib

    out = torch.empty(rows, len(values), dtype=torch.bfloat16)
    with pyccmem.Key.generate() as key:
        core = pyccmem.EncryptedTensor.zeros((len(values), 1), "f4", key=key)
        bias = ffi.new(
            "ccmem_bias *", (ffi.cast("void *", values.data_ptr()), ffi.NULL, 0, lib.CCMEM_F32)
        )
        x = torch.ones(rows)
        status = lib.ccmem_store_linear_typed(
            core._opened(), 0, lib.CCMEM_F32, len(values), 1, ffi.cast("void *", x.data_ptr()),
            lib.CCMEM_F32, rows, bias[0], ffi.cast("void *", out.data_ptr()), lib.CCMEM_BF16,
        )  # fmt: skip
    assert status == OK
    expected = values.to(torch.bfloat16).expand(rows, -1)
    assert torch.equal(out.view(torch.int16) & 0x7FFF, expected.view(torch.int16) & 0x7FFF)
    nonzero = expected != 0  # 0 * x + -0 is +0
    assert torch.equal(out[nonzero].view(torch.int16), expected[nonzero].view(torch.int16))


@pytest.mark.parametrize("rows", [1, 2, 49])
def test_nan_stays_nan(rows: int) -> None:
    with pyccmem.Key.generate() as key:
        w = pt.EncryptedTensor.from_tensor(torch.ones(3, 2, dtype=torch.bfloat16), key=key)
        x = torch.ones(rows, 2, dtype=torch.bfloat16)
        x[0, 0] = float("nan")
        y = F.linear(x, w)
        assert y[0].isnan().all() and (y[1:] == 2).all()


@pytest.mark.parametrize("rows", [1, 2, 49])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refused_arguments_leave_zeros(dtype: Any, rows: int) -> None:
    """A matrix that does not lie in its store."""
    code = _linear._TYPED[dtype]
    x, y = torch.ones(rows, 8, dtype=dtype), torch.full((rows, 600), 7.5, dtype=dtype)
    with pyccmem.Key.generate() as key:
        core = pyccmem.EncryptedTensor.zeros((4, 8), "f4", key=key)
        status = _linear.lib.ccmem_store_linear_typed(
            core._opened(), 0, code, 600, 8, _linear._cast("void *", x.data_ptr()), code, rows,
            _linear._NO_BIAS[dtype][0], _linear._cast("void *", y.data_ptr()), code,
        )  # fmt: skip
    assert status == _linear.lib.CCMEM_ERR_RANGE
    assert not y.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_changed_page_is_told_by_its_tensor(dtype: Any, which: str) -> None:
    with pyccmem.Key.generate() as key:
        tensors = {
            name: pt.EncryptedTensor.from_tensor(torch.randn(size).to(dtype), key=key, name=name)
            for name, size in {"weight": (5, 8), "bias": (5,)}.items()
        }
        x = torch.randn(2, 8).to(dtype)
        good = F.linear(x, tensors["weight"], tensors["bias"])
        assert good.isfinite().all()
        support.damage(tensors[which].core.buffer, 0)
        with pytest.raises(errors.IntegrityError, match=which) as caught:
            F.linear(x, tensors["weight"], tensors["bias"])
        assert caught.value.name == which


def test_a_closed_bias_is_refused() -> None:
    with pyccmem.Key.generate() as key:
        w = pt.EncryptedTensor.from_tensor(torch.ones(3, 2), key=key)
        b = pt.EncryptedTensor.from_tensor(torch.ones(3), key=key)
        b.core.close()
        with pytest.raises(errors.ClosedError):
            F.linear(torch.ones(2), w, b)


# ---- several matrices, one below the other -------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", ["none", "plain", "encrypted"])
@pytest.mark.parametrize("rows", [1, 3, 19, 97])
def test_parts_are_products_side_by_side(
    calls: list[int], dtype: Any, bias: str, rows: int
) -> None:
    """With the bits of each product alone, whose bounds are tested above."""
    torch.manual_seed(rows)
    x, sizes = torch.randn(2, rows, 160).to(dtype), (130, 1, 48)
    with pyccmem.Key.generate() as key:
        secret = [
            pt.EncryptedTensor.from_tensor(torch.randn(size, 160).to(dtype), key=key)
            for size in sizes
        ]
        b = None if bias == "none" else torch.randn(sum(sizes)).to(dtype)
        parts = [whole(one) for one in secret]
        added = whole(pt.EncryptedTensor.from_tensor(b, key=key)) if bias == "encrypted" else b
        got = _linear.rows_of_one_type(x, parts, added)
        assert calls == [1]
        cut = [None] * 3 if b is None else b.split(sizes)
        alone = [F.linear(x, one, part) for one, part in zip(secret, cut, strict=True)]
    assert torch.equal(got, torch.cat(alone, -1))


@pytest.mark.parametrize("rows", [1, 3, 97])
def test_a_changed_part_is_told_by_its_tensor(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []
    inner = _linear.new_result

    def new_result(*args: Any) -> Any:
        left.append(inner(*args))
        return left[-1]

    monkeypatch.setattr(_linear, "new_result", new_result)
    with pyccmem.Key.generate() as key:
        secret = [
            pt.EncryptedTensor.from_tensor(torch.randn(40, 96), key=key, name=f"part{n}")
            for n in range(3)
        ]
        support.damage(secret[1].core.buffer, 2)
        with pytest.raises(errors.IntegrityError, match="part1"):
            _linear.rows_of_one_type(torch.randn(rows, 96), [whole(one) for one in secret], None)
    assert not left[0].any()


def test_parts_that_do_not_go_together_are_left_to_others() -> None:
    with pyccmem.Key.generate() as key:
        a = pt.EncryptedTensor.from_tensor(torch.ones(3, 2), key=key)
        b = pt.EncryptedTensor.from_tensor(torch.ones(3, 4), key=key)
        c = pt.EncryptedTensor.from_tensor(torch.ones(3, 2, dtype=torch.bfloat16), key=key)
        for other in (b, c):
            parts = [whole(a), whole(other)]
            assert _linear.rows_of_one_type(torch.ones(1, 2), parts, None) is None
