# SPDX-License-Identifier: Apache-2.0
"""pyccmem's operators, which torch.compile puts into a program that uses an EncryptedTensor.

Each takes the ciphertext, a tensor of uint8, and the form of what lies in it, and finds the store
by the ciphertext. They are tagged nondeterministic_seeded, so that inductor does not compute them
when it folds constants (freezing), which would make a decrypted weight part of the compiled
program.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._linear import columns, rows
from .._stored import stored_of_ciphertext

__all__: list[str] = []

_library = torch.library.Library("pyccmem", "DEF")  # type: ignore[no-untyped-call]
_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)
_check: Any = torch._check
_MATRIX = "Tensor ciphertext, int offset, SymInt[] size, ScalarType dtype"


def _define(name: str, schema: str, work: Any, fake: Any) -> None:
    library: Any = _library
    library.define(f"{name}{schema}", tags=_TAGS)
    library.impl(name, work, "CPU")
    torch.library.register_fake(f"pyccmem::{name}", fake, lib=_library)


def _decrypt(ciphertext: Tensor, offset: int, size: list[int], dtype: torch.dtype) -> Tensor:
    stored = stored_of_ciphertext(ciphertext, dtype)
    first = (offset - stored.form().offset) // dtype.itemsize
    return stored.opened_run(stored.core, first, int(torch.Size(size).numel())).view(size)


def _fake_decrypt(ciphertext: Tensor, offset: int, size: Any, dtype: torch.dtype) -> Tensor:
    return ciphertext.new_empty(size, dtype=dtype)


def _define_product(name: str, multiply: Any, axis: int) -> None:
    """Defines the operator for `multiply`, which is rows() or columns(). W's axis `axis` matches
    x's last."""

    def work(
        x: Tensor,
        ciphertext: Tensor,
        offset: int,
        size: list[int],
        dtype: torch.dtype,
        bias: Tensor | None,
    ) -> Tensor:
        stored = stored_of_ciphertext(ciphertext, dtype)
        first = (offset - stored.form().offset) // dtype.itemsize
        matrix = stored.matrix_at(first, tuple(size))
        assert matrix is not None, "the program has been traced with a matrix"
        product: Tensor = multiply(x, matrix, bias, x.dtype, wipe=stored.wipe_results)
        return product

    def fake(
        x: Tensor, ciphertext: Tensor, offset: int, size: Any, dtype: torch.dtype, bias: Any
    ) -> Tensor:
        _check(x.shape[-1] == size[axis], lambda: f"x of shape {x.shape} and W of shape {size}")
        _check(x.dtype == dtype, lambda: f"x is of {x.dtype} and W of {dtype}")
        return x.new_empty((*x.shape[:-1], size[1 - axis]))

    _define(name, f"(Tensor x, {_MATRIX}, Tensor? bias) -> Tensor", work, fake)


def _embedding(
    numbers: Tensor, ciphertext: Tensor, offset: int, size: list[int], dtype: torch.dtype
) -> Tensor:
    stored = stored_of_ciphertext(ciphertext, dtype)
    first = (offset - stored.form().offset) // dtype.itemsize
    found = stored.rows_at(first, tuple(size), numbers, wrap=False)
    assert found is not None, "the program has been traced with a table"
    return found


def _fake_embedding(
    numbers: Tensor, ciphertext: Tensor, offset: int, size: Any, dtype: torch.dtype
) -> Tensor:
    return ciphertext.new_empty((*numbers.shape, *size[1:]), dtype=dtype)


_define("decrypt", f"({_MATRIX}) -> Tensor", _decrypt, _fake_decrypt)
_define_product("linear", rows, 1)
_define_product("linear_columns", columns, 0)
_define("embedding", f"(Tensor numbers, {_MATRIX}) -> Tensor", _embedding, _fake_embedding)
