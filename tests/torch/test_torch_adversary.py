# SPDX-License-Identifier: Apache-2.0
"""What a review set out to break: lazy conjugates, views made in place, and what records or
transforms operations, which the short way of a product must not pass by."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch; pip install 'pyccmem[torch]'")

import pyccmem  # noqa: E402
import pyccmem.torch as pt  # noqa: E402
from pyccmem import errors  # noqa: E402

F = torch.nn.functional


@pytest.fixture
def key() -> Any:
    with pyccmem.Key.generate() as made:
        yield made


def secret(values: Any, key: Any) -> Any:
    return pt.EncryptedTensor.from_tensor(values, key=key)


def test_conjugates_are_conjugated(key: Any) -> None:
    values = torch.randn(3, 4, dtype=torch.complex64)
    for make in (lambda t: t.conj(), lambda t: t.mH, lambda t: t.conj()[1:].t()):
        expected = make(values.clone())
        got = make(secret(values.clone(), key))
        assert torch.equal(got.clone().decrypt(), expected.resolve_conj().resolve_neg())
        assert torch.equal(got + 0, expected + 0)


def test_writes_to_a_conjugate_arrive(key: Any) -> None:
    values = torch.randn(3, 4, dtype=torch.complex64)
    plain, encrypted = values.clone(), secret(values.clone(), key)
    plain.conj().mul_(2 + 3j)
    encrypted.conj().mul_(2 + 3j)
    assert torch.equal(encrypted.decrypt(), plain)


def test_views_in_place_are_refused_or_right(key: Any) -> None:
    values = torch.randn(3, 4)
    for change in (lambda t: t.t_(), lambda t: t.squeeze_(), lambda t: t.unsqueeze_(0)):
        plain, encrypted = values.clone(), secret(values.clone(), key)
        change(plain)
        try:
            change(encrypted)
        except (errors.PyccmemError, RuntimeError):
            assert torch.equal(encrypted.decrypt(), values)
            continue
        assert encrypted.shape == plain.shape
        assert torch.equal(encrypted.decrypt(), plain)


def test_forward_mode_gradients_pass_through(key: Any) -> None:
    ad = torch.autograd.forward_ad
    w, x, direction = torch.randn(3, 4), torch.randn(2, 4), torch.randn(2, 4)
    encrypted = secret(w, key)
    with ad.dual_level(), torch.no_grad():
        out = F.linear(ad.make_dual(x, direction), encrypted)
        tangent = ad.unpack_dual(out).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, direction @ w.T)


def test_programs_that_would_keep_weights_are_refused(key: Any) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    encrypted, x = secret(torch.randn(3, 4), key), torch.randn(2, 4)
    with torch.no_grad():
        with pytest.raises(errors.ArgumentError, match=r"torch\.compile"):
            torch.jit.trace(lambda x: F.linear(x, encrypted), (x,))
        with pytest.raises(errors.ArgumentError, match=r"torch\.compile"):
            make_fx(lambda x: F.linear(x, encrypted))(x)
        torch.testing.assert_close(F.linear(x, encrypted), x @ encrypted.decrypt().T)


def test_no_pointer_is_handed_out(key: Any) -> None:
    encrypted = secret(torch.randn(3), key)
    for ask in (torch.from_dlpack, lambda t: t.__dlpack__(), lambda t: t.data_ptr()):
        with pytest.raises(errors.PyccmemError):
            ask(encrypted)
